// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's side of devices that other processes serve (`--vhost-user`): connections to their sockets.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use virtio_models::vhost_user::{Backend, Fault};

use crate::config::VhostUserSpec;

/// Why a backend can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: the vhost-user backend {fault}", socket.display())]
pub struct VhostUserHostError {
    /// The path of its socket.
    pub socket: PathBuf,
    /// What is wrong with it.
    pub fault: Fault,
}

/// Connects to the backend of `spec`. A sealed machine connects once only.
///
/// # Errors
/// [`VhostUserHostError`] says what is wrong.
pub(super) fn open(spec: &VhostUserSpec, sealed: bool) -> Result<Arc<Backend>, VhostUserHostError> {
    let socket = spec.socket.clone();
    let mut may_connect = true;
    let connect = move || {
        if !std::mem::replace(&mut may_connect, !sealed) {
            let why = "a sealed machine opens no second connection";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        dial(&socket)
    };
    let backend = Backend::open(spec.shape(), Box::new(connect));
    let backend = backend.map_err(|fault| VhostUserHostError {
        socket: spec.socket.clone(),
        fault,
    })?;
    Ok(Arc::new(backend))
}

/// A connection that never blocks, also not while it is made.
pub(super) fn dial(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;
    use crate::config::VhostUserDevice;

    #[test]
    fn what_is_wrong_with_a_backend_is_one_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let spec = VhostUserSpec::new(&socket, VhostUserDevice::Block);
        let error = open(&spec, false).unwrap_err().to_string();
        let start = format!(
            "{}: the vhost-user backend can't be reached (",
            socket.display()
        );
        assert!(
            error.starts_with(&start) && error.ends_with("start it first"),
            "{error}"
        );
        let listener = UnixListener::bind(&socket).unwrap();
        let server = thread::spawn(move || drop(listener.accept()));
        let error = open(&spec, false).unwrap_err().to_string();
        assert!(error.contains("has closed the connection"), "{error}");
        server.join().unwrap();
    }
}
