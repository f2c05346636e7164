// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rings that a backend has.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};
use virtio_transport::device::{Interest, Interrupt, Io};
use virtio_transport::memory::View;
use virtio_transport::queue::{Position, QueueState};
use vm_memory::{GuestAddress, GuestAddressSpace};

use super::fault::Fault;
use super::session::{Ring, Session};
use crate::timer::Timer;

/// The tokens of the sources. Those of the backend's notifications follow, one for each queue.
pub(super) const SOCKET: u32 = 0;
pub(super) const TIMER: u32 = 1;
pub(super) const CALLS: u32 = 2;

const READABLE: Interest = Interest {
    readable: true,
    writable: false,
};

/// What a backend gets.
pub(super) struct Given<M> {
    pub features: u64,
    pub memory: M,
    pub queues: Vec<Option<QueueState>>,
    pub interrupt: Arc<dyn Interrupt>,
}

/// Rings, and the connection to the backend that has them.
pub(super) struct Rings<M> {
    given: Given<M>,
    session: Session,
    /// The connection can't be used any more.
    is_lost: bool,
    bells: Vec<Option<Bells>>,
    timer: Timer,
}

/// The eventfds of a ring.
struct Bells {
    /// Written for the backend.
    kick: OwnedFd,
    /// Written by the backend.
    call: OwnedFd,
}

/// Rings that the backend was asked for.
pub(super) struct Stopping {
    /// Those that it has still to give back, in the order of the questions.
    pub wanted: VecDeque<u16>,
    /// Then the backend is taken for lost.
    give_up: Instant,
}

impl Bells {
    fn new() -> io::Result<Self> {
        let new = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Bells {
            kick: new()?,
            call: new()?,
        })
    }
}

impl<M: GuestAddressSpace> Rings<M> {
    /// Gives a backend its rings, until `by`.
    pub fn start(
        io: &mut Io<'_>,
        session: Session,
        given: Given<M>,
        by: Instant,
    ) -> Result<Self, Fault> {
        let bells = given.queues.iter();
        let bells = bells.map(|queue| queue.map(|_| Bells::new()).transpose());
        let mut rings = Rings {
            bells: bells.collect::<io::Result<_>>()?,
            timer: Timer::new()?,
            given,
            session,
            is_lost: false,
        };
        let started = rings.hand_over(io, by);
        started.inspect_err(|_| rings.unwatch(io))?;
        Ok(rings)
    }

    fn hand_over(&mut self, io: &mut Io<'_>, by: Instant) -> Result<(), Fault> {
        let memory = self.given.memory.memory();
        self.session.prepare(self.given.features, &*memory, by)?;
        io.watch(self.session.source(), SOCKET, READABLE)?;
        io.watch(self.timer.source(), TIMER, READABLE)?;
        let pairs = self.given.queues.iter().zip(&self.bells);
        for (number, (queue, bells)) in (0..).zip(pairs) {
            let (Some(state), Some(bells)) = (queue, bells) else {
                continue;
            };
            io.watch(bells.call.as_fd(), CALLS + u32::from(number), READABLE)?;
            let ring = Ring {
                number,
                state: *state,
                kick: bells.kick.as_fd(),
                call: bells.call.as_fd(),
            };
            self.session.start(&ring, by)?;
        }
        Ok(())
    }

    /// Notifies the backend of requests.
    pub fn kick(&self, queue: u16) {
        if let Some(Some(bells)) = self.bells.get(usize::from(queue)) {
            // Fails only if the counter is full, and then the backend wakes anyway.
            let _ = rustix::io::write(&bells.kick, &1_u64.to_ne_bytes());
        }
    }

    /// Passes on the backend's notification.
    pub fn call(&self, queue: u32) {
        let queue = queue as usize;
        if let Some(Some(bells)) = self.bells.get(queue)
            && rustix::io::read(&bells.call, &mut [0; 8]).is_ok()
        {
            self.given.interrupt.queue(queue as u16);
        }
    }

    /// Clears the timer.
    pub fn rest(&mut self) {
        self.timer.rest();
    }

    /// Does something with the connection, which is lost after an error.
    pub fn with_session(
        &mut self,
        act: impl FnOnce(&mut Session) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        if self.is_lost {
            return Err(Fault::Closed);
        }
        act(&mut self.session).inspect_err(|_| self.is_lost = true)
    }

    /// Asks the backend for all rings. It is taken for lost if it hasn't given them back at `give_up`.
    pub fn ask_to_stop(&mut self, give_up: Instant) -> Stopping {
        let numbers = (0..).zip(&self.bells);
        let wanted: VecDeque<u16> = numbers
            .filter_map(|(number, bells)| bells.as_ref().map(|_| number))
            .collect();
        let mut numbers = wanted.iter();
        // After an error it is lost, which is seen next.
        let _ = self.with_session(|session| {
            numbers.try_for_each(|number| session.ask_to_stop(*number, give_up))
        });
        Stopping { wanted, give_up }
    }

    /// Takes rings back until `by`. Returns whether it has all. A lost backend has none any more.
    pub fn collect(&mut self, stopping: &mut Stopping, by: Instant) -> bool {
        while let Some(&number) = stopping.wanted.front() {
            let answer = match self.is_lost {
                true => Err(Fault::Closed),
                false => self.session.position(number),
            };
            match answer {
                Ok(Some(next_available)) => {
                    let next_used = self.used(number);
                    self.set_position(number, next_available, next_used);
                    stopping.wanted.pop_front();
                }
                Ok(None) => match self.session.wait(by.min(stopping.give_up)) {
                    Ok(()) => {}
                    Err(Fault::Silent(_)) if Instant::now() < stopping.give_up => return false,
                    Err(_) => self.is_lost = true,
                },
                // Requests that have no answer are made again.
                Err(_) => {
                    self.is_lost = true;
                    let used = self.used(number);
                    self.set_position(number, used, used);
                    stopping.wanted.pop_front();
                }
            }
        }
        true
    }

    /// The used ring's index, which the backend has written.
    fn used(&self, number: u16) -> u16 {
        let state = self.given.queues.get(usize::from(number)).copied();
        let state = state.flatten().unwrap_or_default();
        let memory = self.given.memory.memory();
        let index = View::new(&*memory).load(GuestAddress(state.used + 2), Ordering::Acquire);
        index.map_or(state.position.next_used, u16::from_le)
    }

    fn set_position(&mut self, number: u16, next_available: u16, next_used: u16) {
        if let Some(Some(queue)) = self.given.queues.get_mut(usize::from(number)) {
            queue.position = Position {
                next_available,
                next_used,
            };
        }
    }

    /// Wakes the device when the backend is late.
    pub fn arm(&mut self, stopping: &Stopping) {
        let wait = stopping.give_up.saturating_duration_since(Instant::now());
        if self.timer.set(wait).is_err() {
            // Without a clock nobody would wake the device.
            self.is_lost = true;
        }
    }

    pub fn unwatch(&mut self, io: &mut Io<'_>) {
        let _ = io.unwatch(self.session.source(), SOCKET);
        let _ = io.unwatch(self.timer.source(), TIMER);
        for (number, bells) in (0..).zip(&self.bells) {
            if let Some(bells) = bells {
                let _ = io.unwatch(bells.call.as_fd(), CALLS + number);
            }
        }
    }

    /// The rings, and the connection unless it is lost.
    pub fn finish(self) -> (Given<M>, Option<Session>) {
        (self.given, (!self.is_lost).then_some(self.session))
    }
}
