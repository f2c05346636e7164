// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's ends of console ports.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::{Mode, OFlags, fcntl_getfl, open};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::stdio;
use rustix::termios::isatty;
use virtio_models::console::{Port, Server, SharedPeer, Stream};

use crate::config::{PortSpec, PortTarget};
use crate::console::{self, tell};
use crate::socket_file::{ListenError, SocketError, SocketFile};
use crate::sync::lock;
use crate::sys::child;

/// How many clients can wait for their turn.
const BACKLOG: i32 = 4;

/// Why a console port can't be connected.
#[derive(Debug, thiserror::Error)]
pub enum PortHostError {
    /// The file can't be opened.
    #[error("{}: console port {name:?} can't write there: {source}; choose another path", path.display())]
    File {
        /// The port.
        name: String,
        /// The file.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// The socket can't be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The descriptor is not open.
    #[error(
        "console port {name:?} has no descriptor {fd} ({source}); let the program that starts the VMM open it"
    )]
    Closed {
        /// The port.
        name: String,
        /// The descriptor.
        fd: u32,
        /// The host's error.
        source: io::Error,
    },
    /// A pseudo-terminal can't be made.
    #[error("console port {name:?} has no pseudo-terminal: {source}; is /dev/pts mounted?")]
    Pty {
        /// The port.
        name: String,
        /// The host's error.
        source: io::Error,
    },
}

/// The host's end of a port. It is kept through resets.
#[derive(Clone)]
pub(super) struct PortHost {
    port: Port,
    /// The file that is emptied when the first machine is made: not before its kernel is known to be one.
    full: Arc<Mutex<Option<File>>>,
}

impl PortHost {
    /// For the device of a machine.
    pub fn port(&self) -> io::Result<Port> {
        let full = lock(&self.full).take();
        if let Some(file) = full.filter(|file| file.metadata().is_ok_and(|about| about.is_file())) {
            file.set_len(0)?;
        }
        Ok(self.port.clone())
    }
}

/// Opens the host's end of each port.
///
/// # Errors
/// [`PortHostError`] names the port or the path.
pub(super) fn open_all(ports: &[PortSpec]) -> Result<Vec<PortHost>, PortHostError> {
    ports.iter().map(open_one).collect()
}

fn open_one(spec: &PortSpec) -> Result<PortHost, PortHostError> {
    let name = || spec.name.clone();
    let mut full = None;
    let peer: SharedPeer = match &spec.to {
        PortTarget::Stdio => {
            let closed = |fd| {
                move |source| PortHostError::Closed {
                    name: name(),
                    fd,
                    source,
                }
            };
            let input = standard(0).map_err(closed(0))?;
            let output = standard(1).map_err(closed(1))?;
            share(Stream::new(Some(input), Some(output)))
        }
        PortTarget::Fd(fd) => {
            let failed = |source| PortHostError::Closed {
                name: name(),
                fd: *fd,
                source,
            };
            share(inherited(*fd).map_err(failed)?)
        }
        PortTarget::File(path) => {
            let file = writable(path);
            let source = |source| PortHostError::File {
                name: name(),
                path: path.clone(),
                source,
            };
            let file = file.map_err(source)?;
            full = Some(file.try_clone().map_err(source)?);
            share(Stream::new(None, Some(file.into())))
        }
        PortTarget::Pty => {
            let failed = |source| PortHostError::Pty {
                name: name(),
                source,
            };
            share(pty(&spec.name).map_err(failed)?)
        }
        PortTarget::Unix(path) => share(server(path)?),
    };
    Ok(PortHost {
        port: Port { name: name(), peer },
        full: Arc::new(Mutex::new(full)),
    })
}

fn share(peer: impl virtio_models::console::Peer + 'static) -> SharedPeer {
    Arc::new(Mutex::new(peer))
}

/// Opens a file or a FIFO, without waiting for a FIFO's reader, and leaves what is in it.
fn writable(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

/// A standard stream of the process.
fn standard(number: u32) -> io::Result<OwnedFd> {
    let stream = match number {
        0 => stdio::stdin(),
        1 => stdio::stdout(),
        _ => stdio::stderr(),
    };
    own(fcntl_dupfd_cloexec(stream, 3)?)
}

/// The descriptor, or for a terminal another one that doesn't block: one that is stopped can't be asked whether it would.
fn own(fd: OwnedFd) -> io::Result<OwnedFd> {
    if !isatty(&fd) {
        return Ok(fd);
    }
    let access = fcntl_getfl(&fd)? & OFlags::RWMODE;
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    Ok(open(path, flags, Mode::empty()).unwrap_or(fd))
}

/// The directions of an inherited descriptor: those that it is open for.
fn inherited(number: u32) -> io::Result<Stream> {
    if number < 3 {
        let stream = standard(number)?;
        return Ok(match number {
            0 => Stream::new(Some(stream), None),
            _ => Stream::new(None, Some(stream)),
        });
    }
    let fd = own(child::inherited(number)?)?;
    let access = fcntl_getfl(&fd)? & OFlags::RWMODE;
    Ok(match access {
        OFlags::WRONLY => Stream::new(None, Some(fd)),
        OFlags::RDWR => Stream::new(Some(fd.try_clone()?), Some(fd)),
        _ => Stream::new(Some(fd), None),
    })
}

/// A new pseudo-terminal. It survives while no program has it open.
fn pty(name: &str) -> io::Result<Stream> {
    let (path, ours, user_side) = console::make_pty()?;
    tell(&format!("console port {name} is on {}", path.display()));
    let flags = fcntl_getfl(&ours)? | OFlags::NONBLOCK;
    rustix::fs::fcntl_setfl(&ours, flags)?;
    Ok(Stream::new(Some(ours.try_clone()?), Some(ours)).keeping(user_side))
}

/// Listens at `path`. Replaces a socket that is no longer in use.
fn server(path: &Path) -> Result<Server, SocketError> {
    let refused = |error: ListenError| error.of("console port", path);
    let (file, listener) = SocketFile::replace(path, BACKLOG).map_err(refused)?;
    let server = Server::new(listener).map_err(|error| refused(error.into()))?;
    Ok(server.keeping(file))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::socket_file::close;

    fn spec(to: PortTarget) -> PortSpec {
        let name = "org.x".to_owned();
        PortSpec { name, to }
    }

    fn open(to: PortTarget) -> Result<PortHost, String> {
        open_one(&spec(to)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_is_emptied_once_there_is_a_machine() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "old").unwrap();
        let host = open(PortTarget::File(path.clone())).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        let port = host.port().unwrap();
        lock(&port.peer).write(b"new").unwrap();
        // A machine that starts again goes on with it.
        let port = host.clone().port().unwrap();
        lock(&port.peer).write(b"er").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"newer");
        let error = open(PortTarget::File("/nonexistent/f".into()))
            .err()
            .unwrap();
        assert!(
            error.starts_with("/nonexistent/f: console port \"org.x\" can't write there"),
            "{error}"
        );
    }

    #[test]
    fn a_socket_is_made_and_goes_with_the_machine() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        close(UnixListener::bind(&path).unwrap());
        let host = open(PortTarget::Unix(path.clone())).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        let error = open(PortTarget::Unix(path.clone())).err().unwrap();
        assert!(error.contains("another process listens"), "{error}");
        drop(host);
        assert!(!path.exists());
        fs::write(&path, "data").unwrap();
        let error = open(PortTarget::Unix(path.clone())).err().unwrap();
        assert!(
            error.contains("this is no socket and is left alone"),
            "{error}"
        );
    }

    #[test]
    fn a_descriptor_has_the_directions_that_it_is_open_for() {
        let (reader, writer) = io::pipe().unwrap();
        let number = |fd: &dyn std::os::fd::AsRawFd| u32::try_from(fd.as_raw_fd()).unwrap();
        let host = open(PortTarget::Fd(number(&reader))).unwrap();
        let peer = lock(&host.port.peer);
        assert!(peer.sources().input.is_some() && peer.sources().output.is_none());
        let host = open(PortTarget::Fd(number(&writer))).unwrap();
        let peer = lock(&host.port.peer);
        assert!(peer.sources().input.is_none() && peer.sources().output.is_some());
        let error = open(PortTarget::Fd(9999)).err().unwrap();
        assert!(error.contains("has no descriptor 9999"), "{error}");
        let error = open(PortTarget::Fd(u32::MAX)).err().unwrap();
        assert!(error.contains("has no descriptor 4294967295"), "{error}");
    }
}
