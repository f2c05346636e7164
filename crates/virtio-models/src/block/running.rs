// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests in flight.

use std::sync::Arc;

use virtio_transport::Broken;
use virtio_transport::chain::Chain;
use virtio_transport::device::Active;
use virtio_transport::memory::View;
use vm_memory::{GuestAddressSpace, Permissions};

use super::backend::{Backend, Operation};
use super::barrier::Barrier;
use super::counters::Counters;
use super::disk::Disk;
use super::report::Reporter;
use super::request::{self, Request, Status};
use super::transfer::{Bounces, Slot};
use crate::sys::{Buffers, Guest, current};

/// The most pieces of memory in flight, unless a single request has more. A piece takes up to 48 bytes of the VMM's
/// memory, and a driver could have millions of them.
const PIECES: usize = 64 << 10;
/// The most slots that are kept for later requests. One that had a long chain takes 32 KiB.
const IDLE: usize = 64;

/// What is needed to perform requests.
pub(super) struct Means<'a, 'm, M: GuestAddressSpace> {
    pub(super) guest: &'a Guest<'m, M::T>,
    pub(super) disk: &'a Disk,
    pub(super) backend: &'a mut dyn Backend,
    pub(super) writeback: bool,
    pub(super) reporter: &'a mut Reporter,
    pub(super) counters: &'a Counters,
    /// The time in nanoseconds.
    pub(super) now: u64,
}

/// A started device.
pub(super) struct Running<M: GuestAddressSpace> {
    pub(super) active: Active<M>,
    /// Guest memory as it was at the last event. Requests in flight share it.
    memory: Option<Arc<M::T>>,
    /// By queue, then by head.
    slots: Vec<Vec<Option<Box<Slot>>>>,
    /// Slots for later requests: their memory is reused. They move from here to `slots` and back.
    #[allow(clippy::vec_box)]
    idle: Vec<Box<Slot>>,
    /// The pieces of all requests in flight.
    pieces: usize,
    spare: Chain,
    barrier: Barrier,
    pub(super) bounces: Bounces,
    /// Zeros to write, created when the host can't make them in another way.
    pub(super) zeros: Buffers,
    in_flight: u32,
    /// Completed requests by queue: heads and numbers of bytes. The driver doesn't have them back yet.
    done: Vec<Vec<(u16, u32)>>,
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
            done: vec![Vec::new(); active.queues.len()],
            slots: slots.collect(),
            idle: Vec::new(),
            pieces: 0,
            memory: None,
            active,
            spare: Chain::new(),
            barrier: Barrier::default(),
            bounces: Bounces::default(),
            zeros: Buffers::default(),
            in_flight: 0,
        }
    }

    /// Guest memory as it is now.
    pub(super) fn memory(&mut self) -> Arc<M::T> {
        current(&self.active.memory, &mut self.memory)
    }

    pub(super) const fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Whether the requests in flight take so much memory that others wait.
    pub(super) const fn is_full(&self) -> bool {
        self.pieces >= PIECES
    }

    /// Takes a request from a queue and starts it. Returns its number of bytes, or `None` if there is no request.
    pub(super) fn take(
        &mut self,
        means: &mut Means<'_, '_, M>,
        queue: u16,
    ) -> Result<Option<u64>, Broken> {
        let virtq = self.active.queues.get_mut(usize::from(queue));
        let Some(virtq) = virtq.and_then(Option::as_mut) else {
            return Ok(None);
        };
        if !virtq.pop(means.guest.view(), &mut self.spare)? {
            return Ok(None);
        }
        self.in_flight += 1;
        let token = token(queue, self.spare.head());
        let features = self.active.features;
        let parsed = Request::parse(&self.spare, means.guest.view(), means.disk, features);
        let Some(slot) = self.renew(token) else {
            return Ok(None);
        };
        slot.begun = means.now;
        slot.request = parsed.unwrap_or_default();
        let pieces = slot.count();
        self.pieces += pieces;
        match parsed {
            Ok(_) => Ok(Some(self.begin(means, token))),
            Err(status) => {
                self.finish(means, token, status);
                Ok(Some(0))
            }
        }
    }

    /// Enables notifications of a queue. Returns whether there is already a request.
    pub(super) fn enable_kicks(
        &mut self,
        view: &View<'_, M::M>,
        queue: u16,
    ) -> Result<bool, Broken> {
        match self.active.queues.get_mut(usize::from(queue)) {
            Some(Some(virtq)) => virtq.enable_kicks(view),
            _ => Ok(false),
        }
    }

    /// The slot for the chain that was taken last.
    fn renew(&mut self, token: u32) -> Option<&mut Slot> {
        let mut slot = self.idle.pop().unwrap_or_default();
        slot.renew(&mut self.spare);
        Some(self.place(token)?.insert(slot))
    }

    /// The place of a request's slot.
    fn place(&mut self, token: u32) -> Option<&mut Option<Box<Slot>>> {
        let slots = self.slots.get_mut(usize::from(queue(token)))?;
        slots.get_mut(usize::from(head(token)))
    }

    pub(super) fn slot(&mut self, token: u32) -> Option<&mut Slot> {
        self.place(token)?.as_deref_mut()
    }

    fn begin(&mut self, means: &mut Means<'_, '_, M>, token: u32) -> u64 {
        let Some(slot) = self.slot(token) else {
            return 0;
        };
        let request = slot.request;
        let (Request::Read { len, .. } | Request::Write { len, .. }) = request else {
            return self.begin_other(means, token);
        };
        let access = if request.changes() {
            Permissions::Read
        } else {
            Permissions::Write
        };
        let data = request::data(&slot.chain, request);
        if slot.buffers.gather(means.guest, data, access).is_err() {
            slot.request = Request::Nothing;
            self.finish(means, token, Status::IoErr);
            return 0;
        }
        if len == 0 {
            self.finish(means, token, Status::Ok);
            return 0;
        }
        if request.changes() {
            self.enter(token);
        }
        self.step(means, token);
        len
    }

    fn begin_other(&mut self, means: &mut Means<'_, '_, M>, token: u32) -> u64 {
        let Some(slot) = self.slot(token) else {
            return 0;
        };
        // Zeros may have to be written as data, so they count.
        let bytes = match slot.request {
            Request::Flush => {
                self.barrier.flush(token);
                self.let_flushes_go(means);
                return 0;
            }
            Request::Id => {
                self.identify(means, token);
                return 0;
            }
            Request::Discard { .. } => 0,
            Request::WriteZeroes { len, .. } => len,
            _ => {
                self.finish(means, token, Status::Ok);
                return 0;
            }
        };
        self.enter(token);
        self.step(means, token);
        bytes
    }

    /// Makes later flushes wait for a request.
    fn enter(&mut self, token: u32) {
        let epoch = self.barrier.enter();
        if let Some(slot) = self.slot(token) {
            slot.epoch = Some(epoch);
        }
    }

    fn identify(&mut self, means: &mut Means<'_, '_, M>, token: u32) {
        let Some(slot) = self.slot(token) else {
            return;
        };
        let written = slot
            .chain
            .writer(means.guest.view())
            .write(&means.disk.serial);
        let status = match written {
            Ok(()) => {
                slot.moved = means.disk.serial.len() as u64;
                Status::Ok
            }
            Err(_) => Status::IoErr,
        };
        self.finish(means, token, status);
    }

    /// Completes a request. [`give_back`](Self::give_back) returns it.
    pub(super) fn finish(&mut self, means: &mut Means<'_, '_, M>, token: u32, status: Status) {
        let Some(mut slot) = self.place(token).and_then(Option::take) else {
            return;
        };
        self.in_flight -= 1;
        self.pieces -= slot.pieces;
        let took = means.now.saturating_sub(slot.begun);
        means.counters.count(slot.request, status, took);
        let written = slot.end(means.guest.view(), status);
        let epoch = slot.epoch.take();
        if self.idle.len() < IDLE {
            self.idle.push(slot);
        }
        if let Some(done) = self.done.get_mut(usize::from(queue(token))) {
            done.push((head(token), written));
        }
        if let Some(epoch) = epoch {
            self.barrier.leave(epoch);
            self.let_flushes_go(means);
        }
    }

    fn let_flushes_go(&mut self, means: &mut Means<'_, '_, M>) {
        while let Some(token) = self.barrier.ready() {
            means.backend.push(token, Operation::Flush);
        }
    }

    /// Returns the chains of completed requests, and notifies the driver if it wants that.
    pub(super) fn give_back(&mut self, view: &View<'_, M::M>) -> Result<(), Broken> {
        let mut result = Ok(());
        let queues = self.active.queues.iter_mut().zip(&mut self.done);
        for (queue, (virtq, done)) in (0..).zip(queues) {
            let Some(virtq) = virtq else {
                continue;
            };
            if done.is_empty() {
                continue;
            }
            let returned = virtq.push_all(view, done);
            done.clear();
            match returned.and_then(|()| virtq.needs_interrupt(view)) {
                Ok(true) => self.active.interrupt.queue(queue),
                Ok(false) => {}
                Err(broken) => result = Err(broken),
            }
        }
        result
    }
}
