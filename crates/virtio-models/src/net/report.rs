// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A network device's messages to the VMM, and its counters.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

/// A message that a VMM may want to log.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Notice {
    /// The link went down. Reported once, until it is up again.
    #[error("the network link is down ({0}): frames of the guest are dropped until it is up again")]
    Down(#[source] io::Error),
    /// The link is up again.
    #[error("the network link is up again")]
    Up,
    /// The link is lost. Reported once.
    #[error(
        "the network link is lost ({0}): the guest has no network from now on; restart the machine to have it again"
    )]
    Lost(#[source] io::Error),
    /// The host refuses frames of the guest. Reported once.
    #[error("the host refused a frame of the guest: {0}; such frames are dropped")]
    Refused(#[source] io::Error),
    /// The VMM asked for other limits, and the host can't keep them.
    #[error("the network's limits can't be changed ({0}); raise the limit on open files")]
    Unlimited(#[source] io::Error),
}

/// Receives a network device's notices. Called on the device's thread.
pub type Report = Box<dyn FnMut(Notice) + Send>;

/// A device's counters, for any thread. They count from the device's creation.
#[derive(Debug, Default)]
pub struct Counters {
    pub(super) received: Count,
    pub(super) sent: Count,
}

/// The counters of a direction.
#[derive(Debug, Default)]
pub(super) struct Count {
    frames: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Count {
    /// Counts a frame of this many bytes. Called by one thread only.
    pub(super) fn frame(&self, bytes: usize) {
        add(&self.frames, 1);
        add(&self.bytes, bytes as u64);
    }

    /// Counts a frame that was dropped. Called by one thread only.
    pub(super) fn dropped(&self) {
        add(&self.dropped, 1);
    }
}

/// With a single writer, no locked operation is necessary.
fn add(counter: &AtomicU64, more: u64) {
    let count = counter.load(Ordering::Relaxed);
    counter.store(count.wrapping_add(more), Ordering::Relaxed);
}

impl Counters {
    /// The frames that the guest received.
    pub fn received(&self) -> u64 {
        self.received.frames.load(Ordering::Relaxed)
    }

    /// Their bytes, without virtio's header.
    pub fn received_bytes(&self) -> u64 {
        self.received.bytes.load(Ordering::Relaxed)
    }

    /// The frames that were for the guest, but didn't fit into its buffers or broke a rule.
    pub fn received_dropped(&self) -> u64 {
        self.received.dropped.load(Ordering::Relaxed)
    }

    /// The frames that the guest sent.
    pub fn sent(&self) -> u64 {
        self.sent.frames.load(Ordering::Relaxed)
    }

    /// Their bytes, without virtio's header.
    pub fn sent_bytes(&self) -> u64 {
        self.sent.bytes.load(Ordering::Relaxed)
    }

    /// The frames of the guest that were malformed, or that the link didn't take.
    pub fn sent_dropped(&self) -> u64 {
        self.sent.dropped.load(Ordering::Relaxed)
    }
}
