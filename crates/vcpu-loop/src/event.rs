// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Events from vCPUs to the VMM: a channel and one eventfd, for an event loop.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::exit::{DebugExit, SystemEvent};
use crate::report::FailureReport;
use crate::vcpu::VcpuId;

/// Something that happened to a vCPU without a request from the VMM.
///
/// After each of these, the vCPU runs no guest code until a request lets it, so a guest can't flood the channel.
/// A vCPU that is "paused by itself" can't be resumed before [`VcpuSet::acknowledge`](crate::VcpuSet::acknowledge).
#[derive(Debug)]
#[non_exhaustive]
pub enum VcpuEvent {
    /// `hlt` without an in-kernel interrupt controller: the vCPU waits for
    /// [`VcpuSet::wake`](crate::VcpuSet::wake).
    Halted {
        /// Which vCPU.
        id: VcpuId,
    },
    /// A device answered [`Next::Pause`](crate::Next::Pause): the access is complete and the vCPU
    /// paused by itself.
    Paused {
        /// Which vCPU.
        id: VcpuId,
    },
    /// A breakpoint or single step; the vCPU is paused by itself.
    Debug {
        /// Which vCPU.
        id: VcpuId,
        /// Where and why.
        debug: DebugExit,
    },
    /// The dirty ring is full; the vCPU is paused by itself.
    DirtyRingFull {
        /// Which vCPU.
        id: VcpuId,
    },
    /// The guest asked for a system-wide state change; the vCPU has ended.
    SystemEvent {
        /// Which vCPU.
        id: VcpuId,
        /// What it asked for.
        event: SystemEvent,
    },
    /// Triple fault; the vCPU has ended.
    Shutdown {
        /// The same report as for a failure.
        report: Box<FailureReport>,
    },
    /// The vCPU failed.
    Fatal {
        /// Why, with registers and last exits.
        report: Box<FailureReport>,
    },
}

impl VcpuEvent {
    /// The vCPU that sent it.
    pub fn id(&self) -> VcpuId {
        match self {
            VcpuEvent::Halted { id }
            | VcpuEvent::Paused { id }
            | VcpuEvent::Debug { id, .. }
            | VcpuEvent::DirtyRingFull { id }
            | VcpuEvent::SystemEvent { id, .. } => *id,
            VcpuEvent::Shutdown { report } | VcpuEvent::Fatal { report } => report.id,
        }
    }
}

/// The vCPUs' end of the channel: cheap to clone, one per thread.
#[derive(Clone)]
pub struct VcpuEventSender {
    queue: Sender<VcpuEvent>,
    ready: Arc<EventFd>,
}

impl fmt::Debug for VcpuEventSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuEventSender").finish_non_exhaustive()
    }
}

impl VcpuEventSender {
    /// Queues an event, then makes the eventfd readable. Never blocks; without a receiver the event is
    /// logged and dropped.
    pub fn send(&self, event: VcpuEvent) {
        if let Err(lost) = self.queue.send(event) {
            log::error!("the receiver of vCPU events is gone, dropping {:?}", lost.0);
            return;
        }
        // EAGAIN means that the counter is full, so the descriptor is readable already.
        match self.ready.write(1) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                log::error!("can't signal a vCPU event: {error}");
            }
            _ => {}
        }
    }
}

/// The VMM's end of the channel. Its descriptor (`AsRawFd`) is readable while events may be queued.
#[derive(Debug)]
pub struct VcpuEvents {
    queue: Receiver<VcpuEvent>,
    ready: Arc<EventFd>,
}

impl AsRawFd for VcpuEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.ready.as_raw_fd()
    }
}

impl VcpuEvents {
    /// The next event, if there is one. Doesn't block, and doesn't clear the descriptor.
    pub fn try_recv(&self) -> Option<VcpuEvent> {
        self.queue.try_recv().ok()
    }

    /// The next event, waiting up to `timeout` for it: for a VMM without an event loop.
    pub fn recv_timeout(&self, timeout: std::time::Duration) -> Option<VcpuEvent> {
        self.queue.recv_timeout(timeout).ok()
    }

    /// Clears the descriptor, then calls `handle` for every queued event.
    ///
    /// In this order, an event that is queued meanwhile makes the descriptor readable again. If `handle` panics, the
    /// remaining events stay in the queue, and the descriptor becomes readable again.
    pub fn drain(&self, mut handle: impl FnMut(VcpuEvent)) {
        let _ = self.ready.read();
        let mut rest = Rest {
            ready: &self.ready,
            seen_empty: false,
        };
        while let Some(event) = self.try_recv() {
            handle(event);
        }
        rest.seen_empty = true;
    }
}

/// Makes the descriptor readable again unless the queue was seen empty.
struct Rest<'a> {
    ready: &'a EventFd,
    seen_empty: bool,
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        if !self.seen_empty {
            // An error means that the counter is full, so the descriptor is readable.
            let _ = self.ready.write(1);
        }
    }
}

/// A channel for vCPU events with one eventfd.
///
/// # Errors
/// No eventfd could be created.
pub fn vcpu_events() -> io::Result<(VcpuEventSender, VcpuEvents)> {
    let ready = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    let (sender, receiver) = channel();
    let sender = VcpuEventSender {
        queue: sender,
        ready: Arc::clone(&ready),
    };
    Ok((
        sender,
        VcpuEvents {
            queue: receiver,
            ready,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_after_a_panic_are_not_stranded() {
        let (sender, events) = vcpu_events().unwrap();
        for id in 0..3 {
            sender.send(VcpuEvent::Halted { id: VcpuId(id) });
        }
        let panic =
            std::panic::AssertUnwindSafe(|| events.drain(|event| assert_ne!(event.id().0, 1)));
        assert!(std::panic::catch_unwind(panic).is_err());
        // Readable again: this read would fail otherwise.
        assert_eq!(events.ready.read().unwrap(), 1);
        let mut rest = Vec::new();
        events.drain(|event| rest.push(event.id().0));
        assert_eq!(rest, [2]);
        assert!(events.ready.read().is_err());
    }

    #[test]
    fn a_sender_without_receiver_does_not_fail() {
        let (sender, events) = vcpu_events().unwrap();
        drop(events);
        sender.send(VcpuEvent::Halted { id: VcpuId(0) });
    }
}
