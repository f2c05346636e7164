// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where log lines go, and which: both can change while the process runs.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use log::LevelFilter;

use crate::sync::lock;

/// Where log lines go instead of standard error.
static FILE: Mutex<Option<File>> = Mutex::new(None);

/// Writes log lines to the file or FIFO at `path` from now on. A file is created, or appended to. Lines that a FIFO has
/// no room for are lost.
///
/// # Errors
/// It can't be opened for writing. Then nothing changes.
pub fn redirect(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    // Also for reading: a FIFO needs no reader then.
    options
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path)?;
    *lock(&FILE) = Some(file);
    Ok(())
}

/// Shows log lines up to `level` from now on, as far as the environment allows it.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// Whether log lines go to a file.
pub(super) fn is_redirected() -> bool {
    lock(&FILE).is_some()
}

/// The present target. It gets each line in one piece.
#[derive(Debug)]
pub(super) struct Sink;

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &mut *lock(&FILE) {
            Some(file) => file.write_all(line),
            None => io::stderr().write_all(line),
        }?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
