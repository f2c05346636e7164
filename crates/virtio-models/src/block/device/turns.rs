// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's turns: it takes requests, starts operations, and completes requests.

use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_transport::Broken;
use virtio_transport::device::Io;
use vm_memory::GuestAddressSpace;

use super::Block;
use crate::block::backend::Done;
use crate::block::counters;
use crate::block::retry::SOON;
use crate::block::running::{Means, Running};
use crate::rate::Limiter;
use crate::sys::Guest;

/// The most requests from a queue before others get a turn.
const BURST: usize = 64;

impl<M: GuestAddressSpace> Block<M>
where
    M::T: Send + Sync + 'static,
{
    /// Guest memory, if it runs.
    pub(super) fn memory(&mut self) -> Option<Arc<M::T>> {
        self.running.as_mut().map(Running::memory)
    }

    /// The device's parts for handling a request.
    fn split<'a, 'm>(
        &'a mut self,
        guest: &'a Guest<'m, M::T>,
    ) -> Option<(&'a mut Running<M>, Means<'a, 'm, M>, &'a mut Vec<Done>)> {
        let (Some(running), Some(backend)) = (&mut self.running, &mut self.backend) else {
            return None;
        };
        let means = Means {
            guest,
            disk: &self.disk,
            backend: &mut **backend,
            writeback: self.writeback,
            reporter: &mut self.reporter,
            counters: &self.counters,
            now: counters::now(),
        };
        Some((running, means, &mut self.done))
    }

    /// Takes requests from a queue, up to a limit.
    pub(super) fn take(
        &mut self,
        io: &mut Io<'_>,
        guest: &Guest<'_, M::T>,
        queue: u16,
    ) -> Result<(), Broken> {
        let mut limiter = self.limiter.take();
        let mut has_taken = false;
        let took = self.take_within(io, guest, queue, limiter.as_deref_mut(), &mut has_taken);
        self.limiter = limiter;
        if has_taken {
            self.first = (u32::from(queue) + 1) % 64;
        }
        took
    }

    fn take_within(
        &mut self,
        io: &mut Io<'_>,
        guest: &Guest<'_, M::T>,
        queue: u16,
        mut limiter: Option<&mut Limiter>,
        has_taken: &mut bool,
    ) -> Result<(), Broken> {
        let bit = 1 << (queue % 64);
        if self.replacing {
            self.throttled |= bit;
            return Ok(());
        }
        self.throttled &= !bit;
        let Some((running, mut means, _)) = self.split(guest) else {
            return Ok(());
        };
        for _ in 0..BURST {
            let is_full = running.is_full();
            if is_full || limiter.as_mut().is_some_and(|limiter| !limiter.allows()) {
                self.throttled |= bit;
                self.crowded |= is_full;
                return Ok(());
            }
            match running.take(&mut means, queue)? {
                Some(bytes) => {
                    *has_taken = true;
                    limiter.iter_mut().for_each(|limiter| limiter.count(bytes));
                }
                None if running.enable_kicks(guest.view(), queue)? => {}
                None => return Ok(()),
            }
        }
        // The event may be the limiter's, which looks at these queues only.
        self.throttled |= bit;
        io.again();
        Ok(())
    }

    /// Handles the end of a wait: takes requests from the queues that had to wait. The first is the one after the queue
    /// that had something last, since there may be enough for one only.
    pub(super) fn go_on(&mut self, io: &mut Io<'_>, guest: &Guest<'_, M::T>) -> Result<(), Broken> {
        if self.draining {
            return Ok(());
        }
        let start = self.first;
        let mut waiting = self.throttled.rotate_right(start);
        let mut result = Ok(());
        while waiting != 0 {
            let queue = (start + waiting.trailing_zeros()) % 64;
            waiting &= waiting - 1;
            result = result.and(self.take(io, guest, queue as u16));
        }
        result
    }

    /// Whether there is space for the requests that wait for it.
    pub(super) fn has_space(&self) -> bool {
        let has_space = |running: &Running<M>| !running.is_full();
        self.crowded && !self.draining && self.running.as_ref().is_some_and(has_space)
    }

    /// Whether no request is in flight.
    pub(super) fn is_idle(&self) -> bool {
        let running = self.running.as_ref();
        running.is_none_or(|running| running.in_flight() == 0)
    }

    /// Starts operations and completes requests. Returns whether all operations were started.
    pub(super) fn settle(&mut self, guest: &Guest<'_, M::T>) -> (bool, Result<(), Broken>) {
        let Some((running, mut means, done)) = self.split(guest) else {
            return (true, Ok(()));
        };
        loop {
            let began = means.backend.submit();
            means.backend.reap(done);
            if done.is_empty() {
                return (began, running.give_back(guest.view()));
            }
            for done in done.drain(..) {
                running.complete(&mut means, done);
            }
        }
    }

    /// Waits for the back end, at most until `by`.
    pub(super) fn wait(&self, began: bool, by: Instant) {
        let left = by.saturating_duration_since(Instant::now());
        let left = if began { left } else { left.min(SOON) };
        if let Some(backend) = &self.backend {
            let source = backend.source();
            let mut fds = [PollFd::from_borrowed_fd(source, PollFlags::IN)];
            let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
        }
    }
}
