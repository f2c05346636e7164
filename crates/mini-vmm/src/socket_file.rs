// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Listening Unix sockets at a path.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// How long to wait for another process that looks for a free path. It takes less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(1);

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

/// Why there is no socket at a path.
#[derive(Debug)]
pub struct SocketError {
    /// What it is for.
    what: &'static str,
    path: PathBuf,
    reason: ListenError,
}

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SocketError { what, path, reason } = self;
        write!(f, "{}: ", path.display())?;
        match reason {
            ListenError::Failed(source) => {
                write!(f, "the {what} socket can't be made: {source}; choose")
            }
            ListenError::NotASocket => {
                f.write_str("this is no socket and is left alone; remove it or choose")
            }
            ListenError::InUse => {
                f.write_str("another process listens on this socket; end it or choose")
            }
            ListenError::Stale => {
                f.write_str("this socket was left by a process that has ended; remove it or choose")
            }
        }?;
        f.write_str(" another path")
    }
}

impl std::error::Error for SocketError {}

impl ListenError {
    /// The error for users: `what` the socket is for, and its path.
    pub(crate) fn of(self, what: &'static str, path: &Path) -> SocketError {
        SocketError {
            what,
            path: path.to_owned(),
            reason: self,
        }
    }
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
        let _lock = lock_directory(path);
        SocketFile::listen_locked(path, backlog)
    }

    /// As [`listen`](Self::listen), in a directory that is locked.
    fn listen_locked(path: &Path, backlog: i32) -> Result<(SocketFile, UnixListener), ListenError> {
        check_free(path, &SocketAddrUnix::new(path)?)?;
        // A program that waits for the file connects at once, so the file gets this name when its socket listens.
        let early = early_name(path);
        let named = bound(&early, backlog).and_then(|bound| {
            let linked = fs::hard_link(&early, path);
            fs::remove_file(&early)?;
            linked.map(|()| bound)
        });
        let (listener, id) = match named {
            Ok(bound) => bound,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(ListenError::InUse);
            }
            // The other name is too long, or the file system has no links.
            Err(_) => bound(path, backlog)?,
        };
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
        let _lock = lock_directory(path);
        match SocketFile::listen_locked(path, backlog) {
            Err(ListenError::Stale) => {
                fs::remove_file(path)?;
                SocketFile::listen_locked(path, backlog)
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

/// A socket that listens at `path`, and the file's identity. Only the owner can connect.
fn bound(path: &Path, backlog: i32) -> io::Result<(OwnedFd, (u64, u64))> {
    let listener = stream_socket()?;
    bind(&listener, &SocketAddrUnix::new(path)?)?;
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
    Ok((listener, id))
}

/// A name in the directory of `path` that no other socket has.
fn early_name(path: &Path) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{}-{number}", process::id()))
}

/// Locks the directory of `path` against other processes that look for a free path in it. Otherwise two could find the
/// same stale socket, and the second would remove the first one's new socket. Between bind(2) and listen(2), a socket
/// also looks stale.
///
/// The lock only guards against this rare race. So the directory stays unlocked if it can't be read, if its file system
/// has no locks, and if someone else holds the lock for long: anyone may who can read the directory.
fn lock_directory(path: &Path) -> Option<File> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut options = OpenOptions::new();
    options.read(true);
    // A FIFO would wait for a writer.
    options.custom_flags(libc::O_DIRECTORY | libc::O_NONBLOCK);
    let directory = options.open(directory).ok()?;
    let until = Instant::now() + PATIENCE;
    loop {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(directory),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < until => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(_) => return None,
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
    use std::sync::Barrier;

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

    #[test]
    fn a_socket_listens_as_soon_as_its_file_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let address = SocketAddrUnix::new(&path).unwrap();
        for _ in 0..200 {
            let (file, listener) = thread::scope(|scope| {
                let client = scope.spawn(|| {
                    while !path.exists() {}
                    connect(stream_socket().unwrap(), &address)
                });
                let both = SocketFile::listen(&path, 1).unwrap();
                client.join().unwrap().unwrap();
                both
            });
            drop(file);
            close(listener);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_another_has_locked_or_that_is_none_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let lock = File::open(dir.path()).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let (file, listener) = SocketFile::listen(&path, 1).unwrap();
        close(listener);
        std::mem::forget(file);
        let (file, _listener) = SocketFile::replace(&path, 1).unwrap();
        drop(file);
        assert!(!path.exists());

        let fifo = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
        let error = SocketFile::listen(&fifo.join("socket"), 1).unwrap_err();
        assert!(
            matches!(&error, ListenError::Failed(error) if error.kind() == io::ErrorKind::NotADirectory),
            "{error:?}"
        );
    }

    #[test]
    fn of_two_that_replace_a_stale_socket_one_finds_it_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        for _ in 0..200 {
            close(StdListener::bind(&path).unwrap());
            let start = Barrier::new(2);
            let both = thread::scope(|scope| {
                let replace = || {
                    start.wait();
                    SocketFile::replace(&path, 1)
                };
                let threads = [scope.spawn(replace), scope.spawn(replace)];
                threads.map(|thread| thread.join().unwrap())
            });
            let lost = both.iter().filter_map(|result| result.as_ref().err());
            let lost: Vec<_> = lost.collect();
            assert!(matches!(lost[..], [ListenError::InUse]), "{lost:?}");
            for (file, listener) in both.into_iter().flatten() {
                drop(file);
                close(listener);
            }
            assert!(!path.exists());
        }
    }
}
