// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a controller reaches a vCPU: the two flags of a kick, and the thread that gets the signal.

use std::sync::{Arc, PoisonError};

use crate::kick::{Kick, KickSignal};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard};
use crate::sys::signal::Tid;

/// Shared by a vCPU's thread and its controllers. See [`crate::kick`] for the protocol.
#[derive(Debug)]
pub(crate) struct Doorbell {
    /// There may be a request in the mailbox.
    rung: AtomicBool,
    target: Mutex<Target>,
}

#[derive(Debug)]
struct Target {
    kick: Arc<dyn Kick>,
    /// None while no thread runs the vCPU. A thread drains the mailbox before it enters the guest.
    thread: Option<Tid>,
}

impl Doorbell {
    pub(crate) fn new(kick: Arc<dyn Kick>) -> Self {
        Doorbell {
            rung: AtomicBool::new(false),
            target: Mutex::new(Target { kick, thread: None }),
        }
    }

    fn target(&self) -> MutexGuard<'_, Target> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the vCPU out of the guest. The request is already in its mailbox.
    pub(crate) fn ring(&self, signal: KickSignal) {
        self.rung.store(true, Ordering::Release);
        // The lock is held until the signal is sent, so that the thread is still alive.
        let target = self.target();
        target.kick.request_exit();
        if let Some(thread) = &target.thread {
            thread.kill(signal.number());
        }
    }

    /// Whether there may be a request. Checking it after each exit is one load of a cache line that only requests
    /// write.
    #[inline]
    pub(crate) fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Relaxed)
    }

    /// Resets the flag. The caller then drains the mailbox, which finds any request whose ring this cleared.
    pub(crate) fn silence(&self) {
        self.rung.swap(false, Ordering::AcqRel);
    }

    /// Sends later kicks to the vCPU that `kick` belongs to.
    ///
    /// Called by its thread outside the guest. A controller that kicked the old vCPU meanwhile had already enqueued its
    /// request, so the drain before the next entry finds it.
    pub(crate) fn redirect(&self, kick: Arc<dyn Kick>) {
        self.target().kick = kick;
    }

    /// Sends later signals to the calling thread.
    pub(crate) fn arrive(&self) {
        self.target().thread = Some(Tid::current());
    }

    fn leave(&self) {
        self.target().thread = None;
    }

    /// Whether a thread runs the vCPU.
    pub(crate) fn is_attended(&self) -> bool {
        self.target().thread.is_some()
    }
}

/// Removes the thread from the doorbell when dropped.
#[derive(Debug)]
pub(crate) struct Listener(pub(crate) Arc<Doorbell>);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.leave();
    }
}
