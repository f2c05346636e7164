// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Listening Unix sockets at a path.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// Why nothing can listen at a path.
#[derive(Debug)]
pub(crate) enum ListenError {
    /// The host refused it.
    Failed(io::Error),
    /// Something other than a socket is there.
    NotASocket,
    /// Another process listens there.
    InUse,
    /// A socket is there that nothing listens on.
    Stale,
}

impl From<Errno> for ListenError {
    fn from(errno: Errno) -> Self {
        ListenError::Failed(errno.into())
    }
}

impl From<io::Error> for ListenError {
    fn from(error: io::Error) -> Self {
        ListenError::Failed(error)
    }
}

/// A listening socket's file. It is removed on drop, if it is still this socket's.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    /// Listens at `path`, without blocking. Up to `backlog` clients can wait to be accepted. Only the owner can connect.
    pub(crate) fn listen(
        path: &Path,
        backlog: i32,
    ) -> Result<(SocketFile, UnixListener), ListenError> {
        let address = SocketAddrUnix::new(path)?;
        check_free(path, &address)?;
        let listener = stream_socket()?;
        bind(&listener, &address)?;
        let setup = || {
            // Before anyone can connect.
            fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
            let metadata = fs::symlink_metadata(path)?;
            listen(&listener, backlog)?;
            Ok::<_, io::Error>((metadata.dev(), metadata.ino()))
        };
        let id = setup().inspect_err(|_| {
            let _ = fs::remove_file(path);
        })?;
        let file = SocketFile {
            path: path.to_owned(),
            id,
        };
        Ok((file, UnixListener::from(listener)))
    }

    /// Like [`listen`](Self::listen), but replaces a socket that nothing listens on.
    pub(crate) fn replace(
        path: &Path,
        backlog: i32,
    ) -> Result<(SocketFile, UnixListener), ListenError> {
        match SocketFile::listen(path, backlog) {
            Err(ListenError::Stale) => {
                fs::remove_file(path)?;
                SocketFile::listen(path, backlog)
            }
            result => result,
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.id);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("{}: the socket's file stays: {error}", self.path.display());
        }
    }
}

fn stream_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Checks that nothing is at `path`.
fn check_free(path: &Path, address: &SocketAddrUnix) -> Result<(), ListenError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(ListenError::NotASocket),
        Ok(_) => {}
    }
    Err(match connect(&stream_socket()?, address) {
        Err(Errno::CONNREFUSED) => ListenError::Stale,
        Err(Errno::ACCESS) => Errno::ACCESS.into(),
        // It is connectable, its queue is full, or it is of another type: it is in use.
        _ => ListenError::InUse,
    })
}

/// Closes a listener also for copies that it has in programs which other tests are starting.
#[cfg(test)]
pub(crate) fn close(listener: UnixListener) {
    rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener as StdListener;

    use super::*;

    #[test]
    fn only_a_free_path_is_taken_and_only_a_dead_socket_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        fs::write(&path, "").unwrap();
        let error = SocketFile::replace(&path, 1).unwrap_err();
        assert!(matches!(error, ListenError::NotASocket), "{error:?}");
        fs::remove_file(&path).unwrap();
        let other = StdListener::bind(&path).unwrap();
        let error = SocketFile::replace(&path, 1).unwrap_err();
        assert!(matches!(error, ListenError::InUse), "{error:?}");
        close(other);
        let error = SocketFile::listen(&path, 1).unwrap_err();
        assert!(matches!(error, ListenError::Stale), "{error:?}");
        let (file, _listener) = SocketFile::replace(&path, 1).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(file);
        assert!(!path.exists());
    }
}
