// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What performs a disk's operations.

use std::io;
use std::os::fd::BorrowedFd;

use crate::sys::Buffers;

/// What is to be done with a disk. Offsets and lengths are in bytes, and inside of the disk.
#[derive(Debug)]
pub enum Operation {
    /// Fills buffers from an offset on.
    Read {
        /// Where it begins.
        offset: u64,
        /// What is filled.
        buffers: Buffers,
    },
    /// Writes buffers from an offset on.
    Write {
        /// Where it begins.
        offset: u64,
        /// What is written.
        buffers: Buffers,
    },
    /// Brings to stable storage what was completed before.
    Flush,
    /// Gives blocks back: what is read there next may be anything. A hint.
    Discard {
        /// Where it begins.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Makes a range zeros.
    WriteZeroes {
        /// Where it begins.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// Whether its blocks may be given back.
        unmap: bool,
    },
}

/// An operation that is done.
#[derive(Debug)]
pub struct Done {
    /// The token that it was pushed with.
    pub token: u32,
    /// How many bytes were read or written, which may be fewer than there were; 0 for the others. For
    /// [`Operation::WriteZeroes`], `ErrorKind::Unsupported` asks for writes in its place.
    pub result: io::Result<usize>,
    /// The operation's buffers, as they were.
    pub buffers: Option<Buffers>,
}

/// Performs operations, in any order, and never waits.
///
/// Operations in flight own their buffers. A back end that is dropped may go on for a while with what is in flight: the
/// buffers' memory stays mapped.
pub trait Backend: Send {
    /// Readable while there are completions to be taken.
    fn source(&self) -> BorrowedFd<'_>;
    /// The size of the disk in bytes now.
    ///
    /// # Errors
    /// The host's.
    fn size(&self) -> io::Result<u64>;
    /// Takes an operation. It may begin at once, or at [`submit`](Self::submit).
    fn push(&mut self, token: u32, operation: Operation);
    /// Lets what was pushed begin; `false` if the host is short of something, and this has to be called again.
    fn submit(&mut self) -> bool;
    /// Takes what is done.
    fn reap(&mut self, done: &mut Vec<Done>);
}
