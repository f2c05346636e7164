// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests in flight.

use std::io;
use std::sync::Arc;

use virtio_transport::Broken;
use virtio_transport::chain::Chain;
use virtio_transport::device::Active;
use vm_memory::{Bytes, GuestAddressSpace, Permissions};

use super::backend::{Backend, Done, Operation};
use super::barrier::Barrier;
use super::disk::{Disk, SECTOR};
use super::report::Reporter;
use super::request::{self, Request, Status};
use crate::sys::Buffers;

/// The size of the pieces in which a misaligned request is copied, in bytes. The requests in flight limit their number.
const BOUNCE: usize = 64 << 10;
/// The size of the zeros that are written if the host can't make them in another way, in bytes.
const ZEROS: usize = 64 << 10;

/// What is needed to perform requests.
pub(super) struct Means<'a> {
    pub(super) disk: &'a Disk,
    pub(super) backend: &'a mut dyn Backend,
    pub(super) writeback: bool,
    pub(super) reporter: &'a mut Reporter,
}

/// A request in flight, by its head. Its memory is reused.
struct Slot {
    chain: Chain,
    request: Request,
    /// The data not transferred yet, unless the back end has it.
    buffers: Buffers,
    /// The number of bytes transferred.
    moved: u64,
    /// A part is in flight in a bounce buffer.
    bounced: bool,
    /// It only waits for a flush.
    flushing: bool,
    /// Its epoch in the barrier, if it changes the disk.
    epoch: Option<u64>,
}

/// A started device.
pub(super) struct Running<M> {
    pub(super) active: Active<M>,
    /// By queue, then by head.
    slots: Vec<Vec<Option<Box<Slot>>>>,
    spare: Chain,
    barrier: Barrier,
    in_flight: u32,
    /// Queues to which chains were returned, one bit each.
    touched: u64,
}

/// A request's token for the back end.
const fn token(queue: u16, head: u16) -> u32 {
    (queue as u32) << 16 | head as u32
}

const fn head(token: u32) -> u16 {
    token as u16
}

const fn queue(token: u32) -> u16 {
    (token >> 16) as u16
}

impl<M: GuestAddressSpace> Running<M>
where
    M::T: Send + Sync + 'static,
{
    pub(super) fn new(active: Active<M>) -> Self {
        let sizes = active.queues.iter();
        let slots = sizes.map(|virtq| {
            let size = virtq.as_ref().map_or(0, |virtq| virtq.size());
            (0..size).map(|_| None).collect()
        });
        Running {
            slots: slots.collect(),
            active,
            spare: Chain::new(),
            barrier: Barrier::default(),
            in_flight: 0,
            touched: 0,
        }
    }

    pub(super) const fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Takes a request from a queue and starts it. Returns its number of bytes, or `None` if there is no request.
    pub(super) fn take(
        &mut self,
        means: &mut Means<'_>,
        memory: &Arc<M::T>,
        queue: u16,
    ) -> Result<Option<u64>, Broken> {
        let virtq = self.active.queues.get_mut(usize::from(queue));
        let Some(virtq) = virtq.and_then(Option::as_mut) else {
            return Ok(None);
        };
        if !virtq.pop(&***memory, &mut self.spare)? {
            return Ok(None);
        }
        self.in_flight += 1;
        let token = token(queue, self.spare.head());
        let features = self.active.features;
        let parsed = Request::parse(&self.spare, &***memory, means.disk, features);
        let Some(slot) = self.renew(token) else {
            return Ok(None);
        };
        match parsed {
            Ok(request) => {
                slot.request = request;
                self.begin(means, memory, token).map(Some)
            }
            Err(status) => self.finish(means, token, status).map(|()| Some(0)),
        }
    }

    /// Enables notifications of a queue. Returns whether there is already a request.
    pub(super) fn enable_kicks(&mut self, queue: u16) -> Result<bool, Broken> {
        let memory = self.active.memory.memory();
        match self.active.queues.get_mut(usize::from(queue)) {
            Some(Some(virtq)) => virtq.enable_kicks(&*memory),
            _ => Ok(false),
        }
    }

    /// The slot for the chain that was taken last.
    fn renew(&mut self, token: u32) -> Option<&mut Slot> {
        let slots = self.slots.get_mut(usize::from(queue(token)))?;
        let place = slots.get_mut(usize::from(head(token)))?;
        let slot = place.get_or_insert_with(|| {
            Box::new(Slot {
                chain: Chain::new(),
                request: Request::Nothing,
                buffers: Buffers::default(),
                moved: 0,
                bounced: false,
                flushing: false,
                epoch: None,
            })
        });
        std::mem::swap(&mut slot.chain, &mut self.spare);
        slot.request = Request::Nothing;
        slot.moved = 0;
        (slot.bounced, slot.flushing) = (false, false);
        Some(slot)
    }

    fn slot(&mut self, token: u32) -> Option<&mut Slot> {
        let slots = self.slots.get_mut(usize::from(queue(token)))?;
        slots.get_mut(usize::from(head(token)))?.as_deref_mut()
    }

    fn begin(
        &mut self,
        means: &mut Means<'_>,
        memory: &Arc<M::T>,
        token: u32,
    ) -> Result<u64, Broken> {
        let Some(slot) = self.slot(token) else {
            return Ok(0);
        };
        let request = slot.request;
        let (Request::Read { len, .. } | Request::Write { len, .. }) = request else {
            // Zeros may have to be written as data, so they count.
            let zeros = match request {
                Request::WriteZeroes { len, .. } => len,
                _ => 0,
            };
            return self.begin_other(means, token).map(|()| zeros);
        };
        let access = if request.changes() {
            Permissions::Read
        } else {
            Permissions::Write
        };
        let data = request::data(&slot.chain, request);
        if slot.buffers.gather(memory, data, access).is_err() {
            return self.finish(means, token, Status::IoErr).map(|()| 0);
        }
        if len == 0 {
            return self.finish(means, token, Status::Ok).map(|()| 0);
        }
        if request.changes() {
            let epoch = self.barrier.enter();
            if let Some(slot) = self.slot(token) {
                slot.epoch = Some(epoch);
            }
        }
        self.transfer(means, token);
        Ok(len)
    }

    fn begin_other(&mut self, means: &mut Means<'_>, token: u32) -> Result<(), Broken> {
        let Some(slot) = self.slot(token) else {
            return Ok(());
        };
        let operation = match slot.request {
            Request::Flush => {
                self.barrier.flush(token);
                self.let_flushes_go(means);
                return Ok(());
            }
            Request::Id => return self.identify(means, token),
            Request::Discard { offset, len } => Operation::Discard { offset, len },
            Request::WriteZeroes { offset, len, unmap } => {
                Operation::WriteZeroes { offset, len, unmap }
            }
            _ => return self.finish(means, token, Status::Ok),
        };
        let epoch = self.barrier.enter();
        if let Some(slot) = self.slot(token) {
            slot.epoch = Some(epoch);
        }
        means.backend.push(token, operation);
        Ok(())
    }

    fn identify(&mut self, means: &mut Means<'_>, token: u32) -> Result<(), Broken> {
        let memory = self.active.memory.memory();
        let Some(slot) = self.slot(token) else {
            return Ok(());
        };
        let written = slot.chain.writer(&*memory).write(&means.disk.serial);
        let status = match written {
            Ok(()) => {
                slot.moved = means.disk.serial.len() as u64;
                Status::Ok
            }
            Err(_) => Status::IoErr,
        };
        self.finish(means, token, status)
    }

    /// Passes the rest of a read or write to the back end.
    fn transfer(&mut self, means: &mut Means<'_>, token: u32) {
        let Some(slot) = self.slot(token) else {
            return;
        };
        let (Request::Read { offset, .. } | Request::Write { offset, .. }) = slot.request else {
            return;
        };
        let offset = offset + slot.moved;
        let writes = slot.request.changes();
        slot.bounced = !slot.buffers.are_aligned(means.disk.alignment as usize);
        let buffers = if slot.bounced {
            let len = slot.buffers.left().min(BOUNCE);
            let bounce = Buffers::aligned(len);
            if writes {
                bounce.copy_across(&slot.buffers, len);
            }
            bounce
        } else {
            std::mem::take(&mut slot.buffers)
        };
        let operation = if writes {
            Operation::Write { offset, buffers }
        } else {
            Operation::Read { offset, buffers }
        };
        means.backend.push(token, operation);
    }

    /// Handles a completed operation: continues or completes the request.
    pub(super) fn complete(&mut self, means: &mut Means<'_>, done: Done) -> Result<(), Broken> {
        let token = done.token;
        let Some(slot) = self.slot(token) else {
            return Ok(());
        };
        let result = match slot.request {
            _ if slot.flushing => done.result.map(|_| ()),
            Request::Read { .. } | Request::Write { .. } => slot.moved(done.result, done.buffers),
            // A discard is a hint.
            Request::Discard { .. } if is_unsupported(&done.result) => Ok(()),
            Request::WriteZeroes { offset, len, .. } if is_unsupported(&done.result) => {
                slot.request = Request::Write { offset, len };
                Buffers::zeros(len as usize, ZEROS)
                    .map(|zeros| slot.buffers = zeros)
                    .map_err(io::Error::other)
            }
            _ => done.result.map(|_| ()),
        };
        if let Err(error) = result {
            let (name, offset) = (slot.request.name(), slot.request.offset() + slot.moved);
            means.reporter.failed(name, offset / SECTOR, error);
            return self.finish(means, token, Status::IoErr);
        }
        if !slot.flushing && slot.buffers.left() != 0 {
            self.transfer(means, token);
        } else if !slot.flushing && slot.request.changes() && !means.writeback {
            slot.flushing = true;
            means.backend.push(token, Operation::Flush);
        } else {
            return self.finish(means, token, Status::Ok);
        }
        Ok(())
    }

    /// Completes a request.
    fn finish(&mut self, means: &mut Means<'_>, token: u32, status: Status) -> Result<(), Broken> {
        let memory = self.active.memory.memory();
        let Some(slot) = self.slot(token) else {
            return Ok(());
        };
        let address = request::status_address(&slot.chain);
        let told = address.is_some_and(|at| memory.write_obj(status as u8, at).is_ok());
        let moved = match slot.request {
            Request::Read { .. } | Request::Id => slot.moved,
            _ => 0,
        };
        // The bytes written from the first one on (2.7.8.2). The status is one of them if it follows the others.
        let follows = told && moved + 1 == slot.chain.writable_len();
        let written = u32::try_from(moved + u64::from(follows)).unwrap_or(u32::MAX);
        // Release the guest memory.
        slot.buffers.clear();
        if let Some(epoch) = slot.epoch.take() {
            self.barrier.leave(epoch);
            self.let_flushes_go(means);
        }
        self.in_flight -= 1;
        self.touched |= 1 << (queue(token) % 64);
        match self.active.queues.get_mut(usize::from(queue(token))) {
            Some(Some(virtq)) => virtq.push(&*memory, head(token), written),
            _ => Ok(()),
        }
    }

    fn let_flushes_go(&mut self, means: &mut Means<'_>) {
        while let Some(token) = self.barrier.ready() {
            means.backend.push(token, Operation::Flush);
        }
    }

    /// Notifies the driver of returned chains, if it wants that.
    pub(super) fn interrupt(&mut self) -> Result<(), Broken> {
        let touched = std::mem::take(&mut self.touched);
        if touched == 0 {
            return Ok(());
        }
        let memory = self.active.memory.memory();
        let mut result = Ok(());
        for (queue, virtq) in (0..).zip(&mut self.active.queues) {
            if let Some(virtq) = virtq
                && touched >> queue & 1 != 0
            {
                match virtq.needs_interrupt(&*memory) {
                    Ok(true) => self.active.interrupt.queue(queue),
                    Ok(false) => {}
                    Err(broken) => result = Err(broken),
                }
            }
        }
        result
    }
}

impl Slot {
    /// Handles transferred data.
    fn moved(&mut self, result: io::Result<usize>, buffers: Option<Buffers>) -> io::Result<()> {
        let buffers = buffers.unwrap_or_default();
        let writes = self.request.changes();
        let (bounced, n) = (std::mem::take(&mut self.bounced), result?);
        let n = n.min(buffers.left());
        if n == 0 {
            let kind = if writes {
                io::ErrorKind::WriteZero
            } else {
                io::ErrorKind::UnexpectedEof
            };
            return Err(kind.into());
        }
        if !bounced {
            self.buffers = buffers;
        } else if !writes {
            self.buffers.copy_across(&buffers, n);
        }
        self.buffers.advance(n);
        self.moved += n as u64;
        Ok(())
    }
}

fn is_unsupported(result: &io::Result<usize>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::Unsupported)
}
