// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A link to a process on the host, such as passt: frames on a stream socket, each after its length in four bytes, most
//! significant first.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::link::{Link, LinkError, Offloads};
use crate::sys::{Frame, HEADER, MAX_FRAME, Room};

/// The bytes that hold a frame's length.
const PREFIX: usize = 4;
/// The bytes that are received at once; more than the longest frame.
const INBOX: usize = 128 << 10;

/// A link to a process that has the other end of a stream socket.
///
/// At most one frame is held back when the socket is full.
#[derive(Debug)]
pub struct Stream {
    socket: OwnedFd,
    /// Received bytes, from `start` to `end`. Empty before the first frame.
    inbox: Vec<u8>,
    start: usize,
    end: usize,
    /// The rest of a frame of which the socket took a part.
    outbox: Vec<u8>,
    /// How much of `outbox` is sent.
    sent: usize,
}

impl Stream {
    /// A link over a connected stream socket. It is made non-blocking.
    ///
    /// # Errors
    /// The host's failure.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let flags = fcntl_getfl(&socket)?;
        fcntl_setfl(&socket, flags | OFlags::NONBLOCK)?;
        Ok(Stream {
            socket,
            inbox: Vec::new(),
            start: 0,
            end: 0,
            outbox: Vec::new(),
            sent: 0,
        })
    }

    /// The length of the next frame, if all of it has been received.
    fn next(&self) -> Result<Option<usize>, LinkError> {
        let received = &self.inbox[self.start..self.end];
        let Some((prefix, rest)) = received.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*prefix);
        if len == 0 || len > MAX_FRAME as u32 {
            let text = format!("it sent a frame of {len} bytes");
            let error = io::Error::new(io::ErrorKind::InvalidData, text);
            return Err(LinkError::Lost(error));
        }
        Ok(Some(len as usize).filter(|len| rest.len() >= *len))
    }

    /// Receives more bytes.
    fn fetch(&mut self) -> Result<(), LinkError> {
        self.inbox.resize(INBOX, 0);
        self.inbox.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let space = &mut self.inbox[self.end..];
        match recv(&self.socket, space, RecvFlags::DONTWAIT) {
            Ok((0, _)) => Err(LinkError::Lost(io::ErrorKind::UnexpectedEof.into())),
            Ok((received, _)) => {
                self.end += received;
                Ok(())
            }
            Err(error) => Err(failure(error.into())),
        }
    }
}

fn failure(error: io::Error) -> LinkError {
    const BUSY: i32 = Errno::AGAIN.raw_os_error();
    const INTERRUPTED: i32 = Errno::INTR.raw_os_error();
    const NO_MEMORY: i32 = Errno::NOMEM.raw_os_error();
    const NO_BUFFERS: i32 = Errno::NOBUFS.raw_os_error();
    match error.raw_os_error() {
        Some(BUSY | INTERRUPTED) => LinkError::Busy,
        Some(NO_MEMORY | NO_BUFFERS) => LinkError::Refused(error),
        _ => LinkError::Lost(error),
    }
}

impl Link for Stream {
    fn source(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn has_headers(&self) -> bool {
        false
    }

    fn configure(&mut self, _: Offloads) -> Result<(), LinkError> {
        Ok(())
    }

    fn set_active(&mut self, _: bool) -> Result<(), LinkError> {
        Ok(())
    }

    fn send(&mut self, frame: &mut Frame<'_>) -> Result<(), LinkError> {
        self.flush()?;
        // Fits: a chain has at most 2^32 bytes, and the device checks the length.
        let prefix = (frame.len() as u32).to_be_bytes();
        let total = PREFIX + frame.len();
        let sent = frame.send(self.socket.as_fd(), &prefix).map_err(failure)?;
        if sent < total {
            self.outbox.resize(total - sent, 0);
            let (head, rest) = self.outbox.split_at_mut(PREFIX.saturating_sub(sent));
            head.copy_from_slice(&prefix[PREFIX - head.len()..]);
            frame.copy_to(sent.saturating_sub(PREFIX), rest);
            self.sent = 0;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), LinkError> {
        while self.sent < self.outbox.len() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let sent = send(&self.socket, &self.outbox[self.sent..], flags);
            self.sent += sent.map_err(|error| match failure(error.into()) {
                // The peer waits for the rest of this frame.
                LinkError::Refused(_) => LinkError::Busy,
                error => error,
            })?;
        }
        self.outbox.clear();
        self.sent = 0;
        Ok(())
    }

    fn receive(&mut self, room: Room<'_>) -> Result<usize, LinkError> {
        let len = loop {
            match self.next()? {
                Some(len) => break len,
                None => self.fetch()?,
            }
        };
        let at = self.start + PREFIX;
        self.start = at + len;
        let frame = &self.inbox[at..self.start];
        room.fill([0; HEADER], frame).map_err(LinkError::Lost)
    }
}
