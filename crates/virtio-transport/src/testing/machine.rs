// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM in one thread: it passes messages between a transport and a device.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use crate::device::{AnyDevice, Event, Interest, Poller, RestoreError};
use crate::message::{Answer, Command, Failure};
use crate::queue::NotDrained;
use crate::registers::{Effect, Notice};
use crate::worker::{Worker, WorkerState};

use super::port::Port;
use super::{MEMORY, Memory};

/// A generous limit, only to end a hang.
const LIMIT: Duration = Duration::from_secs(600);

/// An event loop for one device.
#[derive(Debug, Default)]
pub struct TestPoller {
    watched: BTreeMap<u32, (OwnedFd, Interest)>,
}

impl TestPoller {
    /// The number of watched sources.
    pub fn watched(&self) -> usize {
        self.watched.len()
    }

    /// The sources that are ready, or become so within `wait`.
    fn ready(&self, wait: Duration) -> Vec<u32> {
        let flags = |interest: &Interest| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, interest.readable);
            flags.set(PollFlags::OUT, interest.writable);
            flags
        };
        let watched = self.watched.values();
        let mut fds: Vec<_> = watched
            .map(|(fd, interest)| PollFd::new(fd, flags(interest)))
            .collect();
        let wait = Timespec::try_from(wait).expect("a short time");
        retry_on_intr(|| poll(&mut fds, Some(&wait))).expect("poll");
        let tokens = self.watched.keys().zip(fds);
        tokens
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(token, _)| *token)
            .collect()
    }
}

impl Poller for TestPoller {
    fn watch(&mut self, source: BorrowedFd<'_>, token: u32, interest: Interest) -> io::Result<()> {
        let fd = source.as_fd().try_clone_to_owned()?;
        self.watched.insert(token, (fd, interest));
        Ok(())
    }

    fn unwatch(&mut self, _source: BorrowedFd<'_>, token: u32) -> io::Result<()> {
        self.watched.remove(&token);
        Ok(())
    }
}

/// A device behind a transport.
pub struct Machine<P> {
    /// The transport.
    pub port: P,
    /// The device.
    pub worker: Worker<Memory>,
    /// Guest memory.
    pub memory: Memory,
    /// The device's event loop.
    pub poller: TestPoller,
    /// The reasons of the device's failures.
    pub failures: Vec<Failure>,
    mail: VecDeque<Command>,
    kicks: BTreeSet<u16>,
    again: Vec<Event>,
}

impl<P: Port> Machine<P> {
    /// A machine before its driver's first access.
    pub fn new(device: Box<dyn AnyDevice<Memory>>, memory: &Memory) -> Self {
        let port = P::new(device.layout(), device.config());
        let worker = Worker::new(device, memory.memory(), port.interrupt());
        Machine {
            port,
            worker,
            memory: memory.clone(),
            poller: TestPoller::default(),
            failures: Vec::new(),
            mail: VecDeque::new(),
            kicks: BTreeSet::new(),
            again: Vec::new(),
        }
    }

    /// Does what an access requires.
    ///
    /// # Panics
    /// If a vCPU would wait for ever.
    pub fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Kick(queue) => {
                self.kicks.insert(queue);
            }
            Effect::Post(command) => self.mail.push_back(command),
            Effect::PostAndWait(command) => {
                self.mail.push_back(command);
                self.pump_until(|machine| machine.port.registers().is_settled());
            }
            Effect::Wait => self.pump_until(|machine| machine.port.registers().is_settled()),
        }
    }

    /// The driver writes registers.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let effect = self.port.write(offset, data);
        self.effect(effect);
    }

    /// The driver writes the status.
    pub fn set_status(&mut self, status: u8) {
        let effect = self.port.set_status(status);
        self.effect(effect);
    }

    /// The driver notifies a queue.
    pub fn kick(&mut self, queue: u16) {
        let effect = self.port.kick(queue);
        self.effect(effect);
    }

    /// Lets the device do all pending work.
    ///
    /// # Panics
    /// If that never ends: the device watches a source that it doesn't handle.
    pub fn pump(&mut self) {
        let rests = (0..100_000).any(|_| !self.turn(Duration::ZERO));
        assert!(rests, "the device never rests");
    }

    /// Lets the device handle one thing.
    pub fn step(&mut self) {
        self.turn(Duration::ZERO);
    }

    /// Lets the device execute the pending commands.
    pub fn settle(&mut self) {
        while !self.mail.is_empty() {
            self.turn(Duration::ZERO);
        }
    }

    /// The contents of guest memory.
    ///
    /// # Panics
    /// If guest memory is smaller than [`MEMORY`](super::MEMORY).
    pub fn image(&self) -> Vec<u8> {
        let mut image = vec![0; MEMORY];
        let read = self.memory.read_slice(&mut image, GuestAddress(0));
        read.expect("guest memory");
        image
    }

    /// Copies guest memory to `other`.
    ///
    /// # Panics
    /// If guest memory is smaller than [`MEMORY`](super::MEMORY).
    pub fn copy_memory(&self, other: &Memory) {
        let written = other.write_slice(&self.image(), GuestAddress(0));
        written.expect("guest memory");
    }

    /// Lets the device work until `holds` returns true.
    ///
    /// # Panics
    /// If that takes minutes: the device hangs.
    pub fn pump_until(&mut self, mut holds: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            assert!(start.elapsed() <= LIMIT, "the device hangs");
            self.turn(Duration::from_millis(10));
        }
    }

    /// Lets the device work. Returns whether it had anything to do.
    fn turn(&mut self, wait: Duration) -> bool {
        let mut answers = Vec::new();
        let mut did = false;
        while let Some(command) = self.mail.pop_front() {
            self.worker.perform(&mut self.poller, command, &mut answers);
            did = true;
        }
        while let Some(queue) = self.kicks.pop_first() {
            let event = Event::Queue(queue);
            self.worker.process(&mut self.poller, event, &mut answers);
            did = true;
        }
        for event in std::mem::take(&mut self.again) {
            self.worker.process(&mut self.poller, event, &mut answers);
            did = true;
        }
        self.note_again();
        let wait = if did || !self.again.is_empty() {
            Duration::ZERO
        } else {
            wait
        };
        for token in self.poller.ready(wait) {
            let event = Event::Source(token);
            self.worker.process(&mut self.poller, event, &mut answers);
            did = true;
        }
        self.note_again();
        self.deliver(answers);
        did || !self.again.is_empty()
    }

    /// Notes what the device wants again, each event once.
    fn note_again(&mut self) {
        while let Some(event) = self.worker.again() {
            if !self.again.contains(&event) {
                self.again.push(event);
            }
        }
    }

    fn deliver(&mut self, answers: Vec<Answer>) {
        for answer in answers {
            if self.port.answer(&answer) == Notice::Config {
                self.port.interrupt().config();
            }
            if let Answer::NeedsReset { why, .. } = answer {
                self.failures.push(why);
            }
        }
    }

    /// Pauses the device.
    ///
    /// # Errors
    /// [`NotDrained`] after minutes: the device hangs.
    pub fn pause(&mut self) -> Result<(), NotDrained> {
        let mut answers = Vec::new();
        let by = Instant::now() + LIMIT;
        let paused = self.worker.pause(&mut self.poller, by, &mut answers);
        self.deliver(answers);
        paused
    }

    /// Resumes the device.
    pub fn resume(&mut self) {
        let mut answers = Vec::new();
        self.worker.resume(&mut self.poller, &mut answers);
        self.deliver(answers);
    }

    /// Saves a paused machine.
    ///
    /// # Panics
    /// If that fails.
    pub fn save(&mut self) -> (P::State, WorkerState) {
        let port = self.port.save().expect("a settled transport");
        (
            port,
            self.worker
                .save(Instant::now() + LIMIT)
                .expect("a paused device"),
        )
    }

    /// Restores a state to a new machine. It is paused then.
    ///
    /// # Errors
    /// The error of the transport or the device.
    pub fn restore(
        &mut self,
        (port, worker): &(P::State, WorkerState),
    ) -> Result<(), RestoreError> {
        let activation = self.port.restore(port, worker.positions.as_deref())?;
        self.worker.restore(worker, activation)
    }
}

impl<P: fmt::Debug> fmt::Debug for Machine<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("port", &self.port)
            .field("worker", &self.worker)
            .field("failures", &self.failures)
            .finish_non_exhaustive()
    }
}
