// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Converts eventfds to the type that kvm-ioctls needs.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use vmm_sys_util::eventfd::EventFd;

/// Duplicates the eventfd `fd`.
///
/// # Errors
/// The process has no file descriptor left.
pub(crate) fn duplicate(fd: &OwnedFd) -> io::Result<EventFd> {
    let new = fd.try_clone()?.into_raw_fd();
    // SAFETY: the descriptor is open, and nothing else owns it.
    Ok(unsafe { EventFd::from_raw_fd(new) })
}

/// The descriptor of an eventfd, for as long as that is borrowed.
pub(crate) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: an `EventFd` owns its descriptor, which is open and no other one for as long as `event` is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
