// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ioctls of /dev/net/tun (Linux's Documentation/networking/tuntap.rst).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A `struct ifreq` with an interface's name and flags.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    /// The rest of the union, 24 bytes long in all.
    _rest: [u8; 22],
}

impl Request {
    const fn new(name: [u8; libc::IFNAMSIZ], flags: libc::c_int) -> Self {
        Request {
            name,
            // The flags of taps are below 0x8000.
            flags: flags as libc::c_short,
            _rest: [0; 22],
        }
    }
}

fn result(returned: libc::c_int) -> io::Result<()> {
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Attaches an open /dev/net/tun to the interface `name`. With zeros behind it.
pub(crate) fn attach(
    tun: BorrowedFd<'_>,
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_int,
) -> io::Result<()> {
    let mut request = Request::new(name, flags);
    // SAFETY: The call reads and writes a `struct ifreq`, which lives until it returns.
    result(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// The name and the flags of the interface that a file is attached to.
pub(crate) fn interface(tap: BorrowedFd<'_>) -> io::Result<([u8; libc::IFNAMSIZ], libc::c_int)> {
    let mut request = Request::new([0; libc::IFNAMSIZ], 0);
    // SAFETY: The call writes a `struct ifreq`, which lives until it returns.
    result(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    Ok((request.name, request.flags.into()))
}

/// Attaches a queue of a tap, or detaches it: then it gets no frames.
pub(crate) fn set_queue(tap: BorrowedFd<'_>, attached: bool) -> io::Result<()> {
    let flags = if attached {
        libc::IFF_ATTACH_QUEUE
    } else {
        libc::IFF_DETACH_QUEUE
    };
    let mut request = Request::new([0; libc::IFNAMSIZ], flags);
    // SAFETY: The call reads a `struct ifreq`, which lives until it returns.
    result(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETQUEUE, &raw mut request) })
}

/// Sets the length of the header before each frame, in bytes.
pub(crate) fn set_header(tap: BorrowedFd<'_>, len: libc::c_int) -> io::Result<()> {
    // SAFETY: The call reads an int, which lives until it returns.
    result(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })
}

/// Sets what the reader of a tap handles: `TUN_F_CSUM`, `TUN_F_TSO4`, `TUN_F_TSO6`.
pub(crate) fn set_offloads(tap: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: The argument of this call is a number.
    result(unsafe {
        libc::ioctl(
            tap.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(flags),
        )
    })
}
