// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Wakes a device from any thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::event::{EventfdFlags, eventfd};

/// An eventfd that is created when a device starts. There is nobody to wake before that.
#[derive(Debug, Default)]
pub(crate) struct Bell(OnceLock<OwnedFd>);

impl Bell {
    /// Wakes the device.
    pub(crate) fn ring(&self) {
        if let Some(bell) = self.0.get() {
            // Fails only if the counter is full, and then the device wakes anyway.
            let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
        }
    }

    /// Becomes readable when the device should wake.
    pub(crate) fn source(&self) -> io::Result<BorrowedFd<'_>> {
        if self.0.get().is_none() {
            let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let _ = self.0.set(bell);
        }
        let bell = self.0.get().ok_or(io::ErrorKind::NotFound)?;
        Ok(bell.as_fd())
    }

    /// Clears the source.
    pub(crate) fn hear(&self) {
        if let Some(bell) = self.0.get() {
            let _ = rustix::io::read(bell, &mut [0; 8]);
        }
    }
}
