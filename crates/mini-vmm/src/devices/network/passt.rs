// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Starts passt, which gives a guest the host's network without root.
//!
//! passt gets one end of a socket pair and goes to the background when it is ready. It ends when the other end is
//! closed, so it outlives this process by no more than a moment, however this process ends.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::config::Forward;
use crate::sys::child;
use crate::text::{one_line, shorten};

/// The program.
pub(super) const PROGRAM: &str = "passt";
/// How often a start that takes long may be stopped.
const LOOK_EVERY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};
/// The most bytes of passt's own words that are read, from their end.
const MAX_READ: u64 = 4096;
/// The most characters of them in a message.
const MAX_SAID: usize = 300;
/// Starts of passt's lines that are no reason for anything.
const NOISE: [&str; 3] = [
    "Failed to send ",
    "Don't run as root.",
    "Can't run AVX2 build",
];
/// Its last lines that are passed on. The last one alone may only say that it ends.
const REASONS: usize = 2;

/// Why passt can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PasstError {
    /// The program is not installed.
    #[error(
        "`--net user` needs the program passt, which is not in PATH; install the package passt"
    )]
    Missing,
    /// It ended with an error.
    #[error("passt can't start: {said}; `passt --help` and its manual page explain that")]
    Refused {
        /// Its last lines, or how it ended.
        said: String,
    },
    /// The host can't start any program, or has no descriptor left.
    #[error(
        "passt can't be started ({0}); may this user run it, and are the limits on processes and open files high enough?"
    )]
    Start(#[source] io::Error),
    /// A port is in use.
    #[error(
        "{at} is in use on the host, so it can't be forwarded; end its user, or forward another port"
    )]
    PortInUse {
        /// The address and port.
        at: SocketAddr,
    },
    /// A port is reserved for privileged processes.
    #[error("port {} of the host is for privileged users; forward one from 1024 on", at.port())]
    PortDenied {
        /// The address and port.
        at: SocketAddr,
    },
    /// An address is not one of the host's.
    #[error("{} is not an address of this host; forward from one that `ip address` shows", at.ip())]
    Address {
        /// The address and port.
        at: SocketAddr,
    },
    /// The start was stopped.
    #[error("the start of passt was stopped")]
    Stopped,
}

/// Starts `program`, which is passt, and waits until it is ready. Returns the guest's end of the connection. `go_on`
/// may stop the wait.
///
/// # Errors
/// [`PasstError`] says what is missing or refused.
pub(super) fn start(
    program: &OsStr,
    forwards: &[Forward],
    mtu: Option<u16>,
    go_on: &dyn Fn() -> bool,
) -> Result<OwnedFd, PasstError> {
    forwards.iter().try_for_each(check_port)?;
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| PasstError::Start(errno.into()))?;
    // A file and not a pipe, which would fill and would need a reader.
    let said = memfd_create("passt", MemfdFlags::CLOEXEC);
    let said = File::from(said.map_err(|errno| PasstError::Start(errno.into()))?);
    let mut command = Command::new(program);
    command.args(arguments(theirs.as_raw_fd(), forwards, mtu));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(said.try_clone().map_err(PasstError::Start)?);
    child::pass(&mut command, theirs);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => PasstError::Missing,
        _ => PasstError::Start(error),
    })?;
    let status = wait(&mut child, go_on)?;
    match status.success() {
        true => Ok(ours),
        false => Err(PasstError::Refused {
            said: last_words(&said, status),
        }),
    }
}

/// passt's arguments, for a connection by `fd`.
fn arguments(fd: i32, forwards: &[Forward], mtu: Option<u16>) -> Vec<String> {
    let mut arguments = vec!["--quiet".to_owned(), "--fd".to_owned(), fd.to_string()];
    if let Some(mtu) = mtu {
        arguments.extend(["--mtu".to_owned(), mtu.to_string()]);
    }
    if !forwards.is_empty() {
        let forwards: Vec<String> = forwards.iter().map(Forward::to_string).collect();
        // Without the second option passt also forwards UDP ports of these numbers.
        arguments.extend(["--tcp-ports".to_owned(), forwards.join(",")]);
        arguments.extend(["--udp-ports".to_owned(), "none".to_owned()]);
    }
    arguments
}

/// Checks that a port of the host's is free. passt is content with either IPv4 or IPv6.
fn check_port(forward: &Forward) -> Result<(), PasstError> {
    let any = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let addresses: &[IpAddr] = match &forward.address {
        Some(address) => std::slice::from_ref(address),
        None => &any,
    };
    for &address in addresses {
        let at = SocketAddr::new(address, forward.host);
        let Err(error) = TcpListener::bind(at) else {
            continue;
        };
        return Err(match error.kind() {
            io::ErrorKind::AddrInUse => PasstError::PortInUse { at },
            io::ErrorKind::PermissionDenied => PasstError::PortDenied { at },
            io::ErrorKind::AddrNotAvailable if forward.address.is_some() => {
                PasstError::Address { at }
            }
            // A host may be without IPv4 or IPv6.
            _ => continue,
        });
    }
    Ok(())
}

/// Waits until passt's first process ends: it is ready then, or has failed.
fn wait(child: &mut Child, go_on: &dyn Fn() -> bool) -> Result<ExitStatus, PasstError> {
    let ended = pidfd_open(Pid::from_child(child), PidfdFlags::empty());
    let ended = ended.map_err(|errno| PasstError::Start(errno.into()));
    let stop = |child: &mut Child, why| {
        let _ = child.kill();
        let _ = child.wait();
        Err(why)
    };
    let ended = match ended {
        Ok(ended) => ended,
        Err(error) => return stop(child, error),
    };
    loop {
        match poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&LOOK_EVERY)) {
            Ok(1..) => return child.wait().map_err(PasstError::Start),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return stop(child, PasstError::Start(errno.into())),
        }
        if !go_on() {
            return stop(child, PasstError::Stopped);
        }
    }
}

/// The last lines that passt wrote about its failure, or how it ended.
fn last_words(said: &File, status: ExitStatus) -> String {
    let length = said.metadata().map_or(0, |file| file.len());
    let mut text = vec![0; length.min(MAX_READ) as usize];
    let read = said.read_at(&mut text, length.saturating_sub(MAX_READ));
    text.truncate(read.unwrap_or(0));
    let text = String::from_utf8_lossy(&text);
    let is_reason =
        |line: &&str| !line.is_empty() && !NOISE.iter().any(|noise| line.starts_with(noise));
    let reasons: Vec<&str> = text.lines().map(str::trim).filter(is_reason).collect();
    match &reasons[reasons.len().saturating_sub(REASONS)..] {
        [] => format!("it gave no reason ({status})"),
        last => shorten(&one_line(&last.join(", ")), MAX_SAID),
    }
}

#[cfg(test)]
mod tests;
