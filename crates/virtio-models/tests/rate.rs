// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rate limits, with a clock that the tests control.

use std::num::NonZeroU64;
use std::time::Duration;

use virtio_models::rate::{Bucket, Limit, Limiter, Limits};

/// How many units start in ten seconds with requests of `size`, if the waiter is late by up to `late` nanoseconds.
fn units(rate: u64, size: u64, late: u64) -> u64 {
    let mut now = Duration::from_secs(7);
    let end = now + Duration::from_secs(10);
    let mut bucket = Bucket::new(Limit::per_second(rate).expect("a rate"), now);
    let (mut taken, mut seed) = (0, 1_u64);
    while now < end {
        match bucket.wait(now) {
            None => {
                bucket.take(size);
                taken += size;
            }
            Some(wait) => {
                assert!(!wait.is_zero());
                seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                now += wait + Duration::from_nanos(if late == 0 { 0 } else { (seed >> 33) % late });
            }
        }
    }
    taken
}

#[test]
fn rates_are_kept_within_five_percent() {
    for rate in [100, 333, 1000, 7919, 10_000, 50_000, 100_000] {
        for late in [0, 1000, 1_000_000, 20_000_000] {
            let (got, wanted) = (units(rate, 1, late), rate * 10);
            let off = got.abs_diff(wanted);
            assert!(off * 20 <= wanted, "{got} for {wanted}, late by {late}");
        }
    }
}

#[test]
fn large_requests_have_the_same_rate_as_small_ones() {
    // 10 MB a second, with requests from 512 bytes to 1 MiB.
    for size in [512, 4096, 65_536, 1 << 20] {
        let (got, wanted) = (units(10_000_000, size, 1_000_000), 100_000_000);
        assert!(got.abs_diff(wanted) * 20 <= wanted, "{got} for {wanted}");
    }
}

#[test]
fn an_idle_bucket_is_filled_for_a_tenth_of_a_second() {
    let mut bucket = Bucket::new(Limit::per_second(1000).unwrap(), Duration::ZERO);
    let now = Duration::from_secs(3600);
    let burst = std::iter::from_fn(|| bucket.wait(now).is_none().then(|| bucket.take(1)));
    assert_eq!(burst.count(), 101);
}

#[test]
fn no_number_is_too_large() {
    let mut bucket = Bucket::new(Limit::per_second(u64::MAX).unwrap(), Duration::ZERO);
    bucket.take(u64::MAX);
    assert_eq!(bucket.wait(Duration::MAX), None);
    let mut bucket = Bucket::new(Limit::per_second(1).unwrap(), Duration::ZERO);
    bucket.take(u64::MAX);
    assert_eq!(
        bucket.wait(Duration::ZERO),
        Some(Duration::from_nanos(u64::MAX))
    );
    // A clock that goes backwards adds nothing.
    bucket.wait(Duration::from_secs(5));
    let before = bucket.wait(Duration::from_secs(4));
    assert_eq!(bucket.wait(Duration::from_secs(4)), before);
    let most = NonZeroU64::MAX;
    let limit = Limit {
        size: most,
        refill: most,
        once: Some(u64::MAX),
    };
    let mut bucket = Bucket::new(limit, Duration::ZERO);
    for at in [Duration::ZERO, Duration::MAX] {
        bucket.take(u64::MAX);
        let _ = bucket.wait(at);
    }
}

/// A bucket of 5 requests that takes 10 seconds to fill.
fn five(once: u64) -> Limit {
    let number = |n| NonZeroU64::new(n).expect("a number");
    Limit {
        size: number(5),
        refill: number(10_000),
        once: Some(once),
    }
}

/// How many requests start now.
fn start_all(bucket: &mut Bucket, now: Duration) -> usize {
    let start = || bucket.wait(now).is_none().then(|| bucket.take(1));
    std::iter::from_fn(start).count()
}

#[test]
fn a_bucket_begins_full_and_what_it_has_once_does_not_come_again() {
    for once in [0, 3] {
        let mut bucket = Bucket::new(five(once), Duration::ZERO);
        assert_eq!(start_all(&mut bucket, Duration::ZERO), 5 + once as usize);
        let second = Duration::from_secs(2);
        assert_eq!(bucket.wait(Duration::ZERO), Some(second));
        assert_eq!(start_all(&mut bucket, second), 1);
        // However long it waits, it is full and no more.
        assert_eq!(start_all(&mut bucket, Duration::from_secs(3600)), 5);
    }
    // Nothing flows in before that is used up.
    let mut bucket = Bucket::new(five(3), Duration::ZERO);
    assert_eq!(start_all(&mut bucket, Duration::from_secs(3600)), 8);
}

#[test]
fn a_change_gives_a_burst_only_to_the_limit_that_it_is_of() {
    let limits = Limits {
        bandwidth: Limit::per_second(1 << 20),
        iops: Some(five(3)),
    };
    let limiter = Limiter::with_clock(limits, Box::new(|| Duration::ZERO));
    let mut limiter = limiter.expect("a timer").expect("limits");
    let start_all = |limiter: &mut Limiter| {
        let start = || limiter.allows().then(|| limiter.count(0));
        std::iter::from_fn(start).count()
    };
    assert_eq!(start_all(&mut limiter), 8);
    let bandwidth = Limit::per_second(1);
    limiter.set(Limits {
        bandwidth,
        ..limits
    });
    assert_eq!(start_all(&mut limiter), 0);
    let iops = Some(five(4));
    limiter.set(Limits { bandwidth, iops });
    assert_eq!(start_all(&mut limiter), 9);
}
