// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMM's control of a running disk.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::event::{EventfdFlags, eventfd};

/// Sends commands to a disk, from any thread.
#[derive(Debug, Default)]
pub struct Control {
    /// Created at the first start.
    bell: OnceLock<OwnedFd>,
}

impl Control {
    /// Makes the device check the image's size, and tell its driver about a change. A device that doesn't run checks it
    /// when it starts.
    pub fn resize(&self) {
        if let Some(bell) = self.bell.get() {
            // Fails only if the counter is full, and then the device wakes anyway.
            let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
        }
    }

    pub(super) fn bell(&self) -> io::Result<BorrowedFd<'_>> {
        if self.bell.get().is_none() {
            let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let _ = self.bell.set(bell);
        }
        let bell = self.bell.get().ok_or(io::ErrorKind::NotFound)?;
        Ok(bell.as_fd())
    }

    /// Clears the eventfd.
    pub(super) fn hear(&self) {
        if let Some(bell) = self.bell.get() {
            let _ = rustix::io::read(bell, &mut [0; 8]);
        }
    }
}
