// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Page faults that user space answers, and writes that the host marks (Linux,
//! Documentation/admin-guide/mm/userfaultfd.rst).
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use libc::c_int;
use vm_memory::MmapRegion;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_val};
use vmm_sys_util::{ioctl_io_nr, ioctl_iowr_nr};

/// The ioctls' type, and the version of the interface (`UFFDIO`, `UFFD_API`).
const API: u32 = 0xaa;
/// `UFFD_FEATURE_EVENT_REMOVE`: whoever answers hears of memory that is given back.
const EVENT_REMOVE: u64 = 1 << 3;
/// `UFFD_FEATURE_WP_ASYNC` (Linux 6.7): the host lifts the protection against writes itself.
const WP_ASYNC: u64 = 1 << 15;
/// `UFFDIO_REGISTER_MODE_MISSING`: pages that are not there are asked for.
const MODE_MISSING: u64 = 1;
/// `UFFDIO_REGISTER_MODE_WP`: pages can be protected against writes.
const MODE_WP: u64 = 1 << 1;
/// `UFFD_USER_MODE_ONLY`: for faults of user space, which need no right.
const USER_MODE_ONLY: c_int = 1;

/// `struct uffdio_api`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

ioctl_io_nr!(USERFAULTFD_IOC_NEW, API, 0x00);
ioctl_iowr_nr!(UFFDIO_API, API, 0x3f, Api);
ioctl_iowr_nr!(UFFDIO_REGISTER, API, 0x00, Register);

/// A descriptor for the page faults of this process, those in the kernel included. It doesn't block, and reports removed
/// pages. No memory belongs to it yet.
///
/// # Errors
/// The host's error: EPERM without the right to it.
pub(crate) fn create() -> io::Result<OwnedFd> {
    begin(open()?, EVENT_REMOVE)
}

/// A descriptor for pages that are written, by this process, the guest or KVM. No memory belongs to it yet.
///
/// # Errors
/// The host's error: also one without these marks.
pub(crate) fn create_for_writes() -> io::Result<OwnedFd> {
    begin(call(libc::O_CLOEXEC | USER_MODE_ONLY)?, WP_ASYNC)
}

/// Agrees with the host about the interface and its features.
fn begin(uffd: OwnedFd, features: u64) -> io::Result<OwnedFd> {
    let mut api = Api {
        api: API.into(),
        features,
        ioctls: 0,
    };
    // SAFETY: the call reads and writes the structure that it gets.
    match unsafe { ioctl_with_mut_ref(&uffd, UFFDIO_API(), &mut api) } {
        0 => Ok(uffd),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whoever may open the device needs no other right (since Linux 6.1).
fn open() -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd");
    match device {
        // SAFETY: the call takes flags and no memory.
        Ok(device) => owned(unsafe { ioctl_with_val(&device, USERFAULTFD_IOC_NEW(), flags as _) }),
        Err(_) => call(flags),
    }
}

fn call(flags: c_int) -> io::Result<OwnedFd> {
    // SAFETY: the call takes flags and no memory.
    owned(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) as RawFd })
}

/// The descriptor that a call returned.
fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    match fd {
        0.. => {
            // SAFETY: a call has just returned the descriptor, which nobody else has.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes `uffd` ask for the pages of `memory`, which must be anonymous.
///
/// # Errors
/// The host's error.
pub(crate) fn register(uffd: &OwnedFd, memory: &MmapRegion) -> io::Result<()> {
    register_for(uffd, memory, MODE_MISSING)
}

/// Makes the host mark the pages of `memory` that are written. Until the marks are removed for the first time, all private
/// pages count as written.
///
/// # Errors
/// The host's error: EBUSY if another descriptor has the memory.
pub(crate) fn register_for_writes(uffd: &OwnedFd, memory: &MmapRegion) -> io::Result<()> {
    register_for(uffd, memory, MODE_WP)
}

fn register_for(uffd: &OwnedFd, memory: &MmapRegion, mode: u64) -> io::Result<()> {
    let mut range = Register {
        start: memory.as_ptr() as u64,
        len: memory.size() as u64,
        mode,
        ioctls: 0,
    };
    // SAFETY: the call reads and writes the structure that it gets. The range is a live mapping of guest memory. Marks of
    // writes don't change its contents, and nothing relies on those of missing pages.
    match unsafe { ioctl_with_mut_ref(uffd, UFFDIO_REGISTER(), &mut range) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What a process that answers page faults does, for tests.
#[cfg(any(test, feature = "test-utils"))]
pub(crate) mod answer {
    use std::os::fd::AsRawFd;

    use super::*;

    /// `struct uffdio_copy`.
    #[derive(Clone, Copy, Default)]
    #[repr(C)]
    struct Copy {
        dst: u64,
        src: u64,
        len: u64,
        mode: u64,
        copied: i64,
    }

    ioctl_iowr_nr!(UFFDIO_COPY, API, 0x03, Copy);

    /// Puts a page at the address `to`. It may be there already.
    ///
    /// # Errors
    /// The host's error.
    pub(crate) fn copy(uffd: &impl AsRawFd, to: u64, page: &[u8; 4096]) -> io::Result<()> {
        let mut copy = Copy {
            dst: to,
            src: page.as_ptr() as u64,
            len: page.len() as u64,
            mode: 0,
            copied: 0,
        };
        // SAFETY: the call reads `page`, which lives until then, and writes only to missing pages of memory that was
        // registered with `uffd`, which holds a guest's memory and nothing else.
        match unsafe { ioctl_with_mut_ref(uffd, UFFDIO_COPY(), &mut copy) } {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
                error => Err(error),
            },
        }
    }
}
