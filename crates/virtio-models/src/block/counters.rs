// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a disk has done, for any thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::request::{Request, Status};

/// A disk's counters. They count from the device's creation.
///
/// The device's thread writes them without locked operations. Any thread may read them at any time. Numbers that are
/// read while the disk works need not add up.
#[derive(Debug, Default)]
pub struct Counters {
    reads: Transfers,
    writes: Transfers,
    flushes: AtomicU64,
    erases: AtomicU64,
    failed: AtomicU64,
    invalid: AtomicU64,
}

#[derive(Debug, Default)]
struct Transfers {
    requests: AtomicU64,
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
    longest: AtomicU64,
}

/// The values of a disk's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads that succeeded.
    pub reads: Transfer,
    /// Writes that succeeded, with the zeros that the host could write only as data.
    pub writes: Transfer,
    /// Flushes of the driver that succeeded.
    pub flushes: u64,
    /// Discards and writes of zeros that succeeded.
    pub erases: u64,
    /// Valid requests that failed on the host, or that it does not support.
    pub failed: u64,
    /// Requests that broke a rule, and unknown ones.
    pub invalid: u64,
}

/// The counts of a direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// Requests.
    pub requests: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The sum of their times, each from the device's first look at the request to its end. A single time is as coarse
    /// as the kernel's tick (1 to 10 ms), so many of them are 0. Their sum is right on average.
    pub time: Duration,
    /// The longest of these times.
    pub longest: Duration,
}

/// With a single writer, no locked operation is necessary.
fn add(counter: &AtomicU64, more: u64) {
    let sum = counter.load(Ordering::Relaxed).wrapping_add(more);
    counter.store(sum, Ordering::Relaxed);
}

impl Transfers {
    fn count(&self, bytes: u64, took: u64) {
        add(&self.requests, 1);
        add(&self.bytes, bytes);
        add(&self.nanoseconds, took);
        if took > self.longest.load(Ordering::Relaxed) {
            self.longest.store(took, Ordering::Relaxed);
        }
    }

    fn get(&self) -> Transfer {
        let nanoseconds =
            |counter: &AtomicU64| Duration::from_nanos(counter.load(Ordering::Relaxed));
        Transfer {
            requests: self.requests.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            time: nanoseconds(&self.nanoseconds),
            longest: nanoseconds(&self.longest),
        }
    }
}

impl Counters {
    /// The values now.
    pub fn get(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            reads: self.reads.get(),
            writes: self.writes.get(),
            flushes: of(&self.flushes),
            erases: of(&self.erases),
            failed: of(&self.failed),
            invalid: of(&self.invalid),
        }
    }

    /// Counts a request that took this many nanoseconds. A request that is not valid is [`Request::Nothing`].
    pub(super) fn count(&self, request: Request, status: Status, took: u64) {
        match (status, request) {
            (Status::Ok, Request::Read { len, .. }) => self.reads.count(len, took),
            (Status::Ok, Request::Write { len, .. }) => self.writes.count(len, took),
            (Status::Ok, Request::Flush) => add(&self.flushes, 1),
            (Status::Ok, Request::Discard { .. } | Request::WriteZeroes { .. }) => {
                add(&self.erases, 1);
            }
            (Status::Ok, Request::Id | Request::Nothing) => {}
            (_, Request::Nothing) => add(&self.invalid, 1),
            (..) => add(&self.failed, 1),
        }
    }
}

/// The time in nanoseconds. The coarse clock costs a few nanoseconds, a precise one ten times as much.
pub(super) fn now() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    (now.tv_sec as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(now.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_add_up_and_the_longest_stays() {
        let counters = Counters::default();
        let read = Request::Read {
            offset: 0,
            len: 512,
        };
        for took in [3, 9, 4] {
            counters.count(read, Status::Ok, took);
        }
        counters.count(read, Status::IoErr, 1000);
        let counts = counters.get();
        let reads = Transfer {
            requests: 3,
            bytes: 1536,
            time: Duration::from_nanos(16),
            longest: Duration::from_nanos(9),
        };
        assert_eq!((counts.reads, counts.failed), (reads, 1));
        assert_eq!(counts.writes, Transfer::default());
    }

    #[test]
    fn the_clock_goes_on() {
        let before = now();
        std::thread::sleep(Duration::from_millis(20));
        assert!(now() > before);
    }
}
