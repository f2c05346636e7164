// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The state of a device's links, as the driver and the VMM see it.

use std::fmt;
use std::io;

use virtio_transport::device::Io;

use super::link::LinkError;
use super::report::{Notice, Report};

/// The state of the links. Those of a device belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Up,
    /// Until a link is writable.
    Down,
    /// For good.
    Lost,
}

/// The state of the links, and who is told of it.
pub(super) struct Status {
    state: State,
    report: Report,
    has_told_refused: bool,
}

impl Status {
    pub(super) const fn new(report: Report) -> Self {
        Status {
            state: State::Up,
            report,
            has_told_refused: false,
        }
    }

    pub(super) const fn state(&self) -> State {
        self.state
    }

    pub(super) fn is_up(&self) -> bool {
        self.state == State::Up
    }

    fn set(&mut self, io: &mut Io<'_>, state: State, notice: Notice) {
        if self.state != State::Lost && self.state != state {
            self.state = state;
            io.config_changed();
            (self.report)(notice);
        }
    }

    /// The limits can't be changed.
    pub(super) fn unlimited(&mut self, error: io::Error) {
        (self.report)(Notice::Unlimited(error));
    }

    /// A link that was down is up again.
    pub(super) fn restore(&mut self, io: &mut Io<'_>) {
        self.set(io, State::Up, Notice::Up);
    }

    /// A link failed.
    pub(super) fn fail(&mut self, io: &mut Io<'_>, error: LinkError) {
        match error {
            LinkError::Busy => {}
            LinkError::Refused(error) => {
                if !std::mem::replace(&mut self.has_told_refused, true) {
                    (self.report)(Notice::Refused(error));
                }
            }
            LinkError::Down(error) => self.set(io, State::Down, Notice::Down(error)),
            LinkError::Lost(error) => self.set(io, State::Lost, Notice::Lost(error)),
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state.fmt(f)
    }
}
