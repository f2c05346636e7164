// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A timer of the host, as an event source.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// Ends one wait at a time.
#[derive(Debug)]
pub(crate) struct Timer {
    file: OwnedFd,
    armed: bool,
}

impl Timer {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let file = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Timer { file, armed: false })
    }

    /// Becomes readable when the wait ends.
    pub(crate) fn source(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Starts a wait, unless there is one.
    #[cfg(feature = "rate")]
    pub(crate) fn arm(&mut self, wait: Duration) -> io::Result<()> {
        if self.armed {
            return Ok(());
        }
        self.set(wait)
    }

    /// Starts a wait, instead of another one if there is one.
    pub(crate) fn set(&mut self, wait: Duration) -> io::Result<()> {
        let value = Timespec::try_from(wait.max(Duration::from_nanos(1)));
        let spec = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: value.map_err(|_| io::ErrorKind::InvalidInput)?,
        };
        timerfd_settime(&self.file, TimerfdTimerFlags::empty(), &spec)?;
        self.armed = true;
        Ok(())
    }

    /// Clears the source after it was readable.
    pub(crate) fn rest(&mut self) {
        let _ = rustix::io::read(&self.file, &mut [0; 8]);
        self.armed = false;
    }
}
