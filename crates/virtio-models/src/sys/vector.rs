// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Data of a stream socket that is sent from guest memory, or received into it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::iovec;
use virtio_transport::memory::View;
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use super::guest::{iovec_of, pieces};

/// The most pieces in one system call (Linux's `IOV_MAX`).
const MAX_PIECES: usize = 1024;

/// A list of pieces of guest memory, whose allocation is used again.
#[derive(Debug, Default)]
pub(crate) struct Vector(Vec<iovec>);

// SAFETY: Outside of a `Pieces`, which borrows it and is not `Send`, the pointers are not used.
unsafe impl Send for Vector {}

impl Vector {
    /// An empty list of pieces: for sending with [`Permissions::Read`], for receiving with [`Permissions::Write`].
    pub(crate) fn pieces<'a, 'm, M: GuestMemory + ?Sized>(
        &'a mut self,
        view: &'a View<'m, M>,
        access: Permissions,
    ) -> Pieces<'a, 'm, M> {
        self.0.clear();
        Pieces {
            list: &mut self.0,
            view,
            access,
        }
    }
}

/// Pieces for one system call. Those in the list are mapped while `view` exists, and may be accessed as `access` says.
pub(crate) struct Pieces<'a, 'm, M: GuestMemory + ?Sized> {
    list: &'a mut Vec<iovec>,
    view: &'a View<'m, M>,
    access: Permissions,
}

impl<M: GuestMemory + ?Sized> Pieces<'_, '_, M> {
    /// Adds `most` bytes of these segments behind the first `skip`, or fewer if the segments end or the list is full.
    /// Returns how many. `None` if they are not guest memory; then the list is unchanged.
    pub(crate) fn add(
        &mut self,
        segments: impl IntoIterator<Item = (GuestAddress, usize)>,
        mut skip: usize,
        most: usize,
    ) -> Option<usize> {
        let (before, mut left) = (self.list.len(), most);
        for (address, len) in segments {
            let from = skip.min(len);
            skip -= from;
            let here = (len - from).min(left);
            if here == 0 {
                continue;
            }
            // Does not wrap: a segment doesn't.
            let range = (GuestAddress(address.0 + from as u64), here);
            let list = &mut *self.list;
            let mut added = 0;
            let is_there = pieces(self.view, range, self.access, |piece| {
                if list.len() < MAX_PIECES {
                    added += piece.len();
                    list.push(iovec_of(&piece));
                }
                true
            });
            if !is_there {
                self.list.truncate(before);
                return None;
            }
            left -= added;
            if added < here || left == 0 {
                break;
            }
        }
        Some(most - left)
    }

    /// Sends the pieces' bytes to a stream socket, or receives into them. Doesn't wait. Returns the number of bytes; when
    /// receiving, 0 is the stream's end.
    pub(crate) fn transfer(self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: All zeros is a valid `msghdr`: an empty message.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.list.as_mut_ptr();
        message.msg_iovlen = self.list.len() as _;
        let (socket, flags) = (socket.as_raw_fd(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT);
        let moved = match self.access {
            // SAFETY: The pieces are mapped for writing while `view` exists. There are at most IOV_MAX.
            Permissions::Write => unsafe { libc::recvmsg(socket, &raw mut message, flags) },
            // SAFETY: The pieces are mapped while `view` exists. There are at most IOV_MAX.
            _ => unsafe { libc::sendmsg(socket, &raw const message, flags) },
        };
        usize::try_from(moved).map_err(|_| io::Error::last_os_error())
    }
}
