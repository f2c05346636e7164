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

/// A millisecond in nanoseconds.
const MILLISECOND: i128 = 1_000_000;
/// The capacity of a bucket that has none of its own: what flows in during this time, in nanoseconds. A device that is
/// late by less than that loses nothing.
const FILLED: i128 = 100 * MILLISECOND;
const SECOND: NonZeroU64 = NonZeroU64::new(1000).expect("it is not 0");

/// A limit: a bucket of units (bytes, or requests) that fills steadily.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// The units that flow in during `refill`.
    pub size: NonZeroU64,
    /// A time in milliseconds.
    #[serde(default = "second")]
    pub refill: NonZeroU64,
    /// `None`: the bucket begins empty, and holds what flows in during a tenth of a second. Otherwise it holds `size`
    /// units, and begins full, with this many units more, which are there only once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub once: Option<u64>,
}

const fn second() -> NonZeroU64 {
    SECOND
}

impl Limit {
    /// So many units per second, without a capacity of its own; `None` for 0.
    pub const fn per_second(units: u64) -> Option<Self> {
        match NonZeroU64::new(units) {
            Some(size) => Some(Limit {
                size,
                refill: SECOND,
                once: None,
            }),
            None => None,
        }
    }
}

/// The limits of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Of bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Limit>,
    /// Of requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<Limit>,
}

/// Counts units against a limit. It has no clock: times are relative to any fixed moment.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Parts that flow in per nanosecond.
    rate: i128,
    /// The parts of a unit.
    unit: i128,
    /// The most parts that flow in.
    full: i128,
    /// What may be taken now, in parts. Below 0 the next request waits.
    balance: i128,
    at: Duration,
}

impl Bucket {
    /// A bucket for `limit`.
    pub const fn new(limit: Limit, now: Duration) -> Self {
        let size = limit.size.get() as i128;
        let unit = (limit.refill.get() as i128).saturating_mul(MILLISECOND);
        let (full, balance) = match limit.once {
            None => (size.saturating_mul(FILLED), 0),
            // The last unit of what is there is the one that a request needs to start.
            Some(once) => (
                (size - 1).saturating_mul(unit),
                (size - 1 + once as i128).saturating_mul(unit),
            ),
        };
        Bucket {
            rate: size,
            unit,
            full,
            balance,
            at: now,
        }
    }

    /// How long to wait before taking anything; `None` if no wait is necessary.
    pub fn wait(&mut self, now: Duration) -> Option<Duration> {
        let passed = now.saturating_sub(self.at).as_nanos().min(i64::MAX as u128);
        self.at = self.at.max(now);
        if self.balance < self.full {
            let more = self.rate.saturating_mul(passed as i128);
            self.balance = self.balance.saturating_add(more).min(self.full);
        }
        if self.balance >= 0 {
            return None;
        }
        let nanos = self.balance.saturating_neg().saturating_add(self.rate - 1) / self.rate;
        Some(Duration::from_nanos(
            u64::try_from(nanos).unwrap_or(u64::MAX),
        ))
    }

    /// Takes units, possibly more than there are.
    pub const fn take(&mut self, units: u64) {
        let parts = self.unit.saturating_mul(units as i128);
        self.balance = self.balance.saturating_sub(parts);
    }
}

/// A monotonic clock: the time since any fixed moment.
pub type Clock = Box<dyn Fn() -> Duration + Send>;

/// Limits with a clock and a timer.
pub struct Limiter {
    limits: Limits,
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
        let bucket = |limit: Option<Limit>| limit.map(|limit| Bucket::new(limit, clock()));
        Ok(Some(Limiter {
            limits,
            bandwidth: bucket(limits.bandwidth),
            requests: bucket(limits.iops),
            clock,
            timer,
        }))
    }

    /// Replaces the limits. A wait is over. What was counted no longer counts, except for a limit that stays the same.
    pub fn set(&mut self, limits: Limits) {
        let now = (self.clock)();
        let changes = [
            (&mut self.bandwidth, self.limits.bandwidth, limits.bandwidth),
            (&mut self.requests, self.limits.iops, limits.iops),
        ];
        for (bucket, old, new) in changes {
            if old != new {
                *bucket = new.map(|limit| Bucket::new(limit, now));
            }
        }
        self.limits = limits;
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
