// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A connected process of the host: its socket, and what it has still to take.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use virtio_transport::device::{Interest, Io};

/// The fewest bytes to read at once.
const LEAST: usize = 4 << 10;
/// The most bytes to read at once, and of a packet.
pub const MAX_PACKET: usize = 64 << 10;

/// The process's data for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// There was none.
    Waits,
    /// There may be some.
    Due,
}

/// A process of the host.
#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
    /// What the socket is watched for, if it is.
    watched: Option<Interest>,
    pub(super) reading: Reading,
    /// There is data that can't be read now, and the socket said so.
    pub(super) is_insisting: bool,
    /// How many bytes to read next.
    appetite: usize,
    /// The guest's bytes that the process has still to take, from `start` on.
    rest: Vec<u8>,
    start: usize,
    /// Whether the process has still to be told that the guest sends no more.
    is_ending: bool,
}

impl Link {
    pub(super) const fn new(socket: OwnedFd) -> Self {
        Link {
            socket,
            watched: None,
            reading: Reading::Due,
            is_insisting: false,
            appetite: LEAST,
            rest: Vec::new(),
            start: 0,
            is_ending: false,
        }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Watches the socket for this, or no longer.
    pub(super) fn watch(
        &mut self,
        io: &mut Io<'_>,
        token: u32,
        wanted: Option<Interest>,
    ) -> io::Result<()> {
        if self.watched == wanted {
            return Ok(());
        }
        match wanted {
            Some(interest) => io.watch(self.socket.as_fd(), token, interest)?,
            None => io.unwatch(self.socket.as_fd(), token)?,
        }
        self.watched = wanted;
        Ok(())
    }

    pub(super) fn is_watched_for_reading(&self) -> bool {
        self.watched.is_some_and(|interest| interest.readable)
    }

    /// How many bytes to read at once. A process that sends much gets more.
    pub(super) const fn appetite(&self) -> usize {
        self.appetite
    }

    /// Learns from a read of `len` bytes, where `wanted` had been possible.
    pub(super) fn learn(&mut self, len: usize, wanted: usize) {
        self.appetite = match len == wanted {
            true => (2 * self.appetite).min(MAX_PACKET),
            false => len.next_power_of_two().clamp(LEAST, MAX_PACKET),
        };
    }

    /// Whether the process closed the socket, or can't be reached.
    pub(super) fn is_hung_up(&self) -> bool {
        let mut source = [PollFd::new(&self.socket, PollFlags::empty())];
        let polled = poll(&mut source, Some(&Timespec::default()));
        polled.is_ok_and(|ready| ready != 0)
    }

    /// How many bytes the process has still to take.
    pub(super) const fn kept(&self) -> usize {
        self.rest.len() - self.start
    }

    /// A place for `len` more bytes that the process has still to take.
    pub(super) fn keep(&mut self, len: usize) -> &mut [u8] {
        self.rest.drain(..self.start);
        self.start = 0;
        let from = self.rest.len();
        self.rest.resize(from + len, 0);
        &mut self.rest[from..]
    }

    /// Drops what the process has still to take. Returns how many bytes.
    pub(super) fn forget(&mut self) -> usize {
        let kept = self.kept();
        (self.rest, self.start) = (Vec::new(), 0);
        kept
    }

    /// Sends what was kept. Returns how many bytes the process took.
    pub(super) fn flush(&mut self) -> io::Result<usize> {
        if self.kept() == 0 {
            return Ok(0);
        }
        let sent = self.send(&self.rest[self.start..])?;
        self.start += sent;
        if self.kept() == 0 {
            self.forget();
            if self.is_ending {
                self.shut(Shutdown::Write);
            }
        }
        Ok(sent)
    }

    /// Sends bytes, as far as that is possible without waiting.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match send(
            &self.socket,
            bytes,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        ) {
            Ok(sent) => Ok(sent),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// The guest sends no more. The process learns it after what it has still to take.
    pub(super) fn end(&mut self) {
        self.is_ending = true;
        if self.kept() == 0 {
            self.shut(Shutdown::Write);
        }
    }

    /// The guest receives no more.
    pub(super) fn deafen(&mut self) {
        self.shut(Shutdown::Read);
    }

    fn shut(&self, how: Shutdown) {
        // Fails only if the process went, which is seen otherwise.
        let _ = shutdown(&self.socket, how);
    }
}
