// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Console input: from its reader thread through a bounded queue to the serial device.
//!
//! The control loop feeds the device, not the devices' thread. Most machines have no device with events, and so no such
//! thread. Starting one would cost time, and the control loop has little else to do.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use event_manager::{EventOps, Events, MutEventSubscriber};
use rustix::io::Errno;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use crate::outcome::{Outcome, OutcomeLatch};
use crate::sync::{Stop, Wake, lock, readable};

/// The most bytes read ahead of the guest, if the source can wait.
pub(super) const READ_AHEAD: usize = 4096;
/// The most bytes typed ahead of the guest. A terminal is read even if the guest takes no input, so that the escape
/// sequence works while a guest hangs. Further input is lost.
const TYPE_AHEAD: usize = 1 << 20;
/// The most bytes passed to the device at once. Its FIFO holds 64.
const BATCH: usize = 64;
/// The pause after the guest has read all input, before it gets more. Otherwise its interrupt handler would find the
/// next bytes before it returns, and a guest with one CPU could run nothing else. Its own buffers would then overflow.
const GAP: Duration = Duration::from_millis(1);

/// A consumer of console input: a serial device.
pub trait InputTarget: Send + Sync {
    /// Takes as many of `bytes` as fit, and returns how many.
    fn enqueue(&self, bytes: &[u8]) -> usize;

    /// Becomes readable when there is space again, after [`enqueue`](Self::enqueue) took less than all.
    fn input_room(&self) -> &EventFd;
}

#[derive(Debug, Default)]
struct State {
    bytes: VecDeque<u8>,
    quit: bool,
    /// Whether the reader thread waits for space.
    reader_waits: bool,
}

/// The queue between the reader thread and the event loop.
#[derive(Debug)]
pub(super) struct InputQueue {
    state: Mutex<State>,
    /// Wakes the reader thread: there is space.
    room: Wake,
    /// Wakes the event loop: there is input.
    event: Wake,
}

impl InputQueue {
    pub(super) fn new() -> io::Result<Self> {
        Ok(InputQueue {
            state: Mutex::default(),
            room: Wake::new()?,
            event: Wake::new()?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Free space in bytes. After 0, [`room_event`](Self::room_event) becomes readable when there is some.
    pub(super) fn room(&self) -> usize {
        let mut state = self.lock();
        // Drops an old event, which may no longer be true.
        self.room.clear();
        let room = READ_AHEAD.saturating_sub(state.bytes.len());
        state.reader_waits = room == 0;
        room
    }

    pub(super) fn room_event(&self) -> &Wake {
        &self.room
    }

    /// Appends `bytes`; at most as many as [`room`](Self::room) returned.
    pub(super) fn push(&self, bytes: &[u8]) {
        self.append(bytes, READ_AHEAD);
    }

    /// Appends typed `bytes`. What doesn't fit is lost.
    pub(super) fn push_typed(&self, bytes: &[u8]) {
        self.append(bytes, TYPE_AHEAD);
    }

    fn append(&self, bytes: &[u8], capacity: usize) {
        let mut state = self.lock();
        let room = capacity.saturating_sub(state.bytes.len());
        state.bytes.extend(&bytes[..room.min(bytes.len())]);
        self.event.signal();
    }

    /// Reads `fd` at the guest's pace until its end or `stop`.
    pub(super) fn fill_from(&self, fd: &impl AsFd, stop: &Stop) -> Result<(), Errno> {
        let mut buffer = [0; READ_AHEAD];
        while !stop.is_requested() {
            let room = self.room();
            if room == 0 {
                stop.poll([readable(&self.room)], None);
                continue;
            }
            let [input] = stop.poll([readable(fd)], None);
            if input.is_empty() {
                continue;
            }
            match rustix::io::read(fd, &mut buffer[..room]) {
                Ok(0) => return Ok(()),
                Ok(count) => self.push(&buffer[..count]),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reports that the user typed the escape sequence.
    pub(super) fn quit(&self) {
        self.lock().quit = true;
        self.event.signal();
    }

    /// Moves input to `target` until the queue is empty or the target full.
    pub(super) fn pump(&self, target: &dyn InputTarget) {
        loop {
            let mut batch = [0; BATCH];
            let mut state = self.lock();
            let count = state.bytes.len().min(BATCH);
            if count == 0 {
                return;
            }
            for (slot, byte) in batch.iter_mut().zip(&state.bytes) {
                *slot = *byte;
            }
            let taken = target.enqueue(&batch[..count]).min(count);
            state.bytes.drain(..taken);
            if taken > 0 && std::mem::take(&mut state.reader_waits) {
                self.room.signal();
            }
            if taken < count {
                return;
            }
        }
    }
}

/// Feeds the console's input to one machine's serial device, as a subscriber of the event loop.
pub struct ConsoleInput {
    queue: Arc<InputQueue>,
    target: Arc<dyn InputTarget>,
    outcome: OutcomeLatch,
    /// Created when input has to wait for the first time.
    timer: Option<TimerFd>,
    in_gap: bool,
}

impl ConsoleInput {
    pub(super) fn new(
        queue: Arc<InputQueue>,
        target: Arc<dyn InputTarget>,
        outcome: OutcomeLatch,
    ) -> Self {
        ConsoleInput {
            queue,
            target,
            outcome,
            timer: None,
            in_gap: false,
        }
    }

    /// Starts the pause. Without a timer there is none.
    fn begin_gap(&mut self, ops: &mut EventOps) {
        if self.timer.is_none() {
            let watched = |timer: &TimerFd| ops.add(Events::new(timer, EventSet::IN)).is_ok();
            self.timer = TimerFd::new().ok().filter(watched);
        }
        let timer = self.timer.as_mut();
        self.in_gap = timer.is_some_and(|timer| timer.reset(GAP, None).is_ok());
    }

    fn end_gap(&mut self) {
        if let Some(timer) = &mut self.timer {
            // The timer has expired, so this doesn't block.
            let _ = timer.wait();
        }
        self.in_gap = false;
    }

    fn serve(&self) {
        if self.queue.lock().quit {
            self.outcome.set(Outcome::ConsoleQuit);
        }
        if !self.in_gap {
            self.queue.pump(&*self.target);
        }
    }
}

impl MutEventSubscriber for ConsoleInput {
    fn init(&mut self, ops: &mut EventOps) {
        let fds = [
            self.queue.event.as_raw_fd(),
            self.target.input_room().as_raw_fd(),
        ];
        for fd in fds {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                log::error!(
                    "the console takes no input, because its event can't be watched: {error}"
                );
            }
        }
        // Serves what was typed before this machine started.
        self.serve();
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        // Cleared before the queue is checked, so that later input wakes the loop again.
        if events.fd() == self.queue.event.as_raw_fd() {
            self.queue.event.clear();
        } else if events.fd() == self.target.input_room().as_raw_fd() {
            let _ = self.target.input_room().read();
            self.begin_gap(ops);
        } else {
            self.end_gap();
        }
        self.serve();
    }
}

impl fmt::Debug for ConsoleInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleInput")
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{Device, SerialDevice};
    use crate::irq::IrqLine;
    use event_manager::{EventManager, SubscriberOps};
    use rustix::event::{PollFd, PollFlags, poll};
    use std::thread;
    use std::time::Instant;
    use vcpu_loop::bus::{BusDevice, Place};

    type Manager = EventManager<Arc<Mutex<dyn MutEventSubscriber + Send>>>;

    fn start() -> (
        Arc<InputQueue>,
        Arc<SerialDevice<Vec<u8>>>,
        OutcomeLatch,
        Manager,
    ) {
        let queue = Arc::new(InputQueue::new().unwrap());
        let device = Arc::new(SerialDevice::new(Vec::new(), IrqLine::unconnected()).unwrap());
        let outcome = OutcomeLatch::new().unwrap();
        let mut manager = Manager::new().unwrap();
        attach(&mut manager, &queue, &device, &outcome);
        (queue, device, outcome, manager)
    }

    fn attach(
        manager: &mut Manager,
        queue: &Arc<InputQueue>,
        device: &Arc<SerialDevice<Vec<u8>>>,
        outcome: &OutcomeLatch,
    ) -> event_manager::SubscriberId {
        let input = ConsoleInput::new(Arc::clone(queue), Arc::clone(device) as _, outcome.clone());
        manager.add_subscriber(Arc::new(Mutex::new(input)))
    }

    /// Pushes bytes as a reader thread does.
    fn push_all(queue: &InputQueue, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(queue.room().min(bytes.len()));
            if now.is_empty() {
                let mut wait = [PollFd::new(queue.room_event(), PollFlags::IN)];
                assert_ne!(poll(&mut wait, None).unwrap(), 0);
            }
            queue.push(now);
            bytes = later;
        }
    }

    /// Reads as a guest does, while data is ready.
    /// The receive buffer.
    const DATA: Place = Place {
        window: 0,
        offset: 0,
    };

    /// The bytes in the device.
    fn received(device: &SerialDevice<Vec<u8>>) -> Vec<serde_json::Value> {
        let saved = device.save(Instant::now()).unwrap().unwrap();
        saved.state["in_buffer"].as_array().unwrap().clone()
    }

    fn guest_reads(device: &SerialDevice<Vec<u8>>) -> Vec<u8> {
        let mut bytes = Vec::new();
        while !received(device).is_empty() {
            let mut byte = [0];
            let _ = device.read(DATA, &mut byte);
            bytes.extend(byte);
        }
        bytes
    }

    #[test]
    fn all_input_arrives_in_order_and_nothing_spins() {
        let (queue, device, outcome, mut manager) = start();
        let input: Vec<u8> = (0..20_000u32).map(|i| (i % 251) as u8).collect();
        let pusher = thread::spawn({
            let (queue, input) = (Arc::clone(&queue), input.clone());
            move || push_all(&queue, &input)
        });
        let (mut received, mut rounds) = (Vec::new(), 0);
        while received.len() < input.len() {
            manager.run_with_timeout(5000).unwrap();
            received.extend(guest_reads(&device));
            rounds += 1;
        }
        pusher.join().unwrap();
        assert_eq!(received, input);
        assert!(rounds <= 4 * input.len() / BATCH, "{rounds} rounds");
        while manager.run_with_timeout(0).unwrap() > 0 {}
        assert_eq!(
            manager.run_with_timeout(20).unwrap(),
            0,
            "idle when all is read"
        );
        assert!(!outcome.is_set());
    }

    #[test]
    fn full_device_does_not_spin() {
        let (queue, device, _, mut manager) = start();
        queue.push_typed(&[b'x'; 100]);
        assert_eq!(manager.run_with_timeout(1000).unwrap(), 1);
        assert_eq!(
            manager.run_with_timeout(20).unwrap(),
            0,
            "the guest reads nothing"
        );
        assert_eq!(guest_reads(&device).len(), 64);
        let read = Instant::now();
        queue.push_typed(b"x");
        while received(&device).is_empty() {
            assert_ne!(manager.run_with_timeout(5000).unwrap(), 0);
        }
        assert!(read.elapsed() >= GAP, "the guest's own time");
        assert_eq!(guest_reads(&device).len(), 37);
    }

    #[test]
    fn next_machine_gets_what_is_left() {
        let (queue, first, outcome, _) = start();
        let mut manager = Manager::new().unwrap();
        let id = attach(&mut manager, &queue, &first, &outcome);
        queue.push(&[b'x'; 65]);
        manager.run_with_timeout(1000).unwrap();
        manager.remove_subscriber(id).unwrap();
        let second = Arc::new(SerialDevice::new(Vec::new(), IrqLine::unconnected()).unwrap());
        attach(&mut manager, &queue, &second, &outcome);
        assert_eq!(guest_reads(&second), b"x");
    }

    #[test]
    fn quit_reaches_the_latch_even_when_the_guest_hangs() {
        let (queue, _, outcome, mut manager) = start();
        queue.push_typed(&vec![b'x'; TYPE_AHEAD + 1]);
        queue.push_typed(b"lost");
        assert_eq!(queue.lock().bytes.len(), TYPE_AHEAD);
        queue.quit();
        manager.run_with_timeout(1000).unwrap();
        assert_eq!(outcome.get(), Some(Outcome::ConsoleQuit));
    }
}
