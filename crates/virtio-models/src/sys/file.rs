// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! File operations that no crate wraps safely.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::Buffers;

fn result(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}

/// Reads at an offset of a file. Returns the number of bytes.
pub(crate) fn read(file: &File, offset: u64, buffers: &Buffers) -> io::Result<usize> {
    let pieces = buffers.pieces();
    let offset = offset.cast_signed();
    // SAFETY: The pieces are mapped while `buffers` is borrowed, and may be written. There are at most IOV_MAX.
    result(unsafe {
        let count = pieces.len() as libc::c_int;
        libc::preadv64(file.as_raw_fd(), pieces.as_ptr(), count, offset)
    })
}

/// Writes at an offset of a file. Returns the number of bytes.
pub(crate) fn write(file: &File, offset: u64, buffers: &Buffers) -> io::Result<usize> {
    let pieces = buffers.pieces();
    let offset = offset.cast_signed();
    // SAFETY: The pieces are mapped while `buffers` is borrowed. There are at most IOV_MAX.
    result(unsafe {
        let count = pieces.len() as libc::c_int;
        libc::pwritev64(file.as_raw_fd(), pieces.as_ptr(), count, offset)
    })
}

/// Locks a whole file for this open file description (`F_OFD_SETLK`, fcntl(2)), without waiting. Returns `false` if it
/// is locked elsewhere.
pub(crate) fn lock(file: &File, exclusive: bool) -> io::Result<bool> {
    let kind = if exclusive {
        libc::F_WRLCK
    } else {
        libc::F_RDLCK
    };
    // SAFETY: All zeros is a valid `flock64`: it describes the whole file.
    let mut flock: libc::flock64 = unsafe { std::mem::zeroed() };
    flock.l_type = kind as libc::c_short;
    flock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: The call reads `flock`, which lives until it returns.
    let returned = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &flock) };
    match result(returned as isize) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
