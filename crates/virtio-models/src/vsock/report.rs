// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's messages to the VMM, and its counters.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

/// A message that a VMM may want to log. Each is reported once.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Notice {
    /// The host has no resources for a process that connects.
    #[error("a client of the vsock socket can't be accepted ({0}); raise the limit on open files")]
    NotAccepted(#[source] io::Error),
    /// The host has no resources for a connection of the guest.
    #[error("the guest can't connect to the host ({0}); raise the limit on open files")]
    NoSocket(#[source] io::Error),
    /// The host's event loop or clock fails.
    #[error("a vsock connection can't be watched ({0}); raise the limit on open files")]
    NotWatched(#[source] io::Error),
}

/// Receives notices. Called on the device's thread.
pub type Report = Box<dyn FnMut(Notice) + Send>;

/// A device's counters, for any thread. They count from the device's creation.
#[derive(Debug, Default)]
pub struct Counters {
    pub(super) to_guest: Count,
    pub(super) from_guest: Count,
    pub(super) added: Count,
    pub(super) removed: Count,
    pub(super) killed: Count,
    pub(super) refused: Count,
    pub(super) read_fails: Count,
    pub(super) write_fails: Count,
}

/// Packets, or other events, with their bytes.
#[derive(Debug, Default)]
pub(super) struct Count {
    number: AtomicU64,
    bytes: AtomicU64,
}

impl Count {
    /// Counts one with this many bytes. Called by one thread only.
    pub(super) fn add(&self, bytes: u64) {
        // With a single writer, no locked operation is necessary.
        let add = |counter: &AtomicU64, more| {
            let count = counter.load(Ordering::Relaxed);
            counter.store(count.wrapping_add(more), Ordering::Relaxed);
        };
        add(&self.number, 1);
        add(&self.bytes, bytes);
    }

    fn number(&self) -> u64 {
        self.number.load(Ordering::Relaxed)
    }
}

impl Counters {
    /// The packets that the guest received.
    pub fn received(&self) -> u64 {
        self.to_guest.number()
    }

    /// The bytes of data in them.
    pub fn received_bytes(&self) -> u64 {
        self.to_guest.bytes.load(Ordering::Relaxed)
    }

    /// The packets that the guest sent.
    pub fn sent(&self) -> u64 {
        self.from_guest.number()
    }

    /// The bytes of data in them.
    pub fn sent_bytes(&self) -> u64 {
        self.from_guest.bytes.load(Ordering::Relaxed)
    }

    /// The connections that began.
    pub fn added(&self) -> u64 {
        self.added.number()
    }

    /// The connections that ended, in any way.
    pub fn removed(&self) -> u64 {
        self.removed.number()
    }

    /// Those of them that a time limit ended.
    pub fn killed(&self) -> u64 {
        self.killed.number()
    }

    /// The packets of the guest that were refused or ignored: for no connection, or against a rule.
    pub fn refused(&self) -> u64 {
        self.refused.number()
    }

    /// The failures to read from a process of the host.
    pub fn read_fails(&self) -> u64 {
        self.read_fails.number()
    }

    /// The failures to write to a process of the host.
    pub fn write_fails(&self) -> u64 {
        self.write_fails.number()
    }
}
