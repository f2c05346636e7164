// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMM's control of a balloon, and what the guest says.

use std::sync::{Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use super::stats::Stats;
use crate::bell::Bell;

/// `VIRTIO_BALLOON_CMD_ID_STOP`: no hints are wanted.
pub(super) const STOP: u32 = 0;
/// `VIRTIO_BALLOON_CMD_ID_DONE`: the driver may use what it hinted.
pub(super) const DONE: u32 = 1;

/// Controls a balloon, from any thread. It may be shared with later devices of the same machine, which keep the target
/// size and the interval.
///
/// A device that doesn't run obeys when it starts.
#[derive(Debug, Default)]
pub struct Control {
    pub(super) bell: Bell,
    state: Mutex<State>,
}

/// What both sides know.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The pages that the balloon should have.
    pub target: u32,
    /// The pages that it has, as the driver says.
    pub actual: u32,
    /// The seconds between two requests for statistics.
    pub interval: u32,
    /// A device runs, with hints.
    pub hints: bool,
    /// The command for the driver's hints.
    pub command: u32,
    /// The last command that the driver repeated.
    pub guest_command: Option<u32>,
    /// The last number of a round of hints.
    pub round: u32,
    /// A round of hints that the driver ended is also acknowledged.
    pub acknowledges: bool,
    pub stats: Stats,
}

/// Counts what a balloon does, for any thread.
#[derive(Debug, Default)]
pub struct Counters(Mutex<Counts>);

impl Counters {
    /// The counts since the device was created.
    pub fn get(&self) -> Counts {
        *self.counts()
    }

    pub(super) fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a balloon did since it was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that gave pages to the balloon.
    pub inflations: u64,
    /// Requests that took pages from it.
    pub deflations: u64,
    /// Bytes of the balloon's that went back to the host.
    pub inflated: u64,
    /// Statistics that the driver sent.
    pub stats: u64,
    /// Those of them that could not be read as a whole.
    pub bad_stats: u64,
    /// Requests that reported free pages.
    pub reports: u64,
    /// Bytes of them that went back to the host.
    pub reported: u64,
    /// Requests that hinted at free pages.
    pub hints: u64,
    /// Bytes of them that went back to the host.
    pub hinted: u64,
    /// Requests that were partly or wholly ignored: pages outside of memory, or too many, or no pages at all.
    pub bad_inflations: u64,
    /// Reports that were partly or wholly ignored.
    pub bad_reports: u64,
    /// Hints that were partly or wholly ignored.
    pub bad_hints: u64,
}

/// How far a round of hints is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hinting {
    /// The device's last command: 0 wants no hints, 1 ends a round, others are a round's number.
    pub host_command: u32,
    /// The driver's last one: 0 ended a round, others are the number of its round.
    pub guest_command: Option<u32>,
}

/// Why no round of hints starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the guest's balloon driver does not run, or gives no hints")]
pub struct HintError;

impl Control {
    /// Begins with a balloon that should have `target` pages of 4 KiB, and with `interval` seconds between two requests for
    /// statistics.
    pub fn new(target: u32, interval: u32) -> Self {
        let state = State {
            target,
            interval,
            ..State::default()
        };
        Control {
            bell: Bell::default(),
            state: Mutex::new(state),
        }
    }

    /// Asks the driver to make the balloon this large, in pages of 4 KiB. It does so as fast as it can.
    pub fn set_target(&self, pages: u32) {
        self.state().target = pages;
        self.bell.ring();
    }

    /// The pages of 4 KiB that the balloon should have.
    pub fn target(&self) -> u32 {
        self.state().target
    }

    /// The pages of 4 KiB that it has, as the driver says.
    pub fn actual(&self) -> u32 {
        self.state().actual
    }

    /// Sets the seconds between two requests for statistics; 0 asks no more. The first request comes at once.
    pub fn set_interval(&self, seconds: u32) {
        self.state().interval = seconds;
        self.bell.ring();
    }

    /// The seconds between two requests for statistics.
    pub fn interval(&self) -> u32 {
        self.state().interval
    }

    /// The guest's last statistics.
    pub fn stats(&self) -> Stats {
        self.state().stats
    }

    /// Starts a round of hints: the driver gives free pages, which go back to the host. It keeps them until the round is
    /// ended by [`stop_hinting`](Self::stop_hinting), or, with `acknowledge`, as soon as it has no more.
    ///
    /// A driver may use a page again before the device has taken it from the queue (5.5.6.5.1). What it then writes there
    /// can be lost. Linux does so only when its memory is short.
    ///
    /// # Errors
    /// [`HintError`]: nobody would give hints.
    pub fn start_hinting(&self, acknowledge: bool) -> Result<(), HintError> {
        let mut state = self.state();
        if !state.hints {
            return Err(HintError);
        }
        state.round = state.round.wrapping_add(1).max(DONE + 1);
        state.command = state.round;
        state.acknowledges = acknowledge;
        drop(state);
        self.bell.ring();
        Ok(())
    }

    /// Ends a round of hints: the driver may use the pages. Does nothing if there was none.
    pub fn stop_hinting(&self) {
        let mut state = self.state();
        if state.command != STOP {
            state.command = DONE;
        }
        drop(state);
        self.bell.ring();
    }

    /// How far a round of hints is.
    pub fn hinting(&self) -> Hinting {
        let state = self.state();
        Hinting {
            host_command: state.command,
            guest_command: state.guest_command,
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Forgets what a driver said.
    pub(super) fn forget_driver(&mut self) {
        self.actual = 0;
        self.hints = false;
        self.command = STOP;
        self.guest_command = None;
        self.stats = Stats::default();
    }
}
