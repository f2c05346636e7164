// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The start time of the process, to measure boots.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

static START: OnceLock<Instant> = OnceLock::new();

/// Sets the start to now. The program calls it first, so only the dynamic linker's time since exec is missing. A
/// library user may call it at any time. Later calls do nothing.
pub fn mark() {
    START.get_or_init(Instant::now);
}

/// The time since [`mark`], or since the first call of this function.
pub fn elapsed() -> Duration {
    START.get_or_init(Instant::now).elapsed()
}

/// A moment, and the CPU time that the process had used then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    at: Instant,
    cpu: Duration,
}

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        Moment {
            at: Instant::now(),
            cpu: clock(ClockId::ProcessCPUTime),
        }
    }

    /// The time since then, and the CPU time that the process has used since.
    pub fn elapsed(&self) -> (Duration, Duration) {
        let cpu = clock(ClockId::ProcessCPUTime).saturating_sub(self.cpu);
        (self.at.elapsed(), cpu)
    }
}

fn clock(id: ClockId) -> Duration {
    let now = clock_gettime(id);
    // Neither clock is before its start.
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// What the parent says about the start of this process, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartedAt {
    /// The monotonic clock then.
    pub wall_us: Option<u64>,
    /// The CPU time that this process had used then.
    pub cpu_us: Option<u64>,
    /// The CPU time that the parent used for it.
    pub parent_cpu_us: Option<u64>,
}

static READY: OnceLock<[Duration; 2]> = OnceLock::new();

/// Notes that the process is ready for clients. Later calls do nothing.
pub fn ready(started: StartedAt) {
    let since = |clock: Duration, start: Option<u64>| {
        start.map_or(Duration::ZERO, |start| {
            clock.saturating_sub(Duration::from_micros(start))
        })
    };
    let wall = since(clock(ClockId::Monotonic), started.wall_us);
    let mut cpu = since(clock(ClockId::ProcessCPUTime), started.cpu_us);
    if started.cpu_us.is_some() {
        cpu += Duration::from_micros(started.parent_cpu_us.unwrap_or(0));
    }
    READY.get_or_init(|| [wall, cpu]);
}

/// The time from the start until [`ready`], and the CPU time. Zero if the parent said nothing.
pub(crate) fn until_ready() -> [Duration; 2] {
    READY.get().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parents_times_are_subtracted() {
        assert_eq!(until_ready(), [Duration::ZERO; 2]);
        let ago = clock(ClockId::Monotonic).saturating_sub(Duration::from_secs(5));
        let micros = u64::try_from(ago.as_micros()).unwrap();
        ready(StartedAt {
            wall_us: Some(micros),
            cpu_us: Some(0),
            parent_cpu_us: Some(3_000_000),
        });
        let [wall, cpu] = until_ready();
        assert!(wall >= Duration::from_secs(5) && cpu >= Duration::from_secs(3));
        // The first one counts.
        ready(StartedAt::default());
        assert_eq!(until_ready(), [wall, cpu]);
    }

    #[test]
    fn the_first_mark_counts() {
        mark();
        std::thread::sleep(Duration::from_millis(20));
        mark();
        assert!(elapsed() >= Duration::from_millis(20));
    }
}
