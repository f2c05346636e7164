// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A connection that never waits: frames come in and go out in buffers of limited size.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::{Errno, ioctl_fionbio, read, retry_on_intr, write};

use super::frame::{self, Bad, Frame, Kind, MAX_DATA};

/// How much is read at once.
const READ: usize = 64 << 10;
/// Nothing is added to more output than this, but for frames of a few bytes.
const FULL: usize = 128 << 10;

/// A connection.
#[derive(Debug)]
pub(super) struct Wire {
    socket: OwnedFd,
    input: Vec<u8>,
    /// The bytes of `input` that were taken.
    taken: usize,
    output: Vec<u8>,
    /// The bytes of `output` that were sent.
    sent: usize,
    /// The other side takes nothing more.
    is_deaf: bool,
    /// Where all data arrives first.
    arrived: Vec<u8>,
}

/// Whether the other side is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    There,
    Gone,
}

impl Wire {
    /// Takes a connected socket.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        ioctl_fionbio(&socket, true)?;
        Ok(Wire {
            socket,
            input: Vec::new(),
            taken: 0,
            output: Vec::new(),
            sent: 0,
            is_deaf: false,
            arrived: vec![0; READ],
        })
    }

    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What to wait for.
    pub fn interest(&self, reads: bool) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, reads);
        flags.set(PollFlags::OUT, self.sent < self.output.len());
        flags
    }

    /// Whether more output may be added.
    pub fn has_room(&self) -> bool {
        self.output.len() - self.sent < FULL
    }

    /// Whether all output was sent.
    pub fn is_flushed(&self) -> bool {
        self.sent == self.output.len()
    }

    /// Reads what is there, at most 64 KiB.
    pub fn fill(&mut self) -> io::Result<Peer> {
        self.input.drain(..self.taken);
        self.taken = 0;
        match retry_on_intr(|| read(&self.socket, &mut self.arrived)) {
            Ok(0) => return Ok(Peer::Gone),
            Ok(count) => self.input.extend_from_slice(&self.arrived[..count]),
            Err(Errno::AGAIN) => {}
            Err(error) => return gone(error),
        }
        Ok(Peer::There)
    }

    /// Takes the next frame that is whole.
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, Bad> {
        let frame = frame::parse(&self.input[self.taken..])?;
        if let Some(frame) = &frame {
            self.taken += frame.size();
        }
        Ok(frame)
    }

    /// Adds a frame.
    pub fn push(&mut self, kind: Kind, payload: &[u8]) {
        self.output.extend(frame::header(kind, payload.len()));
        self.output.extend(payload);
    }

    /// Adds a frame with what `from` has, at most `most` bytes. Returns their number. Nothing is added at its end, nor for
    /// an error.
    pub fn push_from(
        &mut self,
        kind: Kind,
        from: BorrowedFd<'_>,
        most: usize,
    ) -> io::Result<usize> {
        let place = &mut self.arrived[..most.min(MAX_DATA)];
        let count = retry_on_intr(|| read(from, &mut *place))?;
        if count > 0 {
            self.output.extend(frame::header(kind, count));
            self.output.extend_from_slice(&place[..count]);
        }
        Ok(count)
    }

    /// Sends what the other side has room for. What it will never take is dropped.
    pub fn flush(&mut self) -> io::Result<Peer> {
        while self.sent < self.output.len() && !self.is_deaf {
            match retry_on_intr(|| write(&self.socket, &self.output[self.sent..])) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => return Ok(Peer::There),
                Err(error) => self.is_deaf = gone(error)? == Peer::Gone,
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(if self.is_deaf {
            Peer::Gone
        } else {
            Peer::There
        })
    }
}

/// Whether an error only means that the other side has ended. A guest that was restored gives these, too.
fn gone(error: Errno) -> io::Result<Peer> {
    match error {
        Errno::CONNRESET | Errno::PIPE | Errno::NOTCONN | Errno::TIMEDOUT => Ok(Peer::Gone),
        error => Err(error.into()),
    }
}
