// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file or FIFO to which lines are written without waiting.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Where lines go. At most one line waits for room.
#[derive(Debug)]
pub(super) struct Sink {
    file: File,
    /// The rest of a line that had no room.
    rest: Vec<u8>,
    /// A line was cut off by a failure.
    is_cut: bool,
}

impl Sink {
    /// Opens the file at `path` to append to it. Creates it if nothing is there.
    pub fn open(path: &Path) -> io::Result<Self> {
        // A FIFO without a reader can't be opened only for writing without waiting.
        let is_fifo = fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo());
        let is_ours = is_fifo && !path.starts_with("/proc");
        let file = OpenOptions::new()
            .read(is_ours)
            .append(true)
            .create(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)?;
        Ok(Sink {
            file,
            rest: Vec::new(),
            is_cut: false,
        })
    }

    /// Whether a line waits for room.
    pub fn is_full(&self) -> bool {
        !self.rest.is_empty()
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Writes a line, or as much of it as there is room for. Returns whether it was taken.
    ///
    /// # Errors
    /// The host failed. The line is lost.
    pub fn write(&mut self, line: &[u8]) -> io::Result<bool> {
        self.push()?;
        if self.is_full() {
            return Ok(false);
        }
        if std::mem::take(&mut self.is_cut) {
            self.rest.push(b'\n');
        }
        self.rest.extend_from_slice(line);
        self.push()?;
        Ok(true)
    }

    /// Writes more of a line that waits.
    ///
    /// # Errors
    /// The host failed. The rest of the line is lost.
    pub fn push(&mut self) -> io::Result<()> {
        let mut done = 0;
        let result = loop {
            if done == self.rest.len() {
                break Ok(());
            }
            match self.file.write(&self.rest[done..]) {
                Ok(0) => break Err(ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.rest.drain(..done);
        if result.is_err() {
            self.is_cut |= done > 0;
            self.rest.clear();
        }
        result
    }
}
