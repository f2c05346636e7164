// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMM's control of a running network.

use std::io;
use std::sync::{Mutex, PoisonError};

use virtio_transport::device::Io;

use super::pair::READABLE;
use crate::bell::Bell;
use crate::rate::{Limiter, Limits};

/// Changes a network's limits, from any thread. It may be shared with later devices of the same network.
///
/// A device that doesn't run obeys when it starts.
#[derive(Debug)]
pub struct Control {
    pub(super) bell: Bell,
    /// Of what the guest receives, and of what it sends.
    limits: Mutex<[Limits; 2]>,
}

impl Control {
    /// Begins with these limits of what the guest receives and sends.
    pub fn new(rx: Limits, tx: Limits) -> Self {
        Control {
            bell: Bell::default(),
            limits: Mutex::new([rx, tx]),
        }
    }

    /// Changes the limits of what the guest receives and sends. Frames that wait for one that changes wait no longer.
    pub fn limit(&self, rx: Limits, tx: Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = [rx, tx];
        self.bell.ring();
    }

    pub(super) fn limits(&self) -> [Limits; 2] {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The limiter of one direction.
#[derive(Debug, Default)]
pub(super) struct Limited {
    limits: Limits,
    pub(super) limiter: Option<Limiter>,
}

impl Limited {
    pub(super) fn of(limiter: Option<Limiter>) -> Self {
        Limited {
            limits: Limits::default(),
            limiter,
        }
    }

    /// Makes the limiter, or changes it. It is watched, if the device runs.
    pub(super) fn set(
        &mut self,
        io: &mut Io<'_>,
        limits: Limits,
        token: u32,
        runs: bool,
    ) -> io::Result<()> {
        let is_new = std::mem::replace(&mut self.limits, limits) != limits;
        let was_watched = runs && self.limiter.is_some();
        match &mut self.limiter {
            Some(limiter) if is_new => limiter.set(limits),
            Some(_) => {}
            None => self.limiter = Limiter::new(limits)?,
        }
        if let Some(limiter) = &self.limiter
            && !was_watched
            && let Err(error) = io.watch(limiter.source(), token, READABLE)
        {
            // Nobody would end its waits.
            self.limiter = None;
            return Err(error);
        }
        Ok(())
    }

    pub(super) fn unwatch(&self, io: &mut Io<'_>, token: u32) {
        if let Some(limiter) = &self.limiter {
            let _ = io.unwatch(limiter.source(), token);
        }
    }

    /// Ends a wait.
    pub(super) fn rest(&mut self) {
        self.limiter.iter_mut().for_each(Limiter::rest);
    }
}
