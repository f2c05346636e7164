// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Listening vsock sockets. No safe crate that we have knows their addresses.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::{sa_family_t, sockaddr_vm, socklen_t};

/// The CID of the host (vsock(7)).
pub(crate) const HOST: u32 = libc::VMADDR_CID_HOST;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
const SIZE: socklen_t = size_of::<sockaddr_vm>() as socklen_t;

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener(OwnedFd);

impl Listener {
    /// Listens at a port of all of this system's CIDs.
    ///
    /// # Errors
    /// There is no vsock here, or the port is another process's.
    pub(crate) fn bind(port: u32) -> io::Result<Self> {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        // SAFETY: takes numbers only.
        let fd = unsafe { libc::socket(libc::AF_VSOCK, kind, 0) };
        check(fd)?;
        // SAFETY: the descriptor is new, so nothing else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let address = sockaddr_vm {
            svm_family: libc::AF_VSOCK as sa_family_t,
            svm_port: port,
            svm_cid: libc::VMADDR_CID_ANY,
            ..none()
        };
        // SAFETY: the address is valid for reads of `SIZE` bytes, and the call keeps no pointer.
        check(unsafe { libc::bind(fd, (&raw const address).cast(), SIZE) })?;
        // SAFETY: takes numbers only.
        check(unsafe { libc::listen(fd, BACKLOG) })?;
        Ok(Listener(socket))
    }

    /// Waits for a connection. Returns it with the CID of its other side.
    ///
    /// # Errors
    /// The process or the system has no room for one.
    pub(crate) fn accept(&self) -> io::Result<(OwnedFd, u32)> {
        let (mut address, mut size) = (none(), SIZE);
        let place = (&raw mut address).cast();
        // SAFETY: the address is valid for writes of `SIZE` bytes, which `size` says, and the call keeps no pointer.
        let fd =
            unsafe { libc::accept4(self.0.as_raw_fd(), place, &raw mut size, libc::SOCK_CLOEXEC) };
        check(fd)?;
        // SAFETY: the descriptor is new, so nothing else owns it.
        Ok((unsafe { OwnedFd::from_raw_fd(fd) }, address.svm_cid))
    }
}

/// An address of nobody: CID 0.
fn none() -> sockaddr_vm {
    // SAFETY: a structure of integers, for which all zeros are a value.
    unsafe { zeroed() }
}

fn check(result: i32) -> io::Result<()> {
    match result {
        ..0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_one_listener() {
        // Any port from here on that is free.
        for port in 40_000.. {
            match Listener::bind(port) {
                Ok(_listener) => {
                    let error = Listener::bind(port).unwrap_err();
                    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => {
                    println!("SKIP: a_port_has_one_listener: no vsock here: {error}");
                    return;
                }
            }
        }
    }
}
