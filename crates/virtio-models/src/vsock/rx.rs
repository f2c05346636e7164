// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Packets for the guest, in the buffers of the receive queue (virtio 1.4, 5.10.6.4).

use std::io;
use std::os::fd::BorrowedFd;

use virtio_transport::Broken;
use virtio_transport::chain::Chain;
use virtio_transport::memory::View;
use virtio_transport::queue::Virtq;
use vm_memory::{GuestMemory, Permissions};

use super::header::{HEADER, Header};
use crate::segments::{mark, places};
use crate::sys::Vector;

/// The longest chains that are kept to be used again, in segments.
const KEPT: usize = 64;

/// What became of an attempt to read from a socket.
#[derive(Debug)]
pub(super) enum Read {
    /// The driver has no buffer for it.
    Starved,
    /// Nothing is there.
    Busy,
    /// The process sends no more.
    End,
    Failed,
    /// So many bytes, where so many had been possible.
    Data {
        len: usize,
        room: usize,
    },
}

/// Fills buffers.
#[derive(Debug, Default)]
pub(super) struct Receiver {
    /// Buffers that the device took, each with the bytes of data for which it has room.
    taken: Vec<(Box<Chain>, usize)>,
    /// Chains to use again. They move from here to `taken` and back.
    #[allow(clippy::vec_box)]
    spare: Vec<Box<Chain>>,
    vector: Vector,
    /// The buffers that this turn's packets used: heads and numbers of bytes.
    returned: Vec<(u16, u32)>,
}

impl Receiver {
    /// Returns the buffers of this turn to the driver, which sees all of them at once.
    pub(super) fn give<G: GuestMemory>(
        &mut self,
        queue: &mut Virtq,
        view: &View<'_, G>,
    ) -> Result<(), Broken> {
        let pushed = queue.push_all(view, &self.returned);
        self.returned.clear();
        pushed
    }

    /// Looks at the next buffer without using it.
    pub(super) fn look<G: GuestMemory>(
        &mut self,
        queue: &mut Virtq,
        view: &View<'_, G>,
    ) -> Result<(), Broken> {
        let result = self.take(queue, view, 1).map(drop);
        self.put_back(queue, 0);
        result
    }

    /// Sends the packet that `header` makes, if there is a buffer. Returns `false` if not.
    pub(super) fn packet<G: GuestMemory>(
        &mut self,
        queue: &mut Virtq,
        view: &View<'_, G>,
        header: impl FnOnce() -> Header,
    ) -> Result<bool, Broken> {
        let sent = match self.take(queue, view, 1) {
            Ok(true) => self.fill(view, 0, 0, &header()).map(|()| true),
            Ok(false) => return Ok(false),
            Err(broken) => Err(broken),
        };
        self.put_back(queue, usize::from(sent.is_ok()));
        sent
    }

    /// Reads up to `limit` bytes from a socket into as many buffers as they take. `header` makes the packets' headers.
    pub(super) fn data<G: GuestMemory>(
        &mut self,
        queue: &mut Virtq,
        view: &View<'_, G>,
        (socket, limit): (BorrowedFd<'_>, usize),
        header: impl FnMut(u32) -> Header,
    ) -> Result<Read, Broken> {
        match self.gather(queue, view, limit) {
            Ok(0) => {
                self.put_back(queue, 0);
                Ok(Read::Starved)
            }
            Ok(room) => {
                let read = self.read(view, socket, room);
                self.deliver(queue, view, read, room, header)
            }
            Err(broken) => {
                self.put_back(queue, 0);
                Err(broken)
            }
        }
    }

    /// Takes buffers for up to `limit` bytes. Returns for how many.
    fn gather<G: GuestMemory>(
        &mut self,
        queue: &mut Virtq,
        view: &View<'_, G>,
        limit: usize,
    ) -> Result<usize, Broken> {
        let mut room = 0;
        while room < limit && self.take(queue, view, limit - room)? {
            room += self.taken.last().map_or(0, |(_, room)| *room);
        }
        Ok(room)
    }

    /// Takes a buffer, of which up to `limit` bytes are for data. Returns `false` if there is none. If it's the first one
    /// of an attempt, the driver notifies the next.
    fn take<G: GuestMemory>(
        &mut self,
        queue: &mut Virtq,
        view: &View<'_, G>,
        limit: usize,
    ) -> Result<bool, Broken> {
        loop {
            let mut chain = self.spare.pop().unwrap_or_default();
            let popped = queue.pop(view, &mut chain);
            if popped == Ok(true) {
                let room = chain.writable_len().saturating_sub(HEADER as u64);
                self.taken.push((chain, room.min(limit as u64) as usize));
                return match room {
                    0 => Err(Broken::Device("a receive buffer has no room for data")),
                    _ => Ok(true),
                };
            }
            self.spare.push(chain);
            if popped? || !self.taken.is_empty() || !queue.enable_kicks(view)? {
                return Ok(false);
            }
        }
    }

    fn read<G: GuestMemory>(
        &mut self,
        view: &View<'_, G>,
        socket: BorrowedFd<'_>,
        room: usize,
    ) -> Result<io::Result<usize>, Broken> {
        let mut pieces = self.vector.pieces(view, Permissions::Write);
        let mut added = 0;
        for (chain, room) in &mut self.taken {
            let here = pieces.add(places(chain.writable()), HEADER, *room);
            let here = here.ok_or(Broken::Device("a receive buffer is not in guest memory"))?;
            added += here;
            if here < std::mem::replace(room, here) {
                break;
            }
        }
        debug_assert!(added <= room);
        Ok(pieces.transfer(socket))
    }

    /// Returns the buffers that were filled, and puts the others back.
    fn deliver<G: GuestMemory>(
        &mut self,
        queue: &mut Virtq,
        view: &View<'_, G>,
        read: Result<io::Result<usize>, Broken>,
        room: usize,
        mut header: impl FnMut(u32) -> Header,
    ) -> Result<Read, Broken> {
        let (mut left, mut used) = (0, 0);
        let mut result = match read {
            Ok(Ok(0)) => Ok(Read::End),
            Ok(Ok(len)) => {
                left = len;
                Ok(Read::Data { len, room })
            }
            Ok(Err(error)) => Ok(match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Read::Busy,
                io::ErrorKind::ConnectionReset => Read::End,
                _ => Read::Failed,
            }),
            Err(broken) => Err(broken),
        };
        while left != 0 && used < self.taken.len() {
            let here = left.min(self.taken[used].1);
            // Fits: a buffer gets at most what is read at once.
            if let Err(broken) = self.fill(view, used, here, &header(here as u32)) {
                result = Err(broken);
                break;
            }
            left -= here;
            used += 1;
        }
        self.put_back(queue, used);
        result
    }

    /// Completes the packet of `len` bytes of data in a buffer.
    fn fill<G: GuestMemory>(
        &mut self,
        view: &View<'_, G>,
        number: usize,
        len: usize,
        header: &Header,
    ) -> Result<(), Broken> {
        let chain = &self.taken[number].0;
        let written = chain.writer(view).write_obj(&header.to_words());
        written.map_err(|_| Broken::Device("a receive buffer is not in guest memory"))?;
        mark(view, chain.writable(), HEADER + len);
        self.returned.push((chain.head(), (HEADER + len) as u32));
        Ok(())
    }

    /// Puts back the buffers that the device took, but for the first `used`.
    fn put_back(&mut self, queue: &mut Virtq, used: usize) {
        while let Some((chain, _)) = self.taken.pop() {
            if self.taken.len() >= used {
                queue.unpop(chain.head());
            }
            if chain.capacity() <= KEPT {
                self.spare.push(chain);
            }
        }
    }
}
