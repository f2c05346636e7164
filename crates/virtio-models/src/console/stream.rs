// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Open descriptors as a peer.

use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{Errno, read, retry_on_intr, write};

use super::peer::{Peer, Sources, would_block};

/// What any pipe that can be written takes at once (PIPE_BUF, pipe(7)).
const AT_ONCE: usize = 4096;

/// A pipe, file or terminal for each direction.
///
/// - It may block: then it is asked first, and written in small pieces. So descriptors of the caller's can be used as they
///   are.
/// - The end of the input closes the port, after the guest has all of it. A failure of the output does so if there is no
///   input.
/// - Nobody comes back: when the output has failed, what the guest sends is dropped.
pub struct Stream {
    input: Option<End>,
    output: Option<End>,
    has_input: bool,
    _kept: Option<Box<dyn Any + Send>>,
}

/// A direction.
#[derive(Debug)]
struct End {
    fd: OwnedFd,
    blocks: bool,
    has_ended: bool,
}

impl End {
    fn new(fd: OwnedFd) -> Self {
        let blocks = !fcntl_getfl(&fd).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK));
        End {
            fd,
            blocks,
            has_ended: false,
        }
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        (!self.has_ended).then(|| self.fd.as_fd())
    }

    /// Whether a call with this event would wait.
    fn waits(&self, event: PollFlags) -> bool {
        let mut source = [PollFd::new(&self.fd, event)];
        self.blocks && poll(&mut source, Some(&Timespec::default())) == Ok(0)
    }
}

impl Stream {
    /// A stream with these directions.
    pub fn new(input: Option<OwnedFd>, output: Option<OwnedFd>) -> Self {
        Stream {
            has_input: input.is_some(),
            input: input.map(End::new),
            output: output.map(End::new),
            _kept: None,
        }
    }

    /// Keeps something until the stream is dropped.
    #[must_use]
    pub fn keeping(mut self, kept: impl Any + Send) -> Self {
        self._kept = Some(Box::new(kept));
        self
    }
}

impl Peer for Stream {
    fn is_open(&self) -> bool {
        let deciding = if self.has_input {
            &self.input
        } else {
            &self.output
        };
        deciding.as_ref().is_some_and(|end| !end.has_ended)
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let Some(input) = self.input.as_mut().filter(|input| !input.has_ended) else {
            return Ok(0);
        };
        if input.waits(PollFlags::IN) {
            return would_block();
        }
        let result = retry_on_intr(|| read(&input.fd, &mut *bytes));
        input.has_ended = !matches!(result, Ok(1..) | Err(Errno::AGAIN));
        Ok(result?)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(output) = self.output.as_mut().filter(|output| !output.has_ended) else {
            return Ok(bytes.len());
        };
        if output.waits(PollFlags::OUT) {
            return would_block();
        }
        let piece = if output.blocks { AT_ONCE } else { usize::MAX };
        let piece = &bytes[..bytes.len().min(piece)];
        let result = retry_on_intr(|| write(&output.fd, piece));
        output.has_ended = !matches!(result, Ok(1..) | Err(Errno::AGAIN));
        Ok(result?)
    }

    fn sources(&self) -> Sources<'_> {
        Sources {
            input: self.input.as_ref().and_then(End::source),
            output: self.output.as_ref().and_then(End::source),
            other: None,
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("input", &self.input)
            .field("output", &self.output)
            .finish_non_exhaustive()
    }
}
