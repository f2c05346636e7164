// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A worker with a device that does what a test says, and its answers.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use virtio_transport::device::{
    Active, Event, Interest, Interrupt, Io, Poller, RestoreError, StartError,
};
use virtio_transport::layout::{Layout, VERSION_1};
use virtio_transport::message::{Activation, Answer, Command};
use virtio_transport::queue::{NotDrained, QueueState};
use virtio_transport::testing::{DriverRing, Memory, memory};
use virtio_transport::worker::Worker;
use virtio_transport::{Broken, Device};

pub const RUNS: &str = "config [0, 0]";
pub const STARTED: &str = "start, Queue(1)";

/// What the device should do, and what was done to it.
#[derive(Debug, Default)]
pub struct Plan {
    pub calls: Vec<String>,
    pub cannot_start: bool,
    pub breaks: bool,
    pub again: bool,
    /// When a flush is done.
    pub stored_at: Option<Instant>,
    /// How many calls of `stop` fail.
    pub in_flight: u16,
    pub key: u8,
}

pub struct Puppet {
    pub plan: Arc<Mutex<Plan>>,
    pub active: Option<Active<Memory>>,
}

impl Puppet {
    fn call(&self, call: impl Into<String>) -> std::sync::MutexGuard<'_, Plan> {
        let mut plan = self.plan.lock().unwrap();
        plan.calls.push(call.into());
        plan
    }
}

impl Device<Memory> for Puppet {
    type State = u8;

    const KIND: &'static str = "puppet";
    const VERSION: u32 = 3;

    fn layout(&self) -> Layout {
        Layout {
            id: 1,
            features: 0,
            requires: &[],
            queues: vec![8, 8],
            config_len: 2,
        }
    }

    fn config(&self, out: &mut Vec<u8>) {
        // Too short: it is padded.
        out.push(self.plan.lock().unwrap().key);
    }

    fn set_config(&mut self, io: &mut Io<'_>, at: u32, data: &[u8]) {
        self.call(format!("set {at} {data:?}")).key = data[0];
        io.config_changed();
    }

    fn start(&mut self, _: &mut Io<'_>, active: Active<Memory>) -> Result<(), StartError> {
        if self.call("start").cannot_start {
            return Err(StartError {
                what: "no",
                source: io::ErrorKind::Other.into(),
            });
        }
        self.active = Some(active);
        Ok(())
    }

    fn process(&mut self, io: &mut Io<'_>, event: Event) -> Result<(), Broken> {
        let plan = self.call(format!("{event:?}"));
        if plan.again {
            io.again();
        }
        if plan.breaks {
            return Err(Broken::Device("told to"));
        }
        Ok(())
    }

    fn stop(&mut self, _: &mut Io<'_>, _: Instant) -> Result<Vec<Option<QueueState>>, NotDrained> {
        let mut plan = self.call("stop");
        if plan.in_flight > 0 {
            let in_flight = plan.in_flight;
            plan.in_flight -= 1;
            return Err(NotDrained { in_flight });
        }
        drop(plan);
        let queues = self.active.take().map(|active| active.queues);
        let states = queues.into_iter().flatten();
        states
            .map(|queue| queue.map(|queue| queue.state()).transpose())
            .collect()
    }

    fn flush(&mut self, by: Instant) -> io::Result<()> {
        let stored = self.call("flush").stored_at;
        match stored {
            Some(stored) if stored > by => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    fn reset(&mut self) {
        self.call("reset").key = 0;
    }

    fn save(&self) -> u8 {
        self.call("save").key
    }

    fn restore(&mut self, version: u32, state: u8) -> Result<(), RestoreError> {
        self.call(format!("restore {version}")).key = state;
        Ok(())
    }
}

pub struct Interrupts(pub Mutex<Vec<u16>>);

impl Interrupt for Interrupts {
    fn queue(&self, queue: u16) {
        self.0.lock().unwrap().push(queue);
    }

    fn config(&self) {
        panic!("this is the transport's to do");
    }
}

pub struct NoPoller;

impl Poller for NoPoller {
    fn watch(&mut self, _: BorrowedFd<'_>, _: u32, _: Interest) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn unwatch(&mut self, _: BorrowedFd<'_>, _: u32) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

pub struct Bench {
    pub worker: Worker<Memory>,
    pub plan: Arc<Mutex<Plan>>,
    pub interrupts: Arc<Interrupts>,
    pub memory: Memory,
}

impl Bench {
    pub fn new() -> Self {
        let plan = Arc::<Mutex<Plan>>::default();
        let interrupts = Arc::new(Interrupts(Mutex::default()));
        let memory = memory(1 << 16);
        let puppet = Puppet {
            plan: Arc::clone(&plan),
            active: None,
        };
        let interrupt = Arc::clone(&interrupts);
        Bench {
            worker: Worker::new(Box::new(puppet), memory.clone(), interrupt),
            plan,
            interrupts,
            memory,
        }
    }

    pub fn activation(&self, epoch: u64) -> Activation {
        Activation {
            epoch,
            features: VERSION_1,
            queues: vec![None, Some(DriverRing::new(&self.memory, 0x1000, 8).state())],
        }
    }

    /// The calls to the device since the last check.
    pub fn calls(&self) -> String {
        std::mem::take(&mut self.plan.lock().unwrap().calls).join(", ")
    }

    pub fn perform(&mut self, command: Command) -> String {
        let mut answers = Vec::new();
        self.worker.perform(&mut NoPoller, command, &mut answers);
        text(&answers)
    }

    pub fn start(&mut self, epoch: u64) -> String {
        let activation = self.activation(epoch);
        self.perform(Command::Start(activation))
    }

    pub fn reset(&mut self, epoch: u64) -> String {
        self.perform(Command::Reset { epoch })
    }

    pub fn process(&mut self, event: Event) -> String {
        let mut answers = Vec::new();
        self.worker.process(&mut NoPoller, event, &mut answers);
        text(&answers)
    }

    pub fn pause(&mut self) -> Result<String, NotDrained> {
        let mut answers = Vec::new();
        let by = Instant::now();
        self.worker.pause(&mut NoPoller, by, &mut answers)?;
        Ok(text(&answers))
    }

    pub fn resume(&mut self) -> String {
        let mut answers = Vec::new();
        self.worker.resume(&mut NoPoller, &mut answers);
        text(&answers)
    }
}

pub fn text(answers: &[Answer]) -> String {
    let text = |answer: &Answer| match answer {
        Answer::Reset { epoch, config } => format!("reset {epoch} {config:?}"),
        Answer::ConfigSet { config } => format!("set {config:?}"),
        Answer::Config { config } => format!("config {config:?}"),
        Answer::NeedsReset { epoch, why } => format!("broken {epoch} {why}"),
    };
    answers.iter().map(text).collect::<Vec<_>>().join(", ")
}
