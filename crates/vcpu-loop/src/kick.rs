// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Taking a vCPU out of the guest, without ever losing a request.
//!
//! # The protocol
//!
//! The controller, for every request:
//!
//! 1. *enqueue*: puts the request into the vCPU's mailbox;
//! 2. *flag*: `immediate_exit.store(1, Release)` ([`Kick::request_exit`]);
//! 3. *signal*: sends the kick signal to the vCPU's thread, whose handler does nothing.
//!
//! Between 1 and 2 it also *rings*: sets a flag of this process that the thread reads after each exit. That flag
//! makes no request arrive; it bounds how many exits one instruction may make before it does. From then on the
//! thread only [completes](crate::Vcpu::complete), as it does when a device asks for a pause.
//!
//! The vCPU's thread, when `KVM_RUN` returns `EINTR` (and only then):
//!
//! 1. *clear*: `immediate_exit.swap(0, AcqRel)`, inside [`Vcpu::run`](crate::Vcpu::run), before it
//!    returns [`Exit::Interrupted`](crate::Exit::Interrupted);
//! 2. *drain*: takes every request out of the mailbox.
//!
//! # Why no request is lost
//!
//! "Lost" would mean: the request is in the mailbox, and the guest runs on. Take the thread's next drain
//! after the enqueue; it has to come soon. The flag is stored at one of these moments:
//!
//! - **Before the thread calls `KVM_RUN`** (it answers an exit, or is on its way in). Nobody clears the
//!   flag outside *clear*, so KVM reads 1 on entry, completes the pending access, and returns `EINTR`
//!   without running the guest. The signal may come early, in user space, where its handler does
//!   nothing; the flag alone is enough. A signal without the flag is lost exactly here.
//! - **After KVM has read the flag, before the guest runs.** The signal follows the store, so it is
//!   pending or still to come. KVM looks for pending signals with interrupts off right before the entry,
//!   and a later one interrupts the guest. `EINTR`. A flag without the signal is lost exactly here.
//! - **While the guest runs.** The signal interrupts the physical CPU, KVM sees it pending: `EINTR`.
//! - **After the guest exited for another reason, before the thread calls `KVM_RUN` again.** The first
//!   case. A signal that arrived just before the exit is handled on the way out, or turned the exit into
//!   `EINTR`; the flag stays 1 either way.
//! - **Between `EINTR` and *clear*.** The enqueue came before the store, and the swap reads that store
//!   (AcqRel with Release), so this round's drain sees the request.
//! - **Between *clear* and *drain*, or after.** If the drain takes the request already, the flag stays 1
//!   and the next `KVM_RUN` returns `EINTR` at once: one spurious round, nothing to drain, harmless. If the
//!   drain missed it, the flag is 1 as well, the first case, and the next round's drain takes it.
//! - **While the thread waits on its mailbox** (paused, halted), or obeys another request. The enqueue wakes
//!   it, and it drains before it enters the guest. The flag may stay 1, which costs one spurious round.
//!
//! [`Vcpu::complete`](crate::Vcpu::complete) stores 1 itself, so it may swallow a kick's flag in its own
//! *clear*, whoever calls it: the loop before a pause, or a vCPU that abandons a pending access. Therefore the
//! rule that makes the argument above hold is: **between any *clear* and the next entry lies a *drain* that finds
//! the mailbox empty.** The thread drains after every stay in the guest, and after every request that it obeyed
//! while it waited.
//!
//! The caller's code may put another vCPU in the place of the one that it is given, and the other one has its own flag.
//! So after such code, and before that drain, the thread points kicks at the vCPU that it now has. Whoever raised the
//! old flag had enqueued its request before, so the drain finds it.
//!
//! `tests/model.rs` tries this under every interleaving that [loom](https://docs.rs/loom) makes of it.
//!
//! The thread blocks only on its mailbox and in `KVM_RUN`. What a device does meanwhile is its own
//! affair: the deadline of [`VcpuSet`](crate::VcpuSet) turns a device that hangs into an error that names
//! the vCPU.

use std::io;

use vmm_sys_util::signal::{SIGRTMAX, SIGRTMIN, block_signal, get_blocked_signals, unblock_signal};

use crate::error::Error;
use crate::sys::signal::{self, Installed};

/// The flag half of a kick: makes the next entry of the vCPU return at once.
///
/// Implementations must be callable from any thread at any time, also after the vCPU is gone.
pub trait Kick: Send + Sync + std::fmt::Debug {
    /// Stores the flag with release ordering. The caller sends the signal afterwards.
    fn request_exit(&self);
}

/// A real-time signal that takes vCPU threads out of `KVM_RUN`.
///
/// A program that uses real-time signals itself (so do some language run-times and profilers) chooses one that
/// nobody else has. A [`VcpuSet`](crate::VcpuSet) overwrites no handler of somebody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KickSignal(i32);

impl Default for KickSignal {
    /// `SIGRTMIN`.
    fn default() -> Self {
        KickSignal(SIGRTMIN())
    }
}

impl KickSignal {
    /// `SIGRTMIN + offset`; `None` if there is no such real-time signal.
    pub fn real_time(offset: u8) -> Option<Self> {
        let number = SIGRTMIN() + i32::from(offset);
        (number <= SIGRTMAX()).then_some(KickSignal(number))
    }

    /// The signal's number, for a seccomp filter or a mask.
    pub fn number(self) -> i32 {
        self.0
    }

    /// Installs the handler that does nothing, unless somebody else has one there. A [`VcpuSet`](crate::VcpuSet) does
    /// it; call it to interrupt threads of other kinds by the same signal. Without `SA_RESTART`, so that their system
    /// calls return `EINTR`.
    ///
    /// # Errors
    /// [`Error::SignalTaken`], or [`Error::Signal`] with what the host said.
    pub fn install(self) -> Result<(), Error> {
        match signal::install(self.0) {
            Ok(Installed::Ours) => Ok(()),
            Ok(Installed::Taken) => Err(Error::SignalTaken { signal: self.0 }),
            Err(source) => Err(Error::Signal {
                signal: self.0,
                source,
            }),
        }
    }

    /// Whether this thread blocks the signal. If the host doesn't say, it doesn't.
    pub(crate) fn is_blocked(self) -> bool {
        get_blocked_signals().is_ok_and(|blocked| blocked.contains(&self.0))
    }

    /// Blocks the signal for this thread again.
    pub(crate) fn block(self) {
        if let Err(error) = block_signal(self.0) {
            log::error!("can't block signal {} again: {error}", self.0);
        }
    }

    /// Unblocks the signal for this thread: masks are inherited, and VMMs block signals for signalfd.
    pub(crate) fn unblock(self) -> io::Result<()> {
        unblock_signal(self.0).map_err(|e| io::Error::other(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_stay_in_the_real_time_range() {
        assert_eq!(KickSignal::real_time(0), Some(KickSignal::default()));
        assert_eq!(KickSignal::real_time(255), None);
        assert!(KickSignal::default().number() >= 32);
    }
}
