// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The connection to a backend, with a deadline for everything.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};

use super::fault::Fault;
use super::wire::{self, HEADER, Request};

/// The most descriptors of a message: those of a memory table (`VHOST_MEMORY_BASELINE_NREGIONS`).
pub(super) const MAX_FDS: usize = 8;

/// A connected stream socket, and the answer that has arrived in part.
#[derive(Debug)]
pub(super) struct Socket {
    socket: OwnedFd,
    received: Vec<u8>,
}

impl Socket {
    pub fn new(socket: OwnedFd) -> Self {
        Socket {
            socket,
            received: Vec::new(),
        }
    }

    pub fn source(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a message with descriptors, until `by`.
    pub fn send(
        &self,
        request: Request,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
        by: Instant,
    ) -> Result<(), Fault> {
        let (mut sent, mut fds) = (0, fds);
        while sent < bytes.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(Fault::Host(io::ErrorKind::InvalidInput.into()));
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let rest = [IoSlice::new(&bytes[sent..])];
            match sendmsg(&self.socket, &rest, &mut control, flags) {
                Ok(count) => (sent, fds) = (sent + count, &[]),
                Err(Errno::AGAIN) => self.wait(request, PollFlags::OUT, by)?,
                Err(error) => self.failed(error)?,
            }
        }
        Ok(())
    }

    /// Waits for the answer to `request` until `by`.
    pub fn receive(&mut self, request: Request, by: Instant) -> Result<Vec<u8>, Fault> {
        loop {
            if let Some(body) = self.take(request)? {
                return Ok(body);
            }
            self.wait(request, PollFlags::IN, by)?;
        }
    }

    /// The answer to `request`, if all of it has arrived.
    pub fn take(&mut self, request: Request) -> Result<Option<Vec<u8>>, Fault> {
        loop {
            let has = self.received.len();
            let wanted = if has < HEADER {
                HEADER
            } else {
                let len = wire::body_len(&self.received[..HEADER], request);
                HEADER + len.ok_or(Fault::Answer(request))?
            };
            if has == wanted {
                return Ok(Some(std::mem::take(&mut self.received).split_off(HEADER)));
            }
            self.received.resize(wanted, 0);
            // Descriptors that come with it are closed by the kernel.
            let got = recv(&self.socket, &mut self.received[has..], RecvFlags::DONTWAIT);
            let count = got.map_or(0, |(count, _)| count);
            self.received.truncate(has + count);
            match got {
                Ok((0, _)) => return Err(Fault::Closed),
                Ok(_) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => self.failed(error)?,
            }
        }
    }

    /// What it means that the socket is readable while no answer is due.
    pub fn unasked(&self) -> Result<(), Fault> {
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        match recv(&self.socket, &mut [0], flags) {
            Ok((0, _)) => Err(Fault::Closed),
            Ok(_) => Err(Fault::Unasked),
            Err(Errno::AGAIN) => Ok(()),
            Err(error) => self.failed(error),
        }
    }

    /// Waits until there is something to read. It is an error if that takes until `by`.
    pub fn wait_to_read(&self, request: Request, by: Instant) -> Result<(), Fault> {
        self.wait(request, PollFlags::IN, by)
    }

    fn failed(&self, error: Errno) -> Result<(), Fault> {
        match error {
            Errno::INTR => Ok(()),
            Errno::PIPE | Errno::CONNRESET => Err(Fault::Closed),
            error => Err(Fault::Host(error.into())),
        }
    }

    fn wait(&self, request: Request, flags: PollFlags, by: Instant) -> Result<(), Fault> {
        let left = by.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Fault::Silent(request));
        }
        let left = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput.into());
        let left = left.map_err(Fault::Host)?;
        match poll(&mut [PollFd::new(&self.socket, flags)], Some(&left)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(Fault::Host(error.into())),
        }
    }
}
