// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device on the devices' thread.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use virtio_transport::device::{Event, RestoreError, StartError};
use virtio_transport::message::{Activation, Answer, Command, Failure};
use virtio_transport::worker::{SaveError, Worker, WorkerState};

use super::Memory;
use super::doorbells::Doorbells;
use super::poller::{Epoll, SeatPoller, Token};
use crate::sys::eventfd::borrow;

/// Receives a device's answers.
pub(super) trait Answered: Send + Sync {
    /// The device's name.
    fn id(&self) -> &str;

    /// Handles one. The caller holds no lock that a vCPU waits for.
    fn answer(&self, answer: &Answer);
}

/// A device, and what its thread needs for it.
pub(super) struct Seat {
    number: usize,
    worker: Worker<Memory>,
    port: Arc<dyn Answered>,
    doorbells: Arc<Doorbells>,
}

impl Seat {
    /// A device before its driver starts it.
    pub fn new(
        number: usize,
        worker: Worker<Memory>,
        port: Arc<dyn Answered>,
        doorbells: Arc<Doorbells>,
    ) -> Self {
        Seat {
            number,
            worker,
            port,
            doorbells,
        }
    }

    /// The device's name.
    pub fn id(&self) -> &str {
        self.port.id()
    }

    /// Calls the device, and passes the answers to its port.
    fn call<T>(
        &mut self,
        epoll: &mut Epoll,
        call: impl FnOnce(&mut Worker<Memory>, &mut SeatPoller<'_>, &mut Vec<Answer>) -> T,
    ) -> T {
        let (mut answers, seat) = (Vec::new(), self.number);
        let result = call(
            &mut self.worker,
            &mut SeatPoller { epoll, seat },
            &mut answers,
        );
        for answer in &answers {
            self.port.answer(answer);
        }
        result
    }

    /// Takes an event that the device wants again.
    pub fn again(&mut self) -> Option<Event> {
        self.worker.again()
    }

    /// Executes a command of the port.
    pub fn perform(&mut self, epoll: &mut Epoll, command: Command) {
        match &command {
            Command::Start(activation) => {
                if let Err(source) = self.prepare(epoll, activation) {
                    return self.refuse(activation.epoch, source);
                }
            }
            // A device that is being reset takes no notifications.
            Command::Reset { .. } => self.doorbells.connect(&[]),
            Command::SetConfig { .. } => {}
        }
        let is_start = matches!(command, Command::Start(_));
        self.call(epoll, |worker, poller, answers| {
            worker.perform(poller, command, answers)
        });
        if is_start {
            self.connect();
        }
    }

    /// Creates the eventfds of queues that are about to start. This comes first, so that no notification is lost.
    fn prepare(&mut self, epoll: &mut Epoll, activation: &Activation) -> io::Result<()> {
        let seat = self.number;
        for queue in activation.numbers() {
            let token = Token::Kick { seat, queue };
            if let Some(event) = self.doorbells.make(queue)?
                && !epoll.watches(token)
            {
                // The eventfd stays open as long as the device exists. It is never read: each write is an event.
                epoll.watch(borrow(event), token, EventFlags::IN | EventFlags::ET)?;
            }
        }
        Ok(())
    }

    /// Tells the driver that the device can't start.
    pub fn refuse(&self, epoch: u64, source: io::Error) {
        let what = "the host has no thread or descriptor left for its queues";
        let why = Failure::Start(StartError { what, source });
        self.port.answer(&Answer::NeedsReset { epoch, why });
    }

    /// Connects the notifications of a running device to KVM.
    fn connect(&self) {
        if let Some(activation) = self.worker.running() {
            self.doorbells
                .connect(&activation.numbers().collect::<Vec<_>>());
        }
    }

    /// Handles an event of the device.
    pub fn process(&mut self, epoll: &mut Epoll, event: Event) {
        self.call(epoll, |worker, poller, answers| {
            worker.process(poller, event, answers)
        });
    }

    /// Pauses the device: it accesses no guest memory afterwards. Returns `false` if it can't by `by`.
    pub fn pause(&mut self, epoll: &mut Epoll, by: Instant) -> bool {
        self.call(epoll, |worker, poller, answers| {
            worker.pause(poller, by, answers)
        })
        .is_ok()
    }

    /// Stops the device for good, with KVM's notifications. Returns `false` if it can't by `by`.
    pub fn leave(&mut self, epoll: &mut Epoll, by: Instant) -> bool {
        self.doorbells.leave();
        self.pause(epoll, by)
    }

    /// Resumes the device.
    pub fn resume(&mut self, epoll: &mut Epoll) {
        self.call(epoll, |worker, poller, answers| {
            worker.resume(poller, answers)
        });
        self.connect();
    }

    /// The state of a paused device, after it stored what it completed, until `by` at the latest.
    pub fn save(&mut self, by: Instant) -> Result<WorkerState, SaveError> {
        self.worker.save(by)
    }

    /// Restores a state. The device is paused then.
    pub fn restore(
        &mut self,
        epoll: &mut Epoll,
        state: &WorkerState,
        activation: Option<Activation>,
    ) -> Result<(), RestoreError> {
        if let Some(activation) = &activation {
            self.prepare(epoll, activation).map_err(|_| {
                RestoreError::Value("the host has no descriptor left for its queues")
            })?;
        }
        self.worker.restore(state, activation)
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat")
            .field("number", &self.number)
            .field("worker", &self.worker)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use virtio_transport::device::Interrupt;
    use virtio_transport::queue::QueueState;
    use virtio_transport::testing::{self, Echo};

    use super::*;
    use crate::irq::{Doorbell, Irqs};

    struct Silent;

    impl Answered for Silent {
        fn id(&self) -> &str {
            "silent"
        }
        fn answer(&self, _: &Answer) {}
    }

    impl Interrupt for Silent {
        fn queue(&self, _: u16) {}
        fn config(&self) {}
    }

    #[test]
    fn a_queue_that_could_not_be_watched_is_watched_by_the_next_start() {
        let memory = testing::memory(testing::MEMORY);
        let worker = Worker::new(Box::new(Echo::new()), memory, Arc::new(Silent));
        let place = |address, _| Doorbell {
            address,
            data: None,
        };
        let doorbells = Doorbells::new(&Irqs::unconnected(), 2, None, place);
        let mut seat = Seat::new(0, worker, Arc::new(Silent), Arc::new(doorbells));
        let activation = Activation {
            epoch: 0,
            features: 0,
            queues: vec![Some(QueueState::default()), None],
        };
        let (mut epoll, token) = (Epoll::default(), Token::Kick { seat: 0, queue: 0 });
        seat.prepare(&mut epoll, &activation).unwrap_err();
        assert!(!epoll.watches(token));
        epoll.open().unwrap();
        seat.prepare(&mut epoll, &activation).unwrap();
        assert!(epoll.watches(token));
    }
    #[test]
    fn each_notification_is_one_event_though_nobody_reads_it() {
        let memory = testing::memory(testing::MEMORY);
        let worker = Worker::new(Box::new(Echo::new()), memory, Arc::new(Silent));
        let place = |address, _| Doorbell {
            address,
            data: None,
        };
        let doorbells = Arc::new(Doorbells::new(&Irqs::unconnected(), 1, None, place));
        let mut seat = Seat::new(0, worker, Arc::new(Silent), Arc::clone(&doorbells));
        let activation = Activation {
            epoch: 0,
            features: 0,
            queues: vec![Some(QueueState::default())],
        };
        let mut epoll = Epoll::default();
        epoll.open().unwrap();
        seat.prepare(&mut epoll, &activation).unwrap();
        let mut events = Vec::with_capacity(4);
        let mut count = || {
            epoll.wait(&mut events, false).unwrap();
            events.len()
        };
        assert_eq!(count(), 0);
        for _ in 0..3 {
            doorbells.ring(0);
            assert_eq!((count(), count()), (1, 0));
        }
    }
}
