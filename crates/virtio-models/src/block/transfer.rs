// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Performs a request in parts, one after another: no operation of the back end is large, however large the request.

use std::collections::VecDeque;
use std::io;
use std::mem;

use virtio_transport::chain::Chain;
use virtio_transport::memory::View;
use vm_memory::{GuestAddressSpace, GuestMemory};

use super::backend::{Done, Operation};
use super::disk::{Disk, SECTOR};
use super::request::{self, Request, Status};
use super::running::{Means, Running};
use crate::sys::Buffers;

/// The most bytes of a read or write.
const PART: usize = 1 << 20;
/// The most bytes of a write of zeros. The host may have to write them one by one.
const ZEROED: u64 = 4 << 20;
/// The most bytes of a discard.
const DISCARDED: u64 = 64 << 20;
/// The most bytes that are copied for a misaligned read or write.
const BOUNCE: usize = 64 << 10;
/// The most bytes of copies in flight. Other requests wait.
const BOUNCES: usize = 16 << 20;
/// The size of the zeros that are written if the host can't make them in another way, in bytes.
const ZEROS: usize = 64 << 10;

/// How often an operation that the host interrupted is repeated.
const REPEATS: u8 = 16;

/// What the back end does for a request now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    /// A flush, the driver's or after a write, or nothing.
    #[default]
    Flush,
    /// A discard or write of zeros, of this many bytes.
    Range(u64),
    /// A read or write with all of the request's buffers, which the back end has.
    All,
    /// A read or write with the first of them.
    First,
    /// A read or write with a copy of this many bytes.
    Bounce(usize),
}

/// A request in flight. Its memory is reused.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) chain: Chain,
    pub(super) request: Request,
    /// The data not transferred yet, unless the back end has it.
    pub(super) buffers: Buffers,
    /// The number of bytes that are done.
    pub(super) moved: u64,
    /// When it was taken, in nanoseconds.
    pub(super) begun: u64,
    /// Its epoch in the barrier, if it changes the disk.
    pub(super) epoch: Option<u64>,
    /// The number of pieces of memory that it counts as.
    pub(super) pieces: usize,
    part: Part,
    /// How often the part was repeated.
    repeats: u8,
}

impl Slot {
    /// Takes the chain of another request.
    pub(super) const fn renew(&mut self, chain: &mut Chain) {
        mem::swap(&mut self.chain, chain);
        self.request = Request::Nothing;
        self.moved = 0;
        (self.part, self.repeats) = (Part::Flush, 0);
    }

    /// Counts the pieces of memory that the new request may need. Returns how many.
    pub(super) fn count(&mut self) -> usize {
        let zeros = match self.request {
            Request::WriteZeroes { len, .. } => len as usize / ZEROS,
            _ => 0,
        };
        self.pieces = self.chain.readable().len() + self.chain.writable().len() + zeros;
        self.pieces
    }

    /// Whether to repeat a part that ended like this.
    fn repeats(&mut self, result: &io::Result<usize>) -> bool {
        let is_interrupted = matches!(result, Err(error) if is_interrupted(error));
        let repeats = is_interrupted && self.repeats < REPEATS;
        self.repeats = if repeats { self.repeats + 1 } else { 0 };
        repeats
    }

    /// The part of a range that is next, as offset and length. All but the first one start at multiples of `most`.
    fn range(&mut self, offset: u64, len: u64, most: u64) -> (u64, u64) {
        let offset = offset + self.moved;
        let len = (most - offset % most).min(len - self.moved);
        self.part = Part::Range(len);
        (offset, len)
    }

    /// The buffers for the next part of a read or write; `None` if they must be copied.
    fn next(&mut self, disk: &Disk) -> Option<Buffers> {
        let (address, length) = (disk.alignment as usize, disk.length_alignment as usize);
        if !self.buffers.are_aligned(PART, address, length) {
            return None;
        }
        if self.buffers.left() > PART {
            self.part = Part::First;
            return Some(self.buffers.first(PART));
        }
        self.part = Part::All;
        Some(mem::take(&mut self.buffers))
    }

    /// Reads or writes `buffers` next.
    fn transfer(&self, buffers: Buffers) -> Option<Operation> {
        match self.request {
            Request::Read { offset, .. } => Some(Operation::Read {
                offset: offset + self.moved,
                buffers,
            }),
            Request::Write { offset, .. } => Some(Operation::Write {
                offset: offset + self.moved,
                buffers,
            }),
            _ => None,
        }
    }

    /// Handles transferred data.
    fn transferred(&mut self, part: Part, done: Done) -> io::Result<()> {
        let buffers = done.buffers.unwrap_or_default();
        let writes = self.request.changes();
        let n = done.result?.min(buffers.left());
        if n == 0 {
            let kind = if writes {
                io::ErrorKind::WriteZero
            } else {
                io::ErrorKind::UnexpectedEof
            };
            return Err(kind.into());
        }
        match part {
            Part::All => self.buffers = buffers,
            Part::Bounce(_) if !writes => {
                self.buffers.copy_across(&buffers, n);
            }
            _ => {}
        }
        self.buffers.advance(n);
        self.moved += n as u64;
        Ok(())
    }

    /// Whether this is the end of a read or write that was passed on as a whole, and all of it is done. Then only its
    /// end is left to do.
    fn takes_all(&mut self, done: &mut Done) -> bool {
        let (Part::All, Ok(n), Some(buffers)) = (self.part, &done.result, &mut done.buffers) else {
            return false;
        };
        if *n != buffers.left() {
            return false;
        }
        self.moved += *n as u64;
        (self.part, self.repeats) = (Part::Flush, 0);
        // Its memory is used again.
        mem::swap(&mut self.buffers, buffers);
        self.buffers.clear();
        true
    }

    /// Writes the status of a completed request, and releases its guest memory. Returns the number of bytes that were
    /// written from the first one on (2.7.8.2). The status is one of them if it follows the others.
    pub(super) fn end<M: GuestMemory>(&mut self, view: &View<'_, M>, status: Status) -> u32 {
        let address = request::status_address(&self.chain);
        let told = address.is_some_and(|at| view.write(at, status as u8));
        let moved = match self.request {
            Request::Read { .. } | Request::Id => self.moved,
            _ => 0,
        };
        let follows = told && moved + 1 == self.chain.writable_len();
        self.buffers.clear();
        u32::try_from(moved + u64::from(follows)).unwrap_or(u32::MAX)
    }

    /// Whether another part follows.
    const fn has_more(&self) -> bool {
        match self.request {
            Request::Discard { len, .. } | Request::WriteZeroes { len, .. } => self.moved < len,
            _ => self.buffers.left() != 0,
        }
    }
}

/// Copies in flight, and requests that wait for space.
#[derive(Debug, Default)]
pub(super) struct Bounces {
    /// The bytes of the copies in flight.
    bytes: usize,
    waiting: VecDeque<u32>,
}

impl<M: GuestAddressSpace> Running<M>
where
    M::T: Send + Sync + 'static,
{
    /// Passes the next part of a request to the back end.
    pub(super) fn step(&mut self, means: &mut Means<'_, '_, M>, token: u32) {
        let Some(slot) = self.slot(token) else {
            return;
        };
        let operation = match slot.request {
            Request::Discard { offset, len } => {
                let (offset, len) = slot.range(offset, len, DISCARDED);
                Some(Operation::Discard { offset, len })
            }
            Request::WriteZeroes { offset, len, unmap } => {
                let (offset, len) = slot.range(offset, len, ZEROED);
                Some(Operation::WriteZeroes { offset, len, unmap })
            }
            _ => slot
                .next(means.disk)
                .and_then(|buffers| slot.transfer(buffers)),
        };
        if let Some(operation) = operation {
            means.backend.push(token, operation);
        } else {
            self.bounces.waiting.push_back(token);
            self.let_bounces_go(means);
        }
    }

    /// Starts reads and writes with copies, as many as there is space for.
    fn let_bounces_go(&mut self, means: &mut Means<'_, '_, M>) {
        while self.bounces.bytes + BOUNCE <= BOUNCES
            && let Some(token) = self.bounces.waiting.pop_front()
        {
            let Some(slot) = self.slot(token) else {
                continue;
            };
            let bounce = Buffers::aligned(slot.buffers.left().min(BOUNCE));
            let len = bounce.left();
            if slot.request.changes() {
                bounce.copy_across(&slot.buffers, len);
            }
            slot.part = Part::Bounce(len);
            if let Some(operation) = slot.transfer(bounce) {
                means.backend.push(token, operation);
                self.bounces.bytes += len;
            }
        }
    }

    /// Handles a completed operation: continues or completes the request.
    pub(super) fn complete(&mut self, means: &mut Means<'_, '_, M>, mut done: Done) {
        let token = done.token;
        let Some(slot) = self.slot(token) else {
            return;
        };
        if slot.takes_all(&mut done) {
            return self.stabilize(means, token);
        }
        let part = mem::take(&mut slot.part);
        if slot.repeats(&done.result) {
            if let (Part::All, Some(buffers)) = (part, done.buffers) {
                slot.buffers = buffers;
            }
            self.repeat(means, token, part);
        } else {
            let result = match (part, done.result) {
                (Part::Flush, result) => result.map(drop),
                (Part::Range(_), Err(error)) if is_unsupported(&error) => {
                    return self.do_without(means, token, error);
                }
                (Part::Range(len), result) => result.map(|_| slot.moved += len),
                (_, result) => slot.transferred(part, Done { result, ..done }),
            };
            self.continue_with(means, token, part, result);
        }
        if let Part::Bounce(len) = part {
            self.bounces.bytes -= len;
            self.let_bounces_go(means);
        }
    }

    /// Passes a part to the back end once more.
    fn repeat(&mut self, means: &mut Means<'_, '_, M>, token: u32, part: Part) {
        match part {
            Part::Flush => means.backend.push(token, Operation::Flush),
            _ => self.step(means, token),
        }
    }

    /// Starts what follows a completed part.
    fn continue_with(
        &mut self,
        means: &mut Means<'_, '_, M>,
        token: u32,
        part: Part,
        result: io::Result<()>,
    ) {
        let Some(slot) = self.slot(token) else {
            return;
        };
        if let Err(error) = result {
            let (name, offset) = (slot.request.name(), slot.request.offset() + slot.moved);
            means.reporter.failed(name, offset / SECTOR, error);
            return self.finish(means, token, Status::IoErr);
        }
        if part == Part::Flush {
            return self.finish(means, token, Status::Ok);
        }
        if slot.has_more() {
            self.step(means, token);
        } else {
            self.stabilize(means, token);
        }
    }

    /// Completes a request whose data is transferred, after a flush if the driver expects that of each write.
    fn stabilize(&mut self, means: &mut Means<'_, '_, M>, token: u32) {
        let changes = |slot: &mut Slot| slot.request.changes();
        if !means.writeback && self.slot(token).is_some_and(changes) {
            means.backend.push(token, Operation::Flush);
        } else {
            self.finish(means, token, Status::Ok);
        }
    }

    /// Goes on after the host refused to discard or zero a range: it may not support that at all, or not for blocks as
    /// small as these.
    fn do_without(&mut self, means: &mut Means<'_, '_, M>, token: u32, error: io::Error) {
        let Some(slot) = self.slot(token) else {
            return;
        };
        let (name, moved) = (slot.request.name(), slot.moved);
        let Request::WriteZeroes { offset, len, .. } = slot.request else {
            let instead = "the guest is told that it is unsupported";
            means.reporter.unsupported(name, instead, error);
            return self.finish(means, token, Status::Unsupported);
        };
        means
            .reporter
            .unsupported(name, "zeros are written as data", error);
        if self.zeros.left() == 0 {
            self.zeros = Buffers::aligned(ZEROS);
        }
        let zeros = self.zeros.repeated((len - moved) as usize);
        let (Ok(zeros), Some(slot)) = (zeros, self.slot(token)) else {
            return self.finish(means, token, Status::IoErr);
        };
        slot.request = Request::Write { offset, len };
        slot.buffers = zeros;
        self.step(means, token);
    }
}

/// Whether the host may do the same operation if it is asked again. io_uring also says that it would have to wait.
fn is_interrupted(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
    )
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput
    )
}
