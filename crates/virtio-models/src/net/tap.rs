// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Taps: network interfaces of the host whose frames a process reads and writes (Linux's
//! Documentation/networking/tuntap.rst).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libc::{IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, IFNAMSIZ};
use libc::{TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
use thiserror::Error;

use super::link::{Link, LinkError, Offloads};
use crate::sys::{self, Frame, HEADER, Room};

const KIND: libc::c_int = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;

/// Why a tap can't be used. Each is one sentence with the next step.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TapError {
    /// It is no interface's name.
    #[error("{0:?} is no name of a network interface: use 1 to 15 letters and digits")]
    Name(String),
    /// There is no such interface.
    #[error(
        "there is no network interface {0:?}: make it, as with `ip tuntap add {0} mode tap user $USER`"
    )]
    Missing(String),
    /// It is an interface of another kind.
    #[error(
        "the network interface {0:?} is not a tap: name one that was made by `ip tuntap add … mode tap`"
    )]
    NotTap(String),
    /// Another process has it.
    #[error("the tap {0:?} is in use by another process: stop that one, or make another tap")]
    Busy(String),
    /// The user may not use it.
    #[error(
        "the tap {0:?} belongs to another user: make one for this user, as with `ip tuntap add … mode tap user $USER`"
    )]
    Denied(String),
    /// It has a single queue.
    #[error(
        "the tap {0:?} has a single queue: make it with `ip tuntap add {0} mode tap multi_queue`, or leave out `queues`"
    )]
    SingleQueue(String),
    /// There are no taps.
    #[error(
        "/dev/net/tun can't be opened: {0}; load the module `tun`, and let this user read and write the file"
    )]
    NoTun(#[source] io::Error),
    /// The file is not a tap.
    #[error(
        "the file is not an open tap: pass one that was opened from /dev/net/tun and attached with IFF_TAP"
    )]
    NotTapFd,
    /// The tap was opened without what is necessary.
    #[error("the open tap has no headers: attach it with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR")]
    FdFlags,
    /// The host failed.
    #[error("a tap can't be {what}: {source}; check the host's network")]
    Host {
        /// What failed.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> TapError {
    move |source| TapError::Host { what, source }
}

/// A queue of a tap.
#[derive(Debug)]
pub struct Tap {
    file: OwnedFd,
    name: String,
    has_queues: bool,
}

impl Tap {
    /// Opens an existing tap with `pairs` queues, one for each pair of the device's. Creates no interface. A tap that was
    /// made with `multi_queue` may have any number of queues, others have one.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn open(name: &str, pairs: u16) -> Result<Vec<Tap>, TapError> {
        let text = || name.to_owned();
        let padded = pad(name).ok_or_else(|| TapError::Name(text()))?;
        // The kernel would make a missing one.
        if !exists(name)? {
            return Err(TapError::Missing(text()));
        }
        let queues = if pairs > 1 { IFF_MULTI_QUEUE } else { 0 };
        let first = match attach(padded, queues) {
            // It has the other number of queues, or is no tap.
            Err(error) if is(&error, Errno::INVAL) => {
                match attach(padded, queues ^ IFF_MULTI_QUEUE) {
                    Ok(_) if pairs > 1 => return Err(TapError::SingleQueue(text())),
                    Err(error) if pairs > 1 && is(&error, Errno::BUSY) => {
                        return Err(TapError::SingleQueue(text()));
                    }
                    other => other,
                }
            }
            other => other,
        };
        let taps = std::iter::once(first)
            .chain((1..pairs).map(|_| attach(padded, queues)))
            .map(|file| Self::prepare(file.map_err(|error| failed(name, error))?));
        taps.collect()
    }

    /// A tap that the caller has opened and attached, with one queue. It is made non-blocking.
    ///
    /// # Errors
    /// [`TapError::NotTapFd`], [`TapError::FdFlags`], [`TapError::Host`].
    pub fn from_fd(file: OwnedFd) -> Result<Tap, TapError> {
        Self::prepare(file)
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn prepare(file: OwnedFd) -> Result<Tap, TapError> {
        let (name, flags) = sys::interface(file.as_fd()).map_err(|_| TapError::NotTapFd)?;
        check(flags)?;
        let flow =
            fcntl_getfl(&file).and_then(|flags| fcntl_setfl(&file, flags | OFlags::NONBLOCK));
        flow.map_err(|error| host("made non-blocking")(error.into()))?;
        sys::set_header(file.as_fd(), HEADER as libc::c_int).map_err(host("given headers"))?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or(&[]);
        Ok(Tap {
            name: String::from_utf8_lossy(name).into_owned(),
            has_queues: flags & IFF_MULTI_QUEUE != 0,
            file,
        })
    }
}

/// Checks the flags of an attached file.
const fn check(flags: libc::c_int) -> Result<(), TapError> {
    if flags & IFF_TAP == 0 {
        return Err(TapError::NotTapFd);
    }
    if flags & KIND != KIND {
        return Err(TapError::FdFlags);
    }
    Ok(())
}

fn pad(name: &str) -> Option<[u8; IFNAMSIZ]> {
    let mut padded = [0; IFNAMSIZ];
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"/:%".contains(&byte);
    let is_name = (1..IFNAMSIZ).contains(&name.len())
        && name.bytes().all(is_plain)
        && !matches!(name, "." | "..");
    is_name.then(|| {
        padded[..name.len()].copy_from_slice(name.as_bytes());
        padded
    })
}

fn exists(name: &str) -> Result<bool, TapError> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    );
    let socket = socket.map_err(|error| host("looked up")(error.into()))?;
    match netdevice::name_to_index(&socket, name) {
        Ok(_) => Ok(true),
        Err(Errno::NODEV) => Ok(false),
        Err(error) => Err(host("looked up")(error.into())),
    }
}

/// Why a queue isn't attached.
#[derive(Debug)]
enum AttachError {
    Open(Errno),
    Attach(io::Error),
}

fn is(error: &AttachError, errno: Errno) -> bool {
    matches!(error, AttachError::Attach(error) if error.raw_os_error() == Some(errno.raw_os_error()))
}

fn attach(name: [u8; IFNAMSIZ], queues: libc::c_int) -> Result<OwnedFd, AttachError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = open("/dev/net/tun", flags, Mode::empty()).map_err(AttachError::Open)?;
    sys::attach(file.as_fd(), name, KIND | queues).map_err(AttachError::Attach)?;
    Ok(file)
}

fn failed(name: &str, error: AttachError) -> TapError {
    let name = name.to_owned();
    let source = match error {
        AttachError::Open(error) => return TapError::NoTun(error.into()),
        AttachError::Attach(source) => source,
    };
    let errno = Errno::from_io_error(&source);
    match errno {
        Some(Errno::INVAL) => TapError::NotTap(name),
        Some(Errno::BUSY | Errno::TOOBIG) => TapError::Busy(name),
        Some(Errno::PERM) => TapError::Denied(name),
        _ => TapError::Host {
            what: "attached",
            source,
        },
    }
}

/// Which failure of a read or a write it is.
fn failure(error: io::Error) -> LinkError {
    match Errno::from_io_error(&error) {
        Some(Errno::AGAIN | Errno::INTR) => LinkError::Busy,
        // A write to an interface that is down.
        Some(Errno::IO | Errno::NETDOWN) => LinkError::Down(error),
        // The interface was deleted.
        Some(Errno::BADFD | Errno::BADF | Errno::NODEV | Errno::NXIO) => LinkError::Lost(error),
        _ => LinkError::Refused(error),
    }
}

impl Link for Tap {
    fn source(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn has_headers(&self) -> bool {
        true
    }

    fn configure(&mut self, offloads: Offloads) -> Result<(), LinkError> {
        let Offloads { csum, tso4, tso6 } = offloads;
        let flags = [(csum, TUN_F_CSUM), (tso4, TUN_F_TSO4), (tso6, TUN_F_TSO6)];
        let wanted = flags.into_iter().filter(|(wanted, _)| *wanted);
        let flags = wanted.fold(0, |all, (_, flag)| all | flag);
        sys::set_offloads(self.file.as_fd(), flags).map_err(failure)
    }

    fn set_active(&mut self, active: bool) -> Result<(), LinkError> {
        if !self.has_queues {
            return Ok(());
        }
        match sys::set_queue(self.file.as_fd(), active) {
            // It is attached or detached already.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => Ok(()),
            set => set.map_err(failure),
        }
    }

    fn send(&mut self, frame: &mut Frame<'_>) -> Result<(), LinkError> {
        frame.write(self.file.as_fd()).map(drop).map_err(failure)
    }

    fn receive(&mut self, room: Room<'_>) -> Result<usize, LinkError> {
        room.read(self.file.as_fd()).map_err(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_tap_needs_its_flags() {
        for more in [0, IFF_MULTI_QUEUE, libc::IFF_PERSIST] {
            assert!(check(KIND | more).is_ok());
            for without in [IFF_NO_PI, IFF_VNET_HDR] {
                let checked = check(KIND & !without | more);
                assert!(matches!(checked, Err(TapError::FdFlags)), "{without:#x}");
            }
            let tun = KIND & !IFF_TAP | libc::IFF_TUN | more;
            assert!(matches!(check(tun), Err(TapError::NotTapFd)));
        }
    }

    #[test]
    fn each_failure_has_its_sentence() {
        let attach = |errno: Errno| failed("tap0", AttachError::Attach(errno.into())).to_string();
        for (errno, says) in [
            (Errno::PERM, "belongs to another user"),
            (Errno::BUSY, "in use by another process"),
            (Errno::TOOBIG, "in use by another process"),
            (Errno::INVAL, "is not a tap"),
            (Errno::NOMEM, "check the host's network"),
        ] {
            assert!(attach(errno).contains(says), "{}", attach(errno));
        }
        let open = failed("tap0", AttachError::Open(Errno::ACCESS)).to_string();
        assert!(open.contains("load the module `tun`"), "{open}");
    }
}
