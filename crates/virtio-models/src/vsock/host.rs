// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's processes: Unix sockets, in Firecracker's way.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::retry_on_intr;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, connect, socket_with,
};

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// Where the device finds the host's processes. It outlives the device.
pub trait Host: Send + Sync {
    /// Becomes readable when a process asks for a connection.
    fn source(&self) -> BorrowedFd<'_>;

    /// Accepts a process, without waiting. It says `CONNECT <port>\n` first.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is none; the host's failure.
    fn accept(&self) -> io::Result<OwnedFd>;

    /// Connects to the process that serves this port, without waiting. The socket must not block.
    ///
    /// # Errors
    /// There is none, it has no place for another connection, or the host has no resources.
    fn connect(&self, port: u32) -> io::Result<OwnedFd>;
}

/// A listening socket at a path, and processes that listen at `<path>_<port>`.
#[derive(Debug)]
pub struct UnixHost {
    listener: UnixListener,
    path: PathBuf,
    connects: bool,
}

impl UnixHost {
    /// The longest path in bytes, so that `_` and any port fit behind it: see unix(7).
    pub const MAX_PATH: usize = 107 - 11;

    /// For a listener at this path.
    ///
    /// # Errors
    /// The listener can't be set to not block.
    pub fn new(listener: UnixListener, path: impl Into<PathBuf>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(UnixHost {
            listener,
            path: path.into(),
            connects: true,
        })
    }

    /// The guest can't connect to the host: no socket is opened for it.
    #[must_use]
    pub const fn only_to_guest(mut self) -> Self {
        self.connects = false;
        self
    }

    /// The path where a process listens for the guest.
    fn path(&self, port: u32) -> PathBuf {
        let mut path = OsString::from(Path::as_os_str(&self.path));
        path.push(format!("_{port}"));
        path.into()
    }
}

impl Host for UnixHost {
    fn source(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    fn accept(&self) -> io::Result<OwnedFd> {
        Ok(retry_on_intr(|| accept_with(&self.listener, FLAGS))?)
    }

    fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        if !self.connects {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let address = SocketAddrUnix::new(self.path(port))?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
        // A full queue is an error at once. It would be no use to wait for it: nothing tells when it has room.
        retry_on_intr(|| connect(&socket, &address))?;
        Ok(socket)
    }
}
