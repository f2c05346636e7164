// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rate limits for devices: token buckets, and a timer that ends a wait.
//!
//! A wait is as long as necessary, without a fixed cool-down. A device that moved too much at once waits for it
//! afterwards. So requests of any size get the same rate in the long run.

use std::fmt;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::timer::Timer;

/// A second in nanoseconds. Also the number of parts that a bucket counts per unit.
const SECOND: i128 = 1_000_000_000;
/// The capacity of an idle bucket, as a fraction of a second. A device that is late by less than that loses nothing.
const FILLED: i128 = 10;

/// The limits of a device per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<NonZeroU64>,
    /// Requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<NonZeroU64>,
}

/// Counts units at a rate. It has no clock: times are relative to any fixed moment.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    rate: i128,
    /// What may be taken now, in billionths of a unit. Below 0 the next request waits.
    balance: i128,
    at: Duration,
}

impl Bucket {
    /// A bucket for `rate` units per second. It starts empty.
    pub const fn new(rate: NonZeroU64, now: Duration) -> Self {
        Bucket {
            rate: rate.get() as i128,
            balance: 0,
            at: now,
        }
    }

    /// How long to wait before taking anything; `None` if no wait is necessary.
    pub fn wait(&mut self, now: Duration) -> Option<Duration> {
        let passed = now.saturating_sub(self.at).as_nanos().min(i64::MAX as u128);
        self.at = self.at.max(now);
        let filled = self.rate * SECOND / FILLED;
        self.balance = (self.balance + passed as i128 * self.rate).min(filled);
        if self.balance >= 0 {
            return None;
        }
        let nanos = (-self.balance + self.rate - 1) / self.rate;
        Some(Duration::from_nanos(
            u64::try_from(nanos).unwrap_or(u64::MAX),
        ))
    }

    /// Takes units, possibly more than there are.
    pub const fn take(&mut self, units: u64) {
        self.balance -= units as i128 * SECOND;
    }
}

/// A monotonic clock: the time since any fixed moment.
pub type Clock = Box<dyn Fn() -> Duration + Send>;

/// Limits with a clock and a timer.
pub struct Limiter {
    bandwidth: Option<Bucket>,
    requests: Option<Bucket>,
    clock: Clock,
    timer: Timer,
}

impl Limiter {
    /// Limits with the host's monotonic clock; `None` if nothing is limited.
    ///
    /// # Errors
    /// The host has no timer left.
    pub fn new(limits: Limits) -> io::Result<Option<Self>> {
        let start = Instant::now();
        Self::with_clock(limits, Box::new(move || start.elapsed()))
    }

    /// Limits with another clock. The host's timer ends the waits; then the clock is checked.
    ///
    /// # Errors
    /// The host has no timer left.
    pub fn with_clock(limits: Limits, clock: Clock) -> io::Result<Option<Self>> {
        if limits == Limits::default() {
            return Ok(None);
        }
        let timer = Timer::new()?;
        let bucket = |rate: Option<NonZeroU64>| rate.map(|rate| Bucket::new(rate, clock()));
        Ok(Some(Limiter {
            bandwidth: bucket(limits.bandwidth),
            requests: bucket(limits.iops),
            clock,
            timer,
        }))
    }

    /// Replaces the limits. A wait is over, and what was counted before no longer counts.
    pub fn set(&mut self, limits: Limits) {
        let now = (self.clock)();
        let bucket = |rate: Option<NonZeroU64>| rate.map(|rate| Bucket::new(rate, now));
        (self.bandwidth, self.requests) = (bucket(limits.bandwidth), bucket(limits.iops));
        self.timer.rest();
    }

    /// Becomes readable when a wait ends.
    pub fn source(&self) -> BorrowedFd<'_> {
        self.timer.source()
    }

    /// Whether a request may start now. If not, [`source`](Self::source) tells when to ask again.
    pub fn allows(&mut self) -> bool {
        let now = (self.clock)();
        let buckets = [&mut self.bandwidth, &mut self.requests];
        let waits = buckets.into_iter().flatten();
        let Some(wait) = waits.filter_map(|bucket| bucket.wait(now)).max() else {
            return true;
        };
        // Without a timer the wait would never end, so don't limit then.
        self.timer.arm(wait).is_err()
    }

    /// Counts a started request of `bytes` bytes.
    pub const fn count(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bandwidth {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut self.requests {
            bucket.take(1);
        }
    }

    /// Clears the source after it was readable.
    pub fn rest(&mut self) {
        self.timer.rest();
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter")
            .field("bandwidth", &self.bandwidth)
            .field("requests", &self.requests)
            .finish_non_exhaustive()
    }
}
