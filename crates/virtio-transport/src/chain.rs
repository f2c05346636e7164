// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A descriptor chain, read once and checked as a whole.
//!
//! `virtio_queue::DescriptorChain` is an iterator that ends silently at a descriptor it can't follow. So a device can't
//! tell a short chain from a broken one. Here a broken chain is [`Broken`], before a device sees any of it. A chain
//! that is only too short is [`ChainError::Short`], which a device answers as an error of the request.

use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, ByteValued, GuestAddress, GuestMemory};

use crate::broken::{Broken, IndirectFault};
use crate::memory::View;

/// The length of a descriptor in bytes.
const DESCRIPTOR: u64 = 16;

/// The least limit on a chain's descriptors, whatever the queue size. A chain should not be longer than the queue
/// (2.7.5.3.1), but Linux makes longer ones in indirect tables, and other VMMs accept them.
const LIMIT: u16 = 1024;

/// A piece of a request in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its start address. Not yet checked to be guest memory.
    pub address: GuestAddress,
    /// Its length in bytes; never 0. `address + len` does not wrap.
    pub len: u32,
}

/// A request: the buffers that the device reads, then those that it writes.
///
/// Created by the caller and filled by [`Virtq::pop`](crate::queue::Virtq::pop), so that one allocation serves all
/// requests of a queue.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    /// How many segments are readable. These come first.
    readable: usize,
    readable_len: u64,
    writable_len: u64,
}

/// The table that is being read.
struct Table<'a, 'm, M: GuestMemory> {
    view: &'a View<'m, M>,
    address: GuestAddress,
    size: u16,
    indirect: bool,
}

impl Chain {
    /// A chain without segments.
    pub const fn new() -> Self {
        Chain {
            head: 0,
            segments: Vec::new(),
            readable: 0,
            readable_len: 0,
            writable_len: 0,
        }
    }

    /// The index of its first descriptor, which identifies it to [`Virtq::push`](crate::queue::Virtq::push).
    pub const fn head(&self) -> u16 {
        self.head
    }

    /// The segments that the device reads, in order, without empty buffers.
    pub fn readable(&self) -> &[Segment] {
        &self.segments[..self.readable]
    }

    /// The segments that the device writes, in order, without empty buffers.
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.readable..]
    }

    /// The number of bytes that the device can read, at most 2^32.
    pub const fn readable_len(&self) -> u64 {
        self.readable_len
    }

    /// The number of bytes that the device can write, at most 2^32.
    pub const fn writable_len(&self) -> u64 {
        self.writable_len
    }

    /// How many segments it has memory for. It keeps what its longest request needed, so a chain that is kept for later
    /// may cost much more than its next request.
    pub const fn capacity(&self) -> usize {
        self.segments.capacity()
    }

    /// A reader of what the driver wrote, from the first byte on.
    pub fn reader<'a, 'm, M: GuestMemory>(
        &'a self,
        view: &'a View<'m, M>,
    ) -> ChainReader<'a, 'm, M> {
        ChainReader(Cursor::new(view, self.readable(), self.readable_len))
    }

    /// A writer of what the driver will read, from the first byte on.
    pub fn writer<'a, 'm, M: GuestMemory>(
        &'a self,
        view: &'a View<'m, M>,
    ) -> ChainWriter<'a, 'm, M> {
        ChainWriter(Cursor::new(view, self.writable(), self.writable_len))
    }

    /// Reads the chain that starts at `head`. After an error it has no segments.
    pub(crate) fn walk<M: GuestMemory>(
        &mut self,
        view: &View<'_, M>,
        (table, size): (GuestAddress, u16),
        head: u16,
        indirect: bool,
    ) -> Result<(), Broken> {
        *self = Chain {
            head,
            segments: std::mem::take(&mut self.segments),
            ..Chain::new()
        };
        self.segments.clear();
        let table = Table {
            view,
            address: table,
            size,
            indirect: false,
        };
        let walked = self.follow(table, indirect);
        if walked.is_err() {
            self.segments.clear();
            self.readable = 0;
        }
        walked
    }

    fn follow<M: GuestMemory>(
        &mut self,
        mut table: Table<'_, '_, M>,
        indirect: bool,
    ) -> Result<(), Broken> {
        let head = self.head;
        let limit = table.size.max(LIMIT);
        let (mut index, mut left, mut writable) = (head, limit, false);
        loop {
            if left == 0 {
                return Err(Broken::TooMany { head, limit });
            }
            let descriptor = table.read(index)?;
            if descriptor.refers_to_indirect_table() {
                // Only once: a second one is nested.
                table = table.indirect(&descriptor, head, indirect)?;
                index = 0;
                continue;
            }
            left -= 1;
            if writable && !descriptor.is_write_only() {
                return Err(Broken::Order { head });
            }
            writable = descriptor.is_write_only();
            self.add(&descriptor)?;
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
        }
    }

    #[inline]
    fn add(&mut self, descriptor: &Descriptor) -> Result<(), Broken> {
        let (address, len) = (descriptor.addr(), descriptor.len());
        if len == 0 {
            return Ok(());
        }
        if address.checked_add(u64::from(len)).is_none() {
            let address = address.0;
            return Err(Broken::Wraps { address, len });
        }
        self.segments.push(Segment { address, len });
        if descriptor.is_write_only() {
            self.writable_len += u64::from(len);
        } else {
            self.readable += 1;
            self.readable_len += u64::from(len);
        }
        if self.readable_len + self.writable_len > 1 << 32 {
            return Err(Broken::TooLong { head: self.head });
        }
        Ok(())
    }
}

impl<M: GuestMemory> Table<'_, '_, M> {
    #[inline]
    fn read(&self, index: u16) -> Result<Descriptor, Broken> {
        let size = self.size;
        if index >= size {
            return Err(Broken::Index { index, size });
        }
        // An indirect table may reach beyond the last address.
        let address = self.address.0.checked_add(u64::from(index) * DESCRIPTOR);
        let address = address.ok_or(Broken::Memory {
            address: self.address.0,
        })?;
        // Its address; then length, flags and next.
        let words: Option<[u64; 2]> = self.view.read(GuestAddress(address));
        let [first, second] = words.ok_or(Broken::Memory { address })?.map(u64::from_le);
        let (flags, next) = ((second >> 32) as u16, (second >> 48) as u16);
        Ok(Descriptor::new(first, second as u32, flags, next))
    }

    /// The indirect table that a descriptor refers to. Its write flag is ignored (2.7.5.3.2).
    fn indirect(
        &self,
        descriptor: &Descriptor,
        head: u16,
        negotiated: bool,
    ) -> Result<Self, Broken> {
        let len = descriptor.len();
        let entries = u64::from(len) / DESCRIPTOR;
        let fault = if !negotiated {
            IndirectFault::NotNegotiated
        } else if self.indirect {
            IndirectFault::Nested
        } else if descriptor.has_next() {
            IndirectFault::Next
        } else if len == 0 || u64::from(len) % DESCRIPTOR != 0 {
            IndirectFault::Length(len)
        } else {
            let size = u16::try_from(entries).unwrap_or(u16::MAX);
            return Ok(Table {
                view: self.view,
                address: descriptor.addr(),
                size,
                indirect: true,
            });
        };
        Err(Broken::Indirect { head, fault })
    }
}

/// Why a request's bytes can't be transferred. The chain itself is valid, so the device can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The chain ends too early.
    #[error("{wanted} bytes are wanted where the chain has {left} left")]
    Short {
        /// The number of bytes requested.
        wanted: u64,
        /// The number of bytes left.
        left: u64,
    },
    /// A buffer is not in guest memory.
    #[error("{len} bytes at guest address {address:#x} are not in guest memory")]
    Memory {
        /// The guest-physical address.
        address: u64,
        /// The length in bytes.
        len: usize,
    },
}

/// A position in a list of segments.
#[derive(Debug)]
struct Cursor<'a, 'm, M: GuestMemory> {
    view: &'a View<'m, M>,
    segments: &'a [Segment],
    /// How much of the first one is already transferred; less than its length.
    offset: u32,
    left: u64,
    done: u64,
}

impl<'a, 'm, M: GuestMemory> Cursor<'a, 'm, M> {
    const fn new(view: &'a View<'m, M>, segments: &'a [Segment], left: u64) -> Self {
        Cursor {
            view,
            segments,
            offset: 0,
            left,
            done: 0,
        }
    }

    const fn wants(&self, wanted: u64) -> Result<(), ChainError> {
        let left = self.left;
        if wanted > left {
            return Err(ChainError::Short { wanted, left });
        }
        Ok(())
    }

    /// Calls `transfer` for each piece of the next `len` bytes, with the piece's range in these bytes.
    fn advance(
        &mut self,
        len: u64,
        mut transfer: impl FnMut(
            &View<'m, M>,
            GuestAddress,
            std::ops::Range<u64>,
        ) -> Result<(), ChainError>,
    ) -> Result<(), ChainError> {
        self.wants(len)?;
        let mut at = 0;
        while at < len {
            let Some((first, rest)) = self.segments.split_first() else {
                break;
            };
            let here = u64::from(first.len - self.offset).min(len - at);
            let address = first.address.unchecked_add(u64::from(self.offset));
            transfer(self.view, address, at..at + here)?;
            at += here;
            self.step(*first, rest, here);
        }
        Ok(())
    }

    /// Moves on by `here` bytes of the first segment, which are there.
    const fn step(&mut self, first: Segment, rest: &'a [Segment], here: u64) {
        self.done += here;
        self.left -= here;
        // Fits: it is at most the segment's length.
        self.offset += here as u32;
        if self.offset == first.len {
            self.segments = rest;
            self.offset = 0;
        }
    }

    /// Moves on by `len` bytes, if they are all in one segment. Returns their address.
    fn next(&mut self, len: usize) -> Option<GuestAddress> {
        let (first, rest) = self.segments.split_first()?;
        let here = len as u64;
        if here > u64::from(first.len - self.offset) {
            return None;
        }
        let address = first.address.unchecked_add(u64::from(self.offset));
        self.step(*first, rest, here);
        Some(address)
    }
}

/// Reads a chain's readable part.
#[derive(Debug)]
pub struct ChainReader<'a, 'm, M: GuestMemory>(Cursor<'a, 'm, M>);

impl<M: GuestMemory> ChainReader<'_, '_, M> {
    /// How many bytes are left.
    pub const fn left(&self) -> u64 {
        self.0.left
    }

    /// Fills `data`.
    ///
    /// # Errors
    /// [`ChainError::Short`] if too few bytes are left, and nothing was read; [`ChainError::Memory`].
    pub fn read(&mut self, data: &mut [u8]) -> Result<(), ChainError> {
        self.0.advance(data.len() as u64, |view, address, at| {
            let piece = &mut data[at.start as usize..at.end as usize];
            if view.read_slice(address, piece) {
                return Ok(());
            }
            Err(ChainError::Memory {
                address: address.0,
                len: piece.len(),
            })
        })
    }

    /// Reads plain data, in the guest's byte order.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_obj<T: ByteValued + Default>(&mut self) -> Result<T, ChainError> {
        let len = size_of::<T>();
        if let Some(address) = self.0.next(len) {
            let value = self.0.view.read(address);
            let address = address.0;
            return value.ok_or(ChainError::Memory { address, len });
        }
        let mut value = T::default();
        self.read(value.as_mut_slice())?;
        Ok(value)
    }

    /// Skips `len` bytes.
    ///
    /// # Errors
    /// [`ChainError::Short`].
    pub fn skip(&mut self, len: u64) -> Result<(), ChainError> {
        self.0.advance(len, |_, _, _| Ok(()))
    }
}

/// Writes a chain's writable part, and counts the bytes.
#[derive(Debug)]
pub struct ChainWriter<'a, 'm, M: GuestMemory>(Cursor<'a, 'm, M>);

impl<M: GuestMemory> ChainWriter<'_, '_, M> {
    /// How many bytes are left.
    pub const fn left(&self) -> u64 {
        self.0.left
    }

    /// The number of bytes written or skipped. This is the length for [`Virtq::push`](crate::queue::Virtq::push), if
    /// all of them have been written by then.
    pub const fn written(&self) -> u32 {
        // The used ring can't express a length of exactly 2^32 bytes.
        if self.0.done > u32::MAX as u64 {
            u32::MAX
        } else {
            self.0.done as u32
        }
    }

    /// Writes `data`.
    ///
    /// # Errors
    /// [`ChainError::Short`] if too few bytes are left, and nothing was written; [`ChainError::Memory`].
    pub fn write(&mut self, data: &[u8]) -> Result<(), ChainError> {
        self.0.advance(data.len() as u64, |view, address, at| {
            let piece = &data[at.start as usize..at.end as usize];
            if view.write_slice(address, piece) {
                return Ok(());
            }
            Err(ChainError::Memory {
                address: address.0,
                len: piece.len(),
            })
        })
    }

    /// Writes plain data, in the guest's byte order.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_obj<T: ByteValued>(&mut self, value: &T) -> Result<(), ChainError> {
        let len = size_of::<T>();
        let Some(address) = self.0.next(len) else {
            return self.write(value.as_slice());
        };
        let written = self.0.view.write(address, *value);
        let address = address.0;
        let error = ChainError::Memory { address, len };
        written.then_some(()).ok_or(error)
    }

    /// Skips `len` bytes that something else has written or will write.
    ///
    /// # Errors
    /// [`ChainError::Short`].
    pub fn skip(&mut self, len: u64) -> Result<(), ChainError> {
        self.0.advance(len, |_, _, _| Ok(()))
    }
}
