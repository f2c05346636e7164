// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's side of the socket device: a listening Unix socket.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use virtio_models::vsock::{Host, UnixHost};

use crate::config::VsockSpec;
use crate::socket_file::{ListenError, SocketError, SocketFile};

/// How many of the host's processes can wait until the guest has a driver, or their turn.
const BACKLOG: i32 = 128;

/// A listener, whose file is removed with it.
struct Listener {
    host: UnixHost,
    _file: SocketFile,
}

impl Host for Listener {
    fn source(&self) -> BorrowedFd<'_> {
        self.host.source()
    }

    fn accept(&self) -> io::Result<OwnedFd> {
        self.host.accept()
    }

    fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        self.host.connect(port)
    }
}

/// Listens at the path of `spec`. Replaces a socket that is no longer in use. A sealed machine opens no sockets for its
/// guest.
///
/// # Errors
/// [`SocketError`] says what is there.
pub(super) fn open(spec: &VsockSpec, sealed: bool) -> Result<Arc<dyn Host>, SocketError> {
    let refused = |error: ListenError| error.of("vsock", &spec.socket);
    let (file, listener) = SocketFile::replace(&spec.socket, BACKLOG).map_err(refused)?;
    let host = UnixHost::new(listener, spec.socket.clone());
    let host = host.map_err(|error| refused(error.into()))?;
    Ok(Arc::new(Listener {
        host: if sealed { host.only_to_guest() } else { host },
        _file: file,
    }))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::socket_file::close;

    #[test]
    fn the_socket_is_the_owners_and_goes_with_the_machine() {
        let dir = tempfile::tempdir().unwrap();
        let spec = VsockSpec::new(3, dir.path().join("v"));
        let host = open(&spec, false).unwrap();
        let mode = fs::metadata(&spec.socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = open(&spec, false).err().unwrap().to_string();
        assert!(error.contains("another process listens"), "{error}");
        // A machine that starts again has it still.
        let again = Arc::clone(&host);
        drop(host);
        assert!(spec.socket.exists());
        drop(again);
        assert!(!spec.socket.exists());
    }

    #[test]
    fn only_a_dead_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let spec = VsockSpec::new(3, dir.path().join("v"));
        close(UnixListener::bind(&spec.socket).unwrap());
        drop(open(&spec, false).unwrap());
        fs::write(&spec.socket, "data").unwrap();
        let error = open(&spec, false).err().unwrap().to_string();
        assert!(
            error.contains("this is no socket and is left alone"),
            "{error}"
        );
        assert_eq!(fs::read(&spec.socket).unwrap(), b"data");
        let spec = VsockSpec::new(3, "/nonexistent/v");
        let error = open(&spec, false).err().unwrap().to_string();
        assert!(
            error.starts_with("/nonexistent/v: the vsock socket"),
            "{error}"
        );
    }

    #[test]
    fn a_sealed_machine_connects_to_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let spec = VsockSpec::new(3, dir.path().join("v"));
        let server = UnixListener::bind(dir.path().join("v_7")).unwrap();
        for sealed in [false, true] {
            let host = open(&spec, sealed).unwrap();
            assert_eq!(host.connect(7).is_ok(), !sealed);
            assert!(host.connect(8).is_err());
        }
        close(server);
    }
}
