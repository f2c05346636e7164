// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A raw image, accessed with io_uring.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::backend::{Backend, Done, Operation};
use super::pool::file_size;
use crate::sys::{Ring, Zero};

/// Submits once per wake-up, to a ring with the file registered.
#[derive(Debug)]
pub(crate) struct Uring {
    ring: Ring,
    file: Arc<File>,
}

impl Uring {
    pub(crate) fn new(file: &Arc<File>, depth: u32) -> io::Result<Self> {
        Ok(Uring {
            ring: Ring::new(file, depth)?,
            file: Arc::clone(file),
        })
    }
}

impl Backend for Uring {
    fn source(&self) -> BorrowedFd<'_> {
        self.ring.source()
    }

    fn size(&self) -> io::Result<u64> {
        file_size(&self.file)
    }

    fn push(&mut self, token: u32, operation: Operation) {
        match operation {
            Operation::Read { offset, buffers } => self.ring.read(token, offset, buffers),
            Operation::Write { offset, buffers } => self.ring.write(token, offset, buffers),
            Operation::Flush => self.ring.flush(token),
            Operation::Discard { offset, len } => self.ring.zero(token, Zero::Punch, offset, len),
            Operation::WriteZeroes { offset, len, unmap } => {
                let zero = if unmap { Zero::Punch } else { Zero::Keep };
                self.ring.zero(token, zero, offset, len);
            }
        }
    }

    fn submit(&mut self) -> bool {
        self.ring.submit()
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        self.ring.reap(|token, result, buffers| {
            done.push(Done {
                token,
                result,
                buffers,
            });
        });
    }
}
