// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a VMM tells a disk while it runs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::event::{EventfdFlags, eventfd};

/// A disk's bell, for any thread.
#[derive(Debug, Default)]
pub struct Control {
    /// Made at the first start.
    bell: OnceLock<OwnedFd>,
}

impl Control {
    /// The size of the image may be another one: the device looks, and tells its driver. A device that does not run looks
    /// when it starts.
    pub fn resize(&self) {
        if let Some(bell) = self.bell.get() {
            // It can't fail but by being rung 2^64 - 2 times.
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

    /// Makes the bell rest.
    pub(super) fn hear(&self) {
        if let Some(bell) = self.bell.get() {
            let _ = rustix::io::read(bell, &mut [0; 8]);
        }
    }
}
