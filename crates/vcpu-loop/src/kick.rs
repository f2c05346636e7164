// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How to take a vCPU out of the guest without ever losing a request.
//!
//! # The protocol
//!
//! The controller, for every request:
//!
//! 1. *enqueue*: puts the request into the vCPU's mailbox;
//! 2. *flag*: `immediate_exit.store(1, Release)` ([`Kick::request_exit`]);
//! 3. *signal*: sends the kick signal, whose handler does nothing, to the vCPU's thread.
//!
//! Between 1 and 2 it also *rings*: it sets a flag in this process that the thread reads after each exit. Requests
//! arrive without this flag. It only bounds how many exits one instruction can make before the request is obeyed: once
//! it is set, the thread only [completes](crate::Vcpu::complete) the access, as it does when a device asks for a pause.
//!
//! The vCPU's thread, only when `KVM_RUN` returns `EINTR`:
//!
//! 1. *clear*: `immediate_exit.swap(0, AcqRel)`, inside [`Vcpu::run`](crate::Vcpu::run), before it
//!    returns [`Exit::Interrupted`](crate::Exit::Interrupted);
//! 2. *drain*: takes every request out of the mailbox.
//!
//! # Why no request is lost
//!
//! A request would be lost if it stayed in the mailbox while the guest ran on. So after each enqueue, the thread must
//! drain soon. The flag is stored at one of these moments:
//!
//! - **Before the thread calls `KVM_RUN`** (it answers an exit, or is about to enter). Only *clear* clears the
//!   flag, so KVM reads 1 on entry, completes the pending access, and returns `EINTR` without running the guest.
//!   The signal may arrive early, in user space, where its handler does nothing; the flag alone is enough. A signal
//!   without the flag would be lost exactly here.
//! - **After KVM has read the flag, before the guest runs.** The signal is sent after the store, so it is pending or
//!   arrives later. KVM checks for pending signals with interrupts off right before the entry, and a later one
//!   interrupts the guest: `EINTR`. A flag without the signal would be lost exactly here.
//! - **While the guest runs.** The signal interrupts the physical CPU, and KVM sees it pending: `EINTR`.
//! - **After the guest exited for another reason, before the thread calls `KVM_RUN` again.** This is the first
//!   case. A signal that arrived just before the exit is handled on return to user space, or turned the exit into
//!   `EINTR`; the flag stays 1 either way.
//! - **Between `EINTR` and *clear*.** The enqueue came before the store, and the swap reads that store
//!   (AcqRel with Release), so this round's drain sees the request.
//! - **Between *clear* and *drain*, or after.** If the drain already takes the request, the flag stays 1 and the next
//!   `KVM_RUN` returns `EINTR` at once: a spurious round with nothing to drain. If the drain misses it, the flag is
//!   also 1, which is the first case, and the next round's drain takes it.
//! - **While the thread waits on its mailbox** (paused, halted), or obeys another request. The enqueue wakes
//!   it, and it drains before it enters the guest. The flag may stay 1, which costs one spurious round.
//!
//! [`Vcpu::complete`](crate::Vcpu::complete) stores 1 itself, so its *clear* may also clear a kick's flag. This happens
//! before a pause, and when a vCPU abandons a pending access. So the argument above needs a rule: **between any *clear*
//! and the next entry, a *drain* finds the mailbox empty.** The thread drains after every stay in the guest, and after
//! every request that it obeyed while it waited.
//!
//! The caller's code may replace the vCPU that it is given, and the new vCPU has its own flag. So after such code, and
//! before that drain, the thread redirects kicks to the vCPU that it now has. A controller that set the old flag had
//! enqueued its request before, so the drain finds it.
//!
//! `tests/model.rs` tests this under every interleaving that [loom](https://docs.rs/loom) generates.
//!
//! The loop blocks only on its mailbox and in `KVM_RUN`. A device that hangs delays it, and the controller gets an
//! error that names the vCPU, by the deadline of [`VcpuSet`](crate::VcpuSet).

use std::io;

use vmm_sys_util::signal::{SIGRTMAX, SIGRTMIN, block_signal, get_blocked_signals, unblock_signal};

use crate::error::Error;
use crate::sys::signal::{self, Installed};

/// The flag half of a kick: makes the next entry of the vCPU return at once.
///
/// It must be callable from any thread at any time, even after the vCPU is dropped.
pub trait Kick: Send + Sync + std::fmt::Debug {
    /// Stores the flag with release ordering. The caller sends the signal afterwards.
    fn request_exit(&self);
}

/// A real-time signal that takes vCPU threads out of `KVM_RUN`.
///
/// If the program already uses real-time signals (as some language run-times and profilers do), choose one that is
/// unused. A [`VcpuSet`](crate::VcpuSet) never replaces another handler.
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

    /// Installs a handler that does nothing, unless the signal has another one. A [`VcpuSet`](crate::VcpuSet) does this
    /// itself; call it to interrupt other threads with the same signal. The handler has no `SA_RESTART`, so that
    /// blocking system calls return `EINTR`.
    ///
    /// # Errors
    /// [`Error::SignalTaken`], or [`Error::Signal`] with the host's error.
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

    /// Whether this thread blocks the signal. `false` if the host can't tell.
    pub(crate) fn is_blocked(self) -> bool {
        get_blocked_signals().is_ok_and(|blocked| blocked.contains(&self.0))
    }

    /// Blocks the signal for this thread again.
    pub(crate) fn block(self) {
        if let Err(error) = block_signal(self.0) {
            log::error!("can't block signal {} again: {error}", self.0);
        }
    }

    /// Unblocks the signal for this thread: threads inherit masks, and VMMs block signals for signalfd.
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
