// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's end of a port.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use virtio_transport::device::Interest;

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// What to watch of a peer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sources<'a> {
    /// Readable when there is data for the guest. `None` if there will be none.
    pub input: Option<BorrowedFd<'a>>,
    /// Writable when the peer takes data again.
    pub output: Option<BorrowedFd<'a>>,
    /// Always watched: [`Peer::settle`] handles it.
    pub other: Option<(BorrowedFd<'a>, Interest)>,
}

/// The host's end of a port. No call waits. The device calls it on its thread.
pub trait Peer: Send {
    /// Whether somebody is at the other end. The guest is told.
    fn is_open(&self) -> bool;

    /// Reads data for the guest. 0 bytes are the end of the data, for now or for ever.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is none now. Any other error is such an end.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize>;

    /// Takes some of the guest's bytes, at least one.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock): the guest's buffer waits. After any other error it is dropped.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// What to watch now.
    fn sources(&self) -> Sources<'_>;

    /// Whether [`settle`](Self::settle) has something to do, after a read or a write.
    fn is_unsettled(&self) -> bool {
        false
    }

    /// Closes what has ended, or accepts who is new. Only then may a source become another one.
    fn settle(&mut self) {}

    /// The size of its terminal, if it is one.
    fn size(&self) -> Option<Size> {
        None
    }
}

/// A peer that outlives the device.
pub type SharedPeer = Arc<Mutex<dyn Peer>>;

/// The error of a peer that has nothing, or takes nothing, now.
pub(super) fn would_block<T>() -> io::Result<T> {
    Err(io::ErrorKind::WouldBlock.into())
}
