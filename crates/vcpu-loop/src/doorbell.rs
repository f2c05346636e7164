// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a controller reaches a vCPU: the flags of a request, and the thread that gets the signal.

use std::sync::{Arc, PoisonError};

use crate::kick::{Kick, KickSignal};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard};
use crate::sys::signal::Tid;

/// Shared by a vCPU's thread and its controllers. See [`crate::kick`] for what happens in which order.
#[derive(Debug)]
pub(crate) struct Doorbell {
    /// There is a request in the mailbox, or was one just now.
    rung: AtomicBool,
    target: Mutex<Target>,
}

#[derive(Debug)]
struct Target {
    kick: Arc<dyn Kick>,
    /// None while no thread listens. One that begins to looks at the mailbox before it enters the guest.
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

    /// Takes the vCPU out of the guest. The request is in its mailbox already.
    pub(crate) fn ring(&self, signal: KickSignal) {
        self.rung.store(true, Ordering::Release);
        // Held until the signal is sent, so that the thread is alive then.
        let target = self.target();
        target.kick.request_exit();
        if let Some(thread) = &target.thread {
            thread.kill(signal.number());
        }
    }

    /// Whether there may be a request. A look after each exit costs one load of a line that nobody writes.
    #[inline]
    pub(crate) fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Relaxed)
    }

    /// Before the mailbox is drained: a request whose ring this takes back is seen by the drain.
    pub(crate) fn silence(&self) {
        self.rung.swap(false, Ordering::AcqRel);
    }

    /// From now on kicks go to the vCPU that `kick` belongs to.
    ///
    /// Called by its thread outside of the guest. Who rang the old vCPU meanwhile enqueued its request before
    /// that, so the drain that comes before the next entry finds it.
    pub(crate) fn redirect(&self, kick: Arc<dyn Kick>) {
        self.target().kick = kick;
    }

    /// The calling thread gets the signals.
    pub(crate) fn arrive(&self) {
        self.target().thread = Some(Tid::current());
    }

    fn leave(&self) {
        self.target().thread = None;
    }

    /// Whether a thread has the vCPU just now.
    pub(crate) fn is_attended(&self) -> bool {
        self.target().thread.is_some()
    }
}

/// Says that nobody listens any more, when it is dropped.
#[derive(Debug)]
pub(crate) struct Listener(pub(crate) Arc<Doorbell>);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.leave();
    }
}
