// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One connection: a process of the host says what to run, and then has the command.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::{Shutdown, shutdown};

use super::running::Running;
use crate::exec::VERSION;
use crate::exec::frame::{Bad, Kind, Refusal, Start, Unread};
use crate::exec::wire::{Peer, Wire};

/// How long the host may take to say its command, and to notice the end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves a connection to its end.
pub(super) fn serve(socket: OwnedFd) -> io::Result<()> {
    let mut wire = Wire::new(socket)?;
    if let Some(start) = hear(&mut wire)? {
        match Running::new(&start) {
            Ok(running) => running.attend(&mut wire)?,
            Err((refusal, reason)) => wire.push(Kind::Refused, &refusal.payload(&reason)),
        }
    }
    part(&mut wire)
}

/// Waits for the command. `None` if there is none for this version, which the host is told.
fn hear(wire: &mut Wire) -> io::Result<Option<Start>> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(frame) = wire.next().map_err(bad)? {
            return match (frame.kind, Start::parse(frame.payload)) {
                (Kind::Start, Ok(start)) => Ok(Some(start)),
                (Kind::Start, Err(Unread::Version(version))) => {
                    let reason = format!(
                        "the agent speaks version {VERSION} of the protocol, not {version}; use one mini-vmm on both sides"
                    );
                    wire.push(Kind::Refused, &Refusal::Version.payload(&reason));
                    Ok(None)
                }
                (kind @ Kind::Start, Err(Unread::Payload)) => Err(bad(Bad::Payload(kind))),
                (kind, _) => Err(bad(Bad::Order(kind))),
            };
        }
        wait(wire, true, Some(until))?;
        if wire.fill()? == Peer::Gone {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Sends the rest, however slow the host is, and then waits until it has closed the connection.
fn part(wire: &mut Wire) -> io::Result<()> {
    loop {
        if wire.flush()? == Peer::Gone {
            return Ok(());
        }
        if wire.is_flushed() {
            break;
        }
        wait(wire, false, None)?;
    }
    let _ = shutdown(wire.socket(), Shutdown::Write);
    let until = Instant::now() + PATIENCE;
    // There may be input for a command that has ended.
    while wire.fill()? == Peer::There {
        while wire.next().map_err(bad)?.is_some() {}
        wait(wire, true, Some(until))?;
    }
    Ok(())
}

/// Waits until the connection is ready.
fn wait(wire: &Wire, reads: bool, until: Option<Instant>) -> io::Result<()> {
    let left = until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
    let mut fds = [PollFd::from_borrowed_fd(
        wire.socket(),
        wire.interest(reads),
    )];
    match retry_on_intr(|| poll(&mut fds, left.as_ref()))? {
        0 => Err(ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs() as i64,
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// A host that breaks the protocol.
pub(super) fn bad(why: Bad) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}
