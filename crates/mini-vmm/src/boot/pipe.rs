// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pipes and FIFOs as images, such as `<(zcat vmlinux.gz)`: read once, to their end.

use std::fs::File;
use std::io::{self, ErrorKind, Read};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::error::FileError;
use super::image::Ask;

/// The default capacity of a pipe.
const PIECE: usize = 64 << 10;
/// How often to ask whether to go on while waiting for a pipe.
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Reads `pipe` to its end, at most `max` bytes. Waits for a FIFO that has no writer yet.
pub(super) fn read(pipe: &File, max: u64, ask: Ask<'_>) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    let mut piece = vec![0; PIECE];
    loop {
        ask(bytes.len() as u64).map_err(FileError::Read)?;
        // A FIFO without a writer yet reads as if at its end. Only poll distinguishes the two.
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

/// Waits a moment for data or the end of the pipe.
fn is_ready(pipe: &File) -> io::Result<bool> {
    let mut fds = [PollFd::new(pipe, PollFlags::IN)];
    match poll(&mut fds, Some(&TICK)) {
        Ok(count) => Ok(count > 0),
        // A signal, perhaps one that stops the program.
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
