// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk's messages to the VMM.

use std::fmt;
use std::io;

use thiserror::Error;

/// A message that a VMM may want to log.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Notice {
    /// io_uring is not available, so threads are used.
    #[error("io_uring can't be used ({0}): threads read and write the disk in its place")]
    NoUring(#[source] io::Error),
    /// The host can't do an operation. Reported once for each kind of request.
    #[error("the host's disk can't do a {request} ({error}): {instead}")]
    Unsupported {
        /// The kind of request.
        request: &'static str,
        /// What happens instead.
        instead: &'static str,
        /// The error.
        #[source]
        error: io::Error,
    },
    /// What the VMM asked for can't be done.
    #[error("the disk's {what} can't be changed ({error}), and stays as it was")]
    Unchanged {
        /// What should have changed.
        what: &'static str,
        /// The error.
        #[source]
        error: io::Error,
    },
    /// An operation failed on the host, and the guest got an I/O error. Reported once for each kind of error.
    #[error(
        "a {request} at sector {sector} failed: {error}; the guest gets I/O errors for such requests"
    )]
    Failed {
        /// The kind of request.
        request: &'static str,
        /// Its position, in units of 512 bytes.
        sector: u64,
        /// The error.
        #[source]
        error: io::Error,
    },
}

/// Receives a disk's notices. Called on the disk's thread.
pub type Report = Box<dyn FnMut(Notice) + Send>;

/// The most kinds of errors that are reported.
const KINDS: usize = 16;

/// Reports each kind of notice once.
pub(super) struct Reporter {
    report: Report,
    said: Vec<(io::ErrorKind, Option<i32>)>,
    unsupported: Vec<&'static str>,
}

impl Reporter {
    pub(super) const fn new(report: Report) -> Self {
        Reporter {
            report,
            said: Vec::new(),
            unsupported: Vec::new(),
        }
    }

    pub(super) fn no_uring(&mut self, error: io::Error) {
        (self.report)(Notice::NoUring(error));
    }

    pub(super) fn unchanged(&mut self, what: &'static str, error: io::Error) {
        (self.report)(Notice::Unchanged { what, error });
    }

    pub(super) fn unsupported(
        &mut self,
        request: &'static str,
        instead: &'static str,
        error: io::Error,
    ) {
        if !self.unsupported.contains(&request) {
            self.unsupported.push(request);
            (self.report)(Notice::Unsupported {
                request,
                instead,
                error,
            });
        }
    }

    pub(super) fn failed(&mut self, request: &'static str, sector: u64, error: io::Error) {
        let kind = (error.kind(), error.raw_os_error());
        if self.said.len() < KINDS && !self.said.contains(&kind) {
            self.said.push(kind);
            (self.report)(Notice::Failed {
                request,
                sector,
                error,
            });
        }
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter")
            .field("said", &self.said)
            .finish_non_exhaustive()
    }
}
