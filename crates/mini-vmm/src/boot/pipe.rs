// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pipes and FIFOs as images, such as `<(zcat vmlinux.gz)`: read once, to their end.

use std::fs::File;
use std::io::{self, ErrorKind, Read};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::error::FileError;
use super::image::Ask;

/// What a pipe holds by default.
const PIECE: usize = 64 << 10;
/// How long to wait for a pipe between questions whether to go on.
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// All that `pipe` brings, at most `max` bytes. A FIFO that nobody has opened for writing is waited for.
pub(super) fn read(pipe: &File, max: u64, ask: Ask<'_>) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    let mut piece = vec![0; PIECE];
    loop {
        ask(bytes.len() as u64).map_err(FileError::Read)?;
        // A FIFO that nobody has opened yet reads as if it were at its end; only poll tells these apart.
        if !is_ready(pipe).map_err(FileError::Read)? {
            continue;
        }
        match (&*pipe).read(&mut piece) {
            Ok(0) if bytes.is_empty() => return Err(FileError::EmptyPipe),
            Ok(0) => return Ok(bytes),
            Ok(count) if bytes.len() as u64 + count as u64 > max => {
                return Err(FileError::LongPipe { max });
            }
            Ok(count) => bytes.extend(&piece[..count]),
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(e) => return Err(FileError::Read(e)),
        }
    }
}

/// Waits a moment for bytes or the end of the pipe.
fn is_ready(pipe: &File) -> io::Result<bool> {
    let mut fds = [PollFd::new(pipe, PollFlags::IN)];
    match poll(&mut fds, Some(&TICK)) {
        Ok(count) => Ok(count > 0),
        // A signal, perhaps the word to stop.
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
