// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A link that keeps the frames for the metadata service from the network, and brings its answers.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use virtio_models::net::{Frame, HEADER, Link, LinkError, Offloads, Room};

use crate::mmds::{HEAD, Stack, is_for};
use crate::sync::lock;

/// The service's end of a device, which all pairs of queues share.
pub(super) struct Shared {
    stack: Mutex<Stack>,
    /// That of the first pair, which is never switched off.
    first: OnceLock<Arc<Alarm>>,
}

impl Shared {
    pub(super) fn new(stack: Stack) -> Arc<Self> {
        Arc::new(Shared {
            stack: Mutex::new(stack),
            first: OnceLock::new(),
        })
    }
}

/// Wakes a pair of queues for a frame of the service.
struct Alarm {
    /// Readable when the service has a frame.
    timer: OwnedFd,
    /// Whether it may have one at some time.
    is_waiting: AtomicBool,
}

impl Alarm {
    fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Alarm {
            timer: timerfd_create(TimerfdClockId::Monotonic, flags)?,
            is_waiting: AtomicBool::new(false),
        })
    }

    /// Sets the timer for the service's next frame. That also clears it.
    fn set(&self, at: Option<Instant>, now: Instant) -> Result<(), LinkError> {
        const NONE: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // Zero would mean never.
        let wait = |at: Instant| {
            let left = at.saturating_duration_since(now);
            Timespec::try_from(left.max(Duration::from_nanos(1))).unwrap_or(NONE)
        };
        let times = Itimerspec {
            it_interval: NONE,
            it_value: at.map_or(NONE, wait),
        };
        self.is_waiting.store(at.is_some(), Ordering::Relaxed);
        let set = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &times);
        set.map(drop)
            .map_err(|errno| LinkError::Refused(errno.into()))
    }
}

/// The link of a pair of queues, with the service.
pub(super) struct WithMmds<L> {
    link: L,
    pair: usize,
    address: Ipv4Addr,
    shared: Arc<Shared>,
    alarm: Arc<Alarm>,
    frame: Vec<u8>,
}

impl<L: Link> WithMmds<L> {
    pub(super) fn new(link: L, pair: usize, shared: Arc<Shared>) -> io::Result<Self> {
        let address = lock(&shared.stack).address();
        let alarm = Arc::new(Alarm::new()?);
        if pair == 0 {
            let _ = shared.first.set(Arc::clone(&alarm));
        }
        Ok(WithMmds {
            link,
            pair,
            address,
            shared,
            alarm,
            frame: Vec::new(),
        })
    }

    /// Moves what is under way to the first pair.
    fn move_away(&self) -> Result<(), LinkError> {
        let now = Instant::now();
        let mut stack = lock(&self.shared.stack);
        let has_moved = stack.move_to_first(self.pair);
        let at = stack.wake_at(0, now);
        drop(stack);
        match self.shared.first.get() {
            Some(first) if has_moved => first.set(at, now),
            _ => Ok(()),
        }
    }

    /// The service's next frame, if there is one now.
    fn next(&mut self) -> Result<bool, LinkError> {
        if !self.alarm.is_waiting.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let now = Instant::now();
        let mut stack = lock(&self.shared.stack);
        if stack.next(self.pair, now, &mut self.frame) {
            return Ok(true);
        }
        let at = stack.wake_at(self.pair, now);
        drop(stack);
        self.alarm.set(at, now)?;
        Ok(false)
    }
}

impl<L: Link> Link for WithMmds<L> {
    fn source(&self) -> BorrowedFd<'_> {
        self.link.source()
    }

    fn alarm(&self) -> Option<BorrowedFd<'_>> {
        Some(self.alarm.timer.as_fd())
    }

    fn has_headers(&self) -> bool {
        self.link.has_headers()
    }

    fn configure(&mut self, offloads: Offloads) -> Result<(), LinkError> {
        self.link.configure(offloads)
    }

    fn forget(&mut self) {
        lock(&self.shared.stack).clear();
        self.link.forget();
    }

    fn set_active(&mut self, active: bool) -> Result<(), LinkError> {
        if !active {
            self.move_away()?;
        }
        self.link.set_active(active)
    }

    /// The header of a frame for the service has no effect: an incomplete checksum is not looked at, and a segment that
    /// the driver leaves to be cut is taken whole.
    fn send(&mut self, frame: &mut Frame<'_>) -> Result<(), LinkError> {
        let mut head = [0; HEAD];
        let len = frame.copy_to(0, &mut head);
        if !is_for(&head[..len], self.address) {
            return self.link.send(frame);
        }
        self.frame.resize(frame.len(), 0);
        let len = frame.copy_to(0, &mut self.frame);
        let now = Instant::now();
        let mut stack = lock(&self.shared.stack);
        // The guest may have changed it since the first look.
        if is_for(&self.frame[..len], self.address) {
            stack.take(&self.frame[..len], self.pair, now);
        }
        let at = stack.wake_at(self.pair, now);
        drop(stack);
        self.alarm.set(at, now)
    }

    fn flush(&mut self) -> Result<(), LinkError> {
        self.link.flush()
    }

    fn receive(&mut self, room: Room<'_>) -> Result<usize, LinkError> {
        match self.next()? {
            true => room
                .fill([0; HEADER], &self.frame)
                .map_err(LinkError::Refused),
            false => self.link.receive(room),
        }
    }
}

#[cfg(test)]
mod tests;
