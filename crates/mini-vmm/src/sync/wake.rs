// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An eventfd that wakes a poll. It is either signalled or not.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{EventfdFlags, eventfd};

/// Readable while signalled.
#[derive(Debug)]
pub(crate) struct Wake(OwnedFd);

impl Wake {
    /// An event that is not signalled.
    pub(crate) fn new() -> io::Result<Wake> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Wake(eventfd(0, flags)?))
    }

    /// Wakes all pollers. One system call, which is also allowed in signal handlers.
    pub(crate) fn signal(&self) {
        // Fails only if the counter is full, and then it is signalled anyway.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Clears the signal. Returns whether there was one.
    pub(crate) fn clear(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Wake {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_add_up_to_one() {
        let wake = Wake::new().unwrap();
        assert!(!wake.clear());
        wake.signal();
        wake.signal();
        assert!(wake.clear());
        assert!(!wake.clear());
    }
}
