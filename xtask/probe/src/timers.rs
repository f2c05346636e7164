// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Timers of a guest that is saved and restored meanwhile: many threads sleep, and a timer counts periods.
//!
//! It says BAD if a sleep is too short, if the timer's count is not that of the clock, or if a thread sees an earlier time
//! than another one before it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::read;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::Error;

/// Threads that sleep. The n-th one sleeps for n times the shortest sleep.
const SLEEPERS: u32 = 32;
const SHORTEST: Duration = Duration::from_millis(20);
/// The timer's period.
const PERIOD: Duration = Duration::from_millis(50);

/// The latest time that any thread has seen.
#[derive(Debug)]
struct Clock(Mutex<Instant>);

impl Clock {
    /// The time. Who holds the lock reads the clock after all who held it before.
    fn now(&self) -> Instant {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now < *last {
            println!("BAD TIME: {:?} back", *last - now);
        }
        *last = now;
        now
    }
}

/// A timer that began between two times.
#[derive(Debug)]
struct Periods {
    began: [Instant; 2],
    counted: u64,
}

impl Periods {
    /// Counts what a read between these two times has returned. Returns what is wrong.
    fn count(&mut self, read: [Instant; 2], periods: u64) -> Result<(), String> {
        self.counted += periods;
        let whole = |time: Duration| (time.as_nanos() / PERIOD.as_nanos()) as u64;
        let fewest = whole(read[0].saturating_duration_since(self.began[1]));
        let most = whole(read[1].saturating_duration_since(self.began[0]));
        match (fewest..=most).contains(&self.counted) {
            true => Ok(()),
            false => Err(format!("{}, not {fewest} to {most}", self.counted)),
        }
    }
}

/// Runs `timers`: for ever. Each time when all threads have slept since the last one, it prints a line.
pub fn main(words: &[&str]) -> Result<(), Error> {
    let [] = words else {
        return Err("say timers".into());
    };
    let clock = Clock(Mutex::new(Instant::now()));
    let sleeps: Vec<AtomicU64> = (0..SLEEPERS).map(|_| AtomicU64::new(0)).collect();
    thread::scope(|scope| {
        for (times, sleep) in sleeps.iter().zip(1..) {
            let clock = &clock;
            scope.spawn(move || sleep_on(SHORTEST * sleep, times, clock));
        }
        count_periods(&clock, &sleeps)
    })
}

fn sleep_on(time: Duration, times: &AtomicU64, clock: &Clock) {
    loop {
        let before = clock.now();
        thread::sleep(time);
        let slept = clock.now().saturating_duration_since(before);
        if slept < time {
            println!("BAD SLEEP: {slept:?} of {time:?}");
        }
        times.fetch_add(1, Ordering::Relaxed);
    }
}

fn count_periods(clock: &Clock, sleeps: &[AtomicU64]) -> Result<(), Error> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::empty())?;
    let period = Timespec {
        tv_sec: 0,
        tv_nsec: PERIOD.as_nanos() as i64,
    };
    let setting = Itimerspec {
        it_interval: period,
        it_value: period,
    };
    let before = clock.now();
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &setting)?;
    let mut periods = Periods {
        began: [before, clock.now()],
        counted: 0,
    };
    let (mut said, mut last) = (0, vec![0; sleeps.len()]);
    loop {
        let (before, mut count) = (clock.now(), [0; 8]);
        read(&timer, &mut count)?;
        let end = periods.count([before, clock.now()], u64::from_ne_bytes(count));
        if let Err(wrong) = end {
            println!("BAD TIMER: {wrong}");
        }
        let now: Vec<u64> = sleeps.iter().map(|n| n.load(Ordering::Relaxed)).collect();
        if now.iter().zip(&last).all(|(now, last)| now > last) {
            (said, last) = (said + 1, now);
            println!("SLEEP {said} {}", periods.counted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_counts_as_the_clock_does() {
        let start = Instant::now();
        let at = |periods: f64| start + PERIOD.mul_f64(periods);
        let read = |counted, read: [f64; 2], periods| {
            let began = [at(0.0), at(0.2)];
            let mut all = Periods { began, counted };
            all.count(read.map(at), periods)
        };
        assert_eq!(read(0, [0.3, 1.1], 1), Ok(()));
        // It was stopped for a long time between two reads, or while one waited.
        assert_eq!(read(1, [1.1, 7.1], 6), Ok(()));
        assert_eq!(read(1, [7.1, 7.3], 5), Ok(()));
        let wrong = |text: &str| Err(text.to_owned());
        assert_eq!(read(1, [3.5, 4.1], 1), wrong("2, not 3 to 4"));
        assert_eq!(read(1, [1.1, 2.1], 2), wrong("3, not 0 to 2"));
    }
}
