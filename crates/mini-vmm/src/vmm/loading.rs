// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stops the loading of images at a signal, a command or a deadline, and logs progress if it takes long.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::boot::{Step, Watch};
use crate::console::tell;
use crate::outcome::Outcome;
use crate::vmm::control::Door;
use crate::vmm::supervisor::TerminationSignals;

/// How often signals, commands and the deadline are checked. A shorter load never checks them.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// When the first progress line is due. The time doubles with each line, so that they stay few.
const TELL_AFTER: Duration = Duration::from_secs(2);

/// Watches one load of kernel and initrd.
#[derive(Debug)]
pub(crate) struct LoadWatch<'a> {
    signals: &'a TerminationSignals,
    door: &'a Door,
    time_out_at: Option<Instant>,
    begin: Instant,
    look_at: Cell<Instant>,
    tell_after: Cell<Duration>,
    outcome: Cell<Option<Outcome>>,
}

impl<'a> LoadWatch<'a> {
    pub(crate) fn new(
        signals: &'a TerminationSignals,
        door: &'a Door,
        time_out_at: Option<Instant>,
    ) -> Self {
        let begin = Instant::now();
        LoadWatch {
            signals,
            door,
            time_out_at,
            begin,
            look_at: Cell::new(begin + LOOK_EVERY),
            tell_after: Cell::new(TELL_AFTER),
            outcome: Cell::new(None),
        }
    }

    /// The outcome that stopped the load, if any.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        self.outcome.get()
    }

    /// What is due at `now`: a progress line, or the end.
    fn look(&self, now: Instant, step: Step) -> Option<String> {
        // What was found stays: a stop is answered, and a signal is not seen again.
        if now < self.look_at.get() || self.outcome.get().is_some() {
            return None;
        }
        self.look_at.set(now + LOOK_EVERY);
        let told = self.signals.pending().map(Outcome::Signal);
        let stopped = || self.door.take_stop().then_some(Outcome::Stopped);
        let late = self.time_out_at.is_some_and(|at| at <= now);
        let outcome = told.or_else(stopped);
        self.outcome
            .set(outcome.or(late.then_some(Outcome::Timeout)));
        let after = self.tell_after.get();
        if now - self.begin < after {
            return None;
        }
        self.tell_after.set(2 * after);
        Some(step.to_string())
    }
}

impl Watch for LoadWatch<'_> {
    fn go_on(&self, step: Step) -> bool {
        if let Some(line) = self.look(Instant::now(), step) {
            tell(&line);
        }
        self.outcome.get().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::Work;
    use crate::vmm::control::{Command, door};
    use crate::vmm::supervisor::tests::signals;

    const STEP: Step = Step {
        work: Work::Read("kernel"),
        done: 0,
        total: None,
    };

    #[test]
    fn lines_come_ever_more_rarely() {
        let ((signals, _writers), (_client, door)) = (signals(), door().unwrap());
        let watch = LoadWatch::new(&signals, &door, None);
        let told = (0..=100).filter(|tenths| {
            let now = watch.begin + Duration::from_millis(100 * tenths);
            watch.look(now, STEP).is_some()
        });
        assert_eq!(told.collect::<Vec<_>>(), [20, 40, 80]);
        assert_eq!(watch.outcome(), None);
    }

    #[test]
    fn the_deadline_and_signals_end_it() {
        let ((signals, mut writers), (_client, door)) = (signals(), door().unwrap());
        let at = Instant::now() + Duration::from_secs(3600);
        let watch = LoadWatch::new(&signals, &door, Some(at));
        watch.look(at - Duration::from_nanos(1), STEP);
        assert_eq!(watch.outcome(), None);
        watch.look(at + LOOK_EVERY, STEP);
        assert_eq!(watch.outcome(), Some(Outcome::Timeout));
        assert!(!watch.go_on(STEP));

        for (signal, writer) in &mut writers {
            let watch = LoadWatch::new(&signals, &door, None);
            std::io::Write::write_all(writer, &[0]).unwrap();
            // The interval between two checks has not passed yet.
            watch.look(watch.begin, STEP);
            assert_eq!(watch.outcome(), None);
            watch.look(watch.begin + LOOK_EVERY, STEP);
            assert_eq!(watch.outcome(), Some(Outcome::Signal(*signal)));
        }
    }

    #[test]
    fn what_ended_it_stays_whoever_asks_again() {
        let ((signals, mut writers), (client, door)) = (signals(), door().unwrap());
        let stop = std::thread::spawn(move || client.command(Command::Stop));
        let at = Instant::now() + Duration::from_secs(3600);
        let watch = LoadWatch::new(&signals, &door, Some(at));
        while watch.go_on(STEP) {
            std::thread::yield_now();
        }
        stop.join().unwrap().unwrap();
        for (_, writer) in &mut writers {
            std::io::Write::write_all(writer, &[0]).unwrap();
        }
        for later in [LOOK_EVERY, Duration::from_secs(3600)] {
            watch.look(at + later, STEP);
            assert_eq!(watch.outcome(), Some(Outcome::Stopped));
            assert!(!watch.go_on(STEP));
        }
    }

    #[test]
    fn a_stop_ends_it_and_other_commands_wait() {
        let ((signals, _writers), (client, door)) = (signals(), door().unwrap());
        let clients = [Command::Describe, Command::Stop].map(|command| {
            let client = client.clone();
            std::thread::spawn(move || client.command(command))
        });
        let watch = LoadWatch::new(&signals, &door, None);
        while watch.go_on(STEP) {
            std::thread::yield_now();
        }
        assert_eq!(watch.outcome(), Some(Outcome::Stopped));
        drop(door);
        let [describe, stop] = clients.map(|client| client.join().unwrap());
        assert!(describe.is_err() && stop.is_ok());
    }
}
