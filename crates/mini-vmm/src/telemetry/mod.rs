// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What other programs read about a run: its counters (`--metrics`, `GET /metrics`) and events (`--event-log`).
//!
//! Counters stay where they are counted. A meter reads them when someone asks. Lines are written by a thread that
//! exists only with these options, so neither a slow reader nor a missing one holds up the machine.

mod api_counts;
mod events;
mod json;
mod meter;
mod prometheus;
mod reporter;
mod sample;
mod sink;

use std::io;
use std::path::{Path, PathBuf};

pub(crate) use api_counts::ApiCounts;
pub(crate) use events::{Event, EventLog};
pub(crate) use meter::{Meter, NotFlushed, Sources};
pub(crate) use reporter::Reporter;

/// Why counters and events can't be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be opened.
    #[error("{}: {what} can't be written here: {source}; name a file or a FIFO", path.display())]
    File {
        /// What is written to it.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// The file is an input of the machine.
    #[error("{}: {what} would damage this file, which the machine is made from; choose another path", path.display())]
    OwnInput {
        /// What would be written to it.
        what: &'static str,
        /// Its path.
        path: PathBuf,
    },
    /// The descriptor of events is not a number.
    #[error(
        "events can't be written to fd:{0}: this is no descriptor; give its number, such as fd:3"
    )]
    Descriptor(String),
    /// The thread can't be started, or no file descriptor is left.
    #[error(
        "nothing can write metrics and events: {0}; raise the limits on threads and open files"
    )]
    Start(io::Error),
}

/// Checks that metrics can be written to `path`, and creates the file.
///
/// # Errors
/// [`Error::File`] says why not.
pub(crate) fn check(path: &Path) -> Result<(), Error> {
    reporter::open("metrics", path).map(drop)
}
