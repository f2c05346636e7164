// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's side of shared directories (`--share`): a virtiofsd for each, which ends with the machine.
//!
//! virtiofsd gets a listening socket that has no other name than a descriptor. It serves one connection, and ends when
//! that is closed. So it outlives this process by no more than a moment, however this process ends.

mod said;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, getsockname, listen,
    socket_with,
};
use rustix::process::{Resource, getegid, geteuid, getrlimit};
use virtio_models::vhost_user::{Backend, Fault, Kind, PATIENCE, Shape};

use self::said::Said;
use crate::config::{Sandbox, ShareSpec};
use crate::sys::child;

/// The program.
const PROGRAM: &str = "virtiofsd";
/// Where distributions have it, outside of PATH.
const PLACES: [&str; 2] = ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd"];
/// The most files that it has open by default.
const MAX_FILES: u64 = 1_000_000;
/// How long it may take to start. Its end is noticed at once.
const START: Duration = Duration::from_secs(30);

/// Why a directory can't be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// It is no directory.
    #[error("can't share {path:?}: {reason}; name a directory that this user can read")]
    Directory {
        /// The path.
        path: PathBuf,
        /// What it is.
        reason: io::Error,
    },
    /// The program is not installed.
    #[error(
        "`--share` needs the program virtiofsd, which is neither in PATH nor in ~/.cargo/bin; install the package \
         virtiofsd, or run `cargo install virtiofsd` (it needs the packages libcap-ng-dev and libseccomp-dev)"
    )]
    Missing,
    /// The host can't start it.
    #[error(
        "virtiofsd can't be started ({0}); may this user run it, and are the limits on processes and open files high \
         enough?"
    )]
    Start(#[source] io::Error),
    /// It ended with an error.
    #[error("virtiofsd can't share {path:?}: {said}{}", hint(*sandbox))]
    Refused {
        /// The directory.
        path: PathBuf,
        /// Its last lines, or what is wrong with it.
        said: String,
        /// What was to keep it to the directory.
        sandbox: Sandbox,
    },
}

fn hint(sandbox: Sandbox) -> &'static str {
    match sandbox {
        Sandbox::None => "; `virtiofsd --help` explains its options",
        _ => "; if it is about namespaces, mounts or roots, add `,sandbox=none`",
    }
}

/// A shared directory. Clones are the same one.
#[derive(Clone)]
pub(super) struct Share {
    // First, so that its connection is closed before the process is awaited.
    backend: Arc<Backend>,
    _process: Arc<Process>,
}

impl Share {
    pub(super) const fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Share")
            .field("backend", &self.backend)
            .finish_non_exhaustive()
    }
}

/// A virtiofsd, which ends when this is dropped.
struct Process {
    child: Child,
    said: Said,
}

impl Drop for Process {
    fn drop(&mut self) {
        // What the guest wrote is in the host's files already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Shares the directories, each under the tag that its number gives it.
///
/// # Errors
/// [`ShareError`] says what is missing or refused.
pub(super) fn open(shares: &[ShareSpec]) -> Result<Vec<Share>, ShareError> {
    if shares.is_empty() {
        return Ok(Vec::new());
    }
    let program = find()?;
    let shares = shares.iter().enumerate();
    shares
        .map(|(number, share)| start(&program, share, share.tag(number)))
        .collect()
}

/// The program's path.
fn find() -> Result<PathBuf, ShareError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let cargo = home.map(|home| home.join(".cargo/bin").join(PROGRAM));
    find_in(&path, PLACES.iter().map(PathBuf::from).chain(cargo)).ok_or(ShareError::Missing)
}

fn find_in(path: &OsStr, others: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    let mut places = std::env::split_paths(path)
        .map(|dir| dir.join(PROGRAM))
        .chain(others);
    places.find(|place| place.is_file())
}

/// Starts virtiofsd for `share`, with less of a sandbox if the host has none for this user.
fn start(program: &Path, share: &ShareSpec, tag: String) -> Result<Share, ShareError> {
    let path = share.path.clone();
    // Its own message would be about an internal step.
    fs::read_dir(&path).map_err(|reason| ShareError::Directory { path, reason })?;
    let started = start_in(program, share, &tag, share.sandbox);
    match started {
        Err(ShareError::Refused { said, .. })
            if share.sandbox == Sandbox::Auto && !geteuid().is_root() =>
        {
            log::warn!(
                "virtiofsd has no sandbox for {:?}, only this user's rights: {said}",
                share.path
            );
            start_in(program, share, &tag, Sandbox::None)
        }
        started => started,
    }
}

fn start_in(
    program: &Path,
    share: &ShareSpec,
    tag: &str,
    sandbox: Sandbox,
) -> Result<Share, ShareError> {
    let (listener, connection) = pair().map_err(ShareError::Start)?;
    let mut command = Command::new(program);
    command.args(arguments(listener.as_raw_fd(), share, sandbox));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    // It says each request at `debug`, and its start at `info`.
    command.env("RUST_LOG", "warn");
    child::pass(&mut command, listener);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ShareError::Missing,
        _ => ShareError::Start(error),
    })?;
    // It has the only descriptor of the listener now, so that its end is seen.
    drop(command);
    let said = child
        .stderr
        .take()
        .map_or_else(|| Ok(Said::default()), Said::read);
    let mut process = Process {
        said: said.as_ref().cloned().unwrap_or_default(),
        child,
    };
    said.map_err(ShareError::Start)?;
    let kind = Kind::Fs {
        tag: tag.to_owned(),
    };
    let mut connection = Some(connection);
    let connect = move || {
        let connection = connection.take();
        connection.ok_or_else(|| io::Error::other("virtiofsd has ended"))
    };
    let backend = Backend::open_with(Shape::new(kind), Box::new(connect), START, PATIENCE);
    let backend = backend.map_err(|fault| process.refused(fault, share, sandbox))?;
    Ok(Share {
        backend: Arc::new(backend),
        _process: Arc::new(process),
    })
}

impl Process {
    /// The error for a virtiofsd with this fault.
    fn refused(&mut self, fault: Fault, share: &ShareSpec, sandbox: Sandbox) -> ShareError {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let last = self.said.last_words();
        ShareError::Refused {
            path: share.path.clone(),
            said: last.unwrap_or_else(|| format!("it {fault}")),
            sandbox,
        }
    }
}

/// virtiofsd's arguments, for a listener with the descriptor `fd`.
fn arguments(fd: i32, share: &ShareSpec, sandbox: Sandbox) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["--fd".into(), fd.to_string().into()];
    arguments.extend(["--shared-dir".into(), share.path.clone().into()]);
    let sandbox = match sandbox {
        Sandbox::Auto | Sandbox::Namespace => "namespace",
        Sandbox::Chroot => "chroot",
        Sandbox::None => "none",
    };
    arguments.extend(["--sandbox".into(), sandbox.into()]);
    if share.readonly {
        arguments.push("--readonly".into());
    }
    // A file that the guest has open is one here, too. It would warn if it could not have as many as it likes.
    let files = getrlimit(Resource::Nofile).maximum.unwrap_or(MAX_FILES);
    let files = files.min(MAX_FILES).to_string();
    arguments.extend(["--rlimit-nofile".into(), files.into()]);
    let (user, group) = (geteuid(), getegid());
    if !user.is_root() {
        // It can make files for this user only. The guest's root sees them as its own.
        let ids = [
            ("--translate-uid", user.as_raw()),
            ("--translate-gid", group.as_raw()),
        ];
        for (flag, id) in ids {
            let maps = [
                format!("squash-guest:0:{id}:4294967295"),
                format!("host:{id}:0:1"),
            ];
            let maps = maps.into_iter().flat_map(|map| [flag.into(), map.into()]);
            arguments.extend(maps);
        }
    }
    arguments
}

/// A listening socket, and a connection to it. The address is one that the kernel chooses, outside of the file system.
///
/// Any user of the host could connect to it. So the listener has room for one connection (a backlog of 0): if another
/// process is first, ours fails, and nobody is served.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&listener, &SocketAddrUnix::new_unnamed())?;
    listen(&listener, 0)?;
    let flags = flags | SocketFlags::NONBLOCK;
    let connection = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&connection, &getsockname(&listener)?)?;
    Ok((listener, connection))
}

#[cfg(test)]
mod tests;
