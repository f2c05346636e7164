// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The interface to what performs a disk's operations.

use std::io;
use std::os::fd::BorrowedFd;

use crate::sys::Buffers;

/// An operation on a disk. Offsets and lengths are in bytes, and inside the disk.
#[derive(Debug)]
pub enum Operation {
    /// Reads into buffers.
    Read {
        /// The offset on the disk.
        offset: u64,
        /// The buffers to fill.
        buffers: Buffers,
    },
    /// Writes from buffers.
    Write {
        /// The offset on the disk.
        offset: u64,
        /// The buffers to write.
        buffers: Buffers,
    },
    /// Writes completed data to stable storage.
    Flush,
    /// Discards blocks: later reads of them may return anything. A hint.
    Discard {
        /// The offset on the disk.
        offset: u64,
        /// The number of bytes.
        len: u64,
    },
    /// Fills a range with zeros.
    WriteZeroes {
        /// The offset on the disk.
        offset: u64,
        /// The number of bytes.
        len: u64,
        /// Whether its blocks may be discarded.
        unmap: bool,
    },
}

/// A completed operation.
#[derive(Debug)]
pub struct Done {
    /// The token that it was pushed with.
    pub token: u32,
    /// The number of bytes read or written, which may be less than requested; 0 for other operations.
    /// `ErrorKind::Unsupported` and `InvalidInput` mean for [`Operation::WriteZeroes`]: write zeros instead. For
    /// [`Operation::Discard`] they mean that the driver is told that it is unsupported.
    pub result: io::Result<usize>,
    /// The operation's buffers, unchanged.
    pub buffers: Option<Buffers>,
}

/// Performs operations in any order, without blocking.
///
/// Operations in flight own their buffers. After a back end is dropped, they may continue for a while; the buffers'
/// memory stays mapped.
pub trait Backend: Send {
    /// Readable while there are completions to take.
    fn source(&self) -> BorrowedFd<'_>;
    /// The current size of the disk in bytes.
    ///
    /// # Errors
    /// The host's failure.
    fn size(&self) -> io::Result<u64>;
    /// Takes an operation. It may start at once, or at [`submit`](Self::submit).
    fn push(&mut self, token: u32, operation: Operation);
    /// Starts what was pushed. Call it again after [`reap`](Self::reap) took something, since not everything may have
    /// started. Returns `false` if the host lacks resources; then call it again soon.
    fn submit(&mut self) -> bool;
    /// Takes completed operations.
    fn reap(&mut self, done: &mut Vec<Done>);
}
