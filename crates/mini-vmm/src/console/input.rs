// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Console input: from the thread that reads it, through a bounded queue, to the serial device.
//!
//! The control loop feeds the device, not the devices' thread: most machines have no device with events, so that thread
//! would cost each of them something at its start, and the control loop has little else to do.

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

/// Bytes read ahead of the guest, where the source can wait.
pub(super) const READ_AHEAD: usize = 4096;
/// Bytes typed ahead of the guest. A terminal is read on even when nobody takes its input, for
/// the escape sequence must work while a guest hangs; what is beyond this is lost.
const TYPE_AHEAD: usize = 1 << 20;
/// Bytes handed to the device at once; its FIFO has room for 64.
const BATCH: usize = 64;
/// How long a guest that has read what there was has for itself before more comes. Without it an interrupt handler
/// would find the next bytes before it leaves, and nothing else of a guest with one CPU would run: what the handler
/// reads then overflows the guest's own buffers.
const GAP: Duration = Duration::from_millis(1);

/// Something that takes console input: a serial device.
pub trait InputTarget: Send + Sync {
    /// Takes as much of `bytes` as there is room for, and returns how much that is.
    fn enqueue(&self, bytes: &[u8]) -> usize;

    /// Becomes readable when there is room again after [`enqueue`](Self::enqueue) took less than all.
    fn input_room(&self) -> &EventFd;
}

#[derive(Debug, Default)]
struct State {
    bytes: VecDeque<u8>,
    quit: bool,
    /// Whether the reader thread waits for room.
    reader_waits: bool,
}

/// Input between its reader thread and the event loop.
#[derive(Debug)]
pub(super) struct InputQueue {
    state: Mutex<State>,
    /// For the reader thread: there is room.
    room: Wake,
    /// For the event loop: there is input.
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

    /// Bytes that there is room for. After 0, [`room_event`](Self::room_event) tells when there is some.
    pub(super) fn room(&self) -> usize {
        let mut state = self.lock();
        // An event from before says nothing about now.
        self.room.clear();
        let room = READ_AHEAD.saturating_sub(state.bytes.len());
        state.reader_waits = room == 0;
        room
    }

    pub(super) fn room_event(&self) -> &Wake {
        &self.room
    }

    /// Appends `bytes`, at most as many as there was [`room`](Self::room) for.
    pub(super) fn push(&self, bytes: &[u8]) {
        self.append(bytes, READ_AHEAD);
    }

    /// Appends typed `bytes`; what does not fit is lost.
    pub(super) fn push_typed(&self, bytes: &[u8]) {
        self.append(bytes, TYPE_AHEAD);
    }

    fn append(&self, bytes: &[u8], capacity: usize) {
        let mut state = self.lock();
        let room = capacity.saturating_sub(state.bytes.len());
        state.bytes.extend(&bytes[..room.min(bytes.len())]);
        self.event.signal();
    }

    /// Reads what `fd` has, as fast as the guest takes it, until it ends or `stop`.
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

    /// The user typed the escape sequence.
    pub(super) fn quit(&self) {
        self.lock().quit = true;
        self.event.signal();
    }

    /// Moves input to `target` until one has none or the other no room.
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

/// Feeds one machine's serial device from the console, as a subscriber of its event loop.
pub struct ConsoleInput {
    queue: Arc<InputQueue>,
    target: Arc<dyn InputTarget>,
    outcome: OutcomeLatch,
    /// Made when the first input had to wait.
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

    /// Begins the gap; without a timer there is none.
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
            // It has expired, so this does not wait.
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
                log::error!("the console takes no input, its event can't be watched: {error}");
            }
        }
        // What was typed before this machine started.
        self.serve();
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        // Cleared before the queue is looked at, so that what comes later wakes again.
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

    /// Pushes as a reader thread does.
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

    /// Reads as a guest does: while data is ready.
    /// The receive buffer.
    const DATA: Place = Place {
        window: 0,
        offset: 0,
    };

    /// What waits in the device.
    fn received(device: &SerialDevice<Vec<u8>>) -> Vec<serde_json::Value> {
        let saved = device.save().unwrap().unwrap();
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
