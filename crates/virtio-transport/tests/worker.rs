// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's side of the messages, with a scripted device.
#![allow(clippy::unwrap_used)]

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use virtio_transport::device::{
    Active, Event, Interest, Interrupt, Io, Poller, RestoreError, Saved, StartError,
};
use virtio_transport::layout::{Layout, VERSION_1};
use virtio_transport::message::{Activation, Answer, Command, Failure};
use virtio_transport::queue::{NotDrained, Position, QueueState};
use virtio_transport::testing::{DriverRing, Memory, memory};
use virtio_transport::worker::{SaveError, Worker, WorkerState};
use virtio_transport::{Broken, Device};

/// What the device should do, and what was done to it.
#[derive(Debug, Default)]
struct Plan {
    calls: Vec<String>,
    cannot_start: bool,
    breaks: bool,
    again: bool,
    /// When a flush is done.
    stored_at: Option<Instant>,
    /// How many calls of `stop` fail.
    in_flight: u16,
    key: u8,
}

struct Puppet {
    plan: Arc<Mutex<Plan>>,
    active: Option<Active<Memory>>,
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

struct Interrupts(Mutex<Vec<u16>>);

impl Interrupt for Interrupts {
    fn queue(&self, queue: u16) {
        self.0.lock().unwrap().push(queue);
    }

    fn config(&self) {
        panic!("this is the transport's to do");
    }
}

struct NoPoller;

impl Poller for NoPoller {
    fn watch(&mut self, _: BorrowedFd<'_>, _: u32, _: Interest) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn unwatch(&mut self, _: BorrowedFd<'_>, _: u32) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

struct Bench {
    worker: Worker<Memory>,
    plan: Arc<Mutex<Plan>>,
    interrupts: Arc<Interrupts>,
    memory: Memory,
}

impl Bench {
    fn new() -> Self {
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

    fn activation(&self, epoch: u64) -> Activation {
        Activation {
            epoch,
            features: VERSION_1,
            queues: vec![None, Some(DriverRing::new(&self.memory, 0x1000, 8).state())],
        }
    }

    /// The calls to the device since the last check.
    fn calls(&self) -> String {
        std::mem::take(&mut self.plan.lock().unwrap().calls).join(", ")
    }

    fn perform(&mut self, command: Command) -> String {
        let mut answers = Vec::new();
        self.worker.perform(&mut NoPoller, command, &mut answers);
        text(&answers)
    }

    fn start(&mut self, epoch: u64) -> String {
        let activation = self.activation(epoch);
        self.perform(Command::Start(activation))
    }

    fn reset(&mut self, epoch: u64) -> String {
        self.perform(Command::Reset { epoch })
    }

    fn process(&mut self, event: Event) -> String {
        let mut answers = Vec::new();
        self.worker.process(&mut NoPoller, event, &mut answers);
        text(&answers)
    }

    fn pause(&mut self) -> Result<String, NotDrained> {
        let mut answers = Vec::new();
        let by = Instant::now();
        self.worker.pause(&mut NoPoller, by, &mut answers)?;
        Ok(text(&answers))
    }

    fn resume(&mut self) -> String {
        let mut answers = Vec::new();
        self.worker.resume(&mut NoPoller, &mut answers);
        text(&answers)
    }
}

fn text(answers: &[Answer]) -> String {
    let text = |answer: &Answer| match answer {
        Answer::Reset { epoch, config } => format!("reset {epoch} {config:?}"),
        Answer::ConfigSet { config } => format!("set {config:?}"),
        Answer::Config { config } => format!("config {config:?}"),
        Answer::NeedsReset { epoch, why } => format!("broken {epoch} {why}"),
    };
    answers.iter().map(text).collect::<Vec<_>>().join(", ")
}

const RUNS: &str = "config [0, 0]";
const STARTED: &str = "start, Queue(1)";

#[test]
fn a_start_hands_over_the_queues_and_looks_at_each() {
    let mut bench = Bench::new();
    assert!(!bench.worker.is_running());
    assert_eq!(bench.process(Event::Queue(1)), "");
    assert_eq!(
        (bench.start(0).as_str(), bench.calls().as_str()),
        (RUNS, STARTED)
    );
    assert!(bench.worker.is_running());
    for event in [Event::Queue(0), Event::Queue(2), Event::Queue(u16::MAX)] {
        assert_eq!(bench.process(event), "");
    }
    assert_eq!(bench.calls(), "", "there are no such queues");
    bench.process(Event::Source(9));
    assert_eq!(bench.calls(), "Source(9)");
    assert_eq!(
        (bench.start(0).as_str(), bench.calls().as_str()),
        ("", ""),
        "it runs"
    );
}

#[test]
fn a_start_that_fails_needs_a_reset() {
    let mut bench = Bench::new();
    bench.plan.lock().unwrap().cannot_start = true;
    assert_eq!(bench.start(0), "broken 0 the device can't start: no");
    assert!(!bench.worker.is_running());
    assert_eq!(bench.calls(), "start");
    assert_eq!(bench.reset(0), "reset 0 [0, 0]");

    let mut activation = bench.activation(1);
    activation.queues[1].as_mut().unwrap().used = 0x1_0000;
    let mut answers = Vec::new();
    let command = Command::Start(activation);
    bench.worker.perform(&mut NoPoller, command, &mut answers);
    let Answer::NeedsReset { epoch: 1, why } = &answers[0] else {
        panic!("{answers:?}");
    };
    assert!(matches!(why, Failure::Queue { queue: 1, .. }), "{why}");
    assert_eq!(bench.calls(), "reset", "the device never heard of it");
}

#[test]
fn a_reset_overtakes_a_start() {
    let mut bench = Bench::new();
    assert_eq!(bench.reset(0), "reset 0 [0, 0]");
    assert_eq!(
        (bench.start(0).as_str(), bench.calls().as_str()),
        ("", "reset")
    );
    assert_eq!(bench.reset(0), "", "it is answered once");
    assert_eq!(bench.start(1), RUNS);
}

#[test]
fn a_reset_waits_for_what_is_in_flight() {
    let mut bench = Bench::new();
    bench.start(0);
    bench.calls();
    bench.plan.lock().unwrap().in_flight = 2;
    assert_eq!(
        (bench.reset(0).as_str(), bench.worker.is_draining()),
        ("", true)
    );
    assert_eq!(bench.reset(0), "");
    assert_eq!(bench.process(Event::Queue(1)), "");
    assert_eq!(bench.process(Event::Source(1)), "");
    // After the reset, the device's error no longer matters.
    bench.plan.lock().unwrap().breaks = true;
    assert_eq!(bench.process(Event::Source(2)), "reset 0 [0, 0]");
    assert_eq!(
        bench.calls(),
        "stop, Source(1), stop, Source(2), stop, reset"
    );
    bench.plan.lock().unwrap().breaks = false;
    assert_eq!(bench.start(1), RUNS);
}

#[test]
fn a_broken_device_gets_no_more_of_its_queues() {
    let mut bench = Bench::new();
    bench.start(0);
    bench.calls();
    *bench.plan.lock().unwrap() = Plan {
        breaks: true,
        in_flight: 1,
        ..Plan::default()
    };
    let broken = "broken 0 the guest's driver broke a rule of virtio: told to";
    assert_eq!(bench.process(Event::Queue(1)), broken);
    assert_eq!(bench.process(Event::Queue(1)), "");
    // It completes the requests in flight, without a report.
    assert_eq!(bench.process(Event::Source(1)), "");
    assert_eq!(bench.calls(), "Queue(1), stop, Source(1), stop");
    assert_eq!(bench.process(Event::Source(1)), "");
    assert_eq!(bench.calls(), "", "nothing is in flight");
    assert_eq!(bench.reset(0), "reset 0 [0, 0]");
}

#[test]
fn a_broken_device_with_requests_in_flight_is_reset_when_they_are_done() {
    let mut bench = Bench::new();
    bench.start(0);
    *bench.plan.lock().unwrap() = Plan {
        breaks: true,
        in_flight: 2,
        ..Plan::default()
    };
    assert!(bench.process(Event::Queue(1)).starts_with("broken"));
    assert_eq!(bench.reset(0), "");
    assert_eq!(bench.process(Event::Source(1)), "reset 0 [0, 0]");
}

#[test]
fn a_write_to_the_configuration_is_answered_whenever_it_arrives() {
    let mut bench = Bench::new();
    let set = |epoch, at, len| Command::SetConfig {
        epoch,
        at,
        data: [7, 8, 9, 0, 0, 0, 0, 0],
        len,
    };
    assert_eq!(bench.perform(set(0, 1, 3)), "set [7, 0]");
    assert_eq!(bench.calls(), "set 1 [7, 8, 9]");
    assert_eq!(bench.reset(0), "reset 0 [0, 0]");
    bench.calls();
    // Its epoch has ended: the device isn't told, but a vCPU may wait.
    assert_eq!(
        (bench.perform(set(0, 1, 3)).as_str(), bench.calls().as_str()),
        ("set [0, 0]", "")
    );
    // No write has this length.
    assert_eq!(
        (bench.perform(set(1, 0, 9)).as_str(), bench.calls().as_str()),
        ("set [0, 0]", "")
    );
}

#[test]
fn a_pause_stops_and_a_resume_starts_where_it_stopped() {
    let mut bench = Bench::new();
    bench.start(0);
    bench.calls();
    assert_eq!(
        (bench.pause(), bench.pause()),
        (Ok(String::new()), Ok(String::new()))
    );
    assert_eq!(
        (bench.calls().as_str(), bench.worker.is_running()),
        ("stop", false)
    );
    bench.process(Event::Queue(1));
    bench.process(Event::Source(1));
    assert_eq!(bench.calls(), "");
    assert_eq!(
        (bench.resume().as_str(), bench.calls().as_str()),
        (RUNS, STARTED)
    );
    assert_eq!(*bench.interrupts.0.lock().unwrap(), [1]);
    assert_eq!((bench.resume().as_str(), bench.calls().as_str()), ("", ""));
}

#[test]
fn a_pause_that_fails_lets_the_device_go_on() {
    let mut bench = Bench::new();
    bench.start(0);
    bench.calls();
    bench.plan.lock().unwrap().in_flight = 1;
    assert_eq!(bench.pause(), Err(NotDrained { in_flight: 1 }));
    assert_eq!(
        (bench.calls().as_str(), bench.worker.is_running()),
        ("stop, Queue(1)", true)
    );
    assert!(bench.pause().is_ok());
}

#[test]
fn a_pause_of_a_reset_that_drains_finishes_it() {
    let mut bench = Bench::new();
    bench.start(0);
    bench.plan.lock().unwrap().in_flight = 2;
    assert_eq!(bench.reset(0), "");
    assert_eq!(bench.pause(), Err(NotDrained { in_flight: 1 }));
    assert_eq!(bench.pause().as_deref(), Ok("reset 0 [0, 0]"));
}

#[test]
fn commands_reach_a_paused_device() {
    let mut bench = Bench::new();
    bench.pause().unwrap();
    assert_eq!(
        (bench.start(0).as_str(), bench.calls().as_str()),
        ("", ""),
        "it starts with a resume"
    );
    assert_eq!(
        (bench.resume().as_str(), bench.calls().as_str()),
        (RUNS, STARTED)
    );
    bench.pause().unwrap();
    bench.calls();
    assert_eq!(bench.reset(0), "reset 0 [0, 0]");
    assert_eq!(
        (bench.resume().as_str(), bench.calls().as_str()),
        (RUNS, "reset")
    );
}

#[test]
fn a_broken_device_starts_after_its_reset_only() {
    let mut bench = Bench::new();
    bench.plan.lock().unwrap().cannot_start = true;
    assert!(bench.start(0).starts_with("broken"));
    bench.plan.lock().unwrap().cannot_start = false;
    bench.calls();
    assert_eq!(bench.start(0), "");
    bench.pause().unwrap();
    assert_eq!(bench.start(0), "");
    assert_eq!(bench.resume(), RUNS, "only the configuration");
    assert_eq!(
        (bench.calls().as_str(), bench.worker.is_running()),
        ("", false)
    );
    assert!(bench.reset(0).starts_with("reset") && bench.start(1) == RUNS);
}

#[test]
fn an_event_that_is_wanted_again_is_handed_out_once() {
    let mut bench = Bench::new();
    bench.plan.lock().unwrap().again = true;
    bench.start(0);
    assert_eq!(
        (bench.worker.again(), bench.worker.again()),
        (Some(Event::Queue(1)), None)
    );
    bench.process(Event::Source(4));
    assert_eq!(
        (bench.worker.again(), bench.worker.again()),
        (Some(Event::Source(4)), None)
    );
}

#[test]
fn only_a_stopped_device_is_saved_and_what_it_completed_is_stored_first() {
    let mut bench = Bench::new();
    bench.start(0);
    let by = Instant::now();
    assert!(matches!(bench.worker.save(by), Err(SaveError::Running)));
    bench.pause().unwrap();
    bench.calls();
    let plan = Arc::clone(&bench.plan);
    plan.lock().unwrap().stored_at = Some(by + Duration::from_nanos(1));
    let late = bench.worker.save(by).unwrap_err();
    assert!(matches!(late, SaveError::Flush(_)), "{late}");
    assert_eq!(bench.calls(), "flush");
    (plan.lock().unwrap().stored_at, plan.lock().unwrap().key) = (Some(by), 9);
    let saved = bench.worker.save(by).unwrap();
    assert_eq!(bench.calls(), "flush, save");
    assert_eq!(saved.positions, Some(vec![None, Some(Position::default())]));
    let Saved {
        kind,
        version,
        state,
    } = &saved.device;
    assert_eq!((kind.as_str(), *version, state), ("puppet", 3, &json!(9)));

    let mut other = Bench::new();
    let activation = other.activation(0);
    other
        .worker
        .restore(&saved, Some(activation.clone()))
        .unwrap();
    assert_eq!(
        (other.calls().as_str(), other.worker.is_running()),
        ("restore 3", false)
    );
    assert_eq!(other.resume(), "config [9, 0]");
    let used = other.worker.restore(&saved, Some(activation));
    assert!(matches!(used, Err(RestoreError::Value(_))));
}

#[test]
fn a_restore_can_be_undone_before_the_device_runs() {
    let mut bench = Bench::new();
    let by = Instant::now();
    let before = bench.worker.save(by).unwrap();
    let activation = bench.activation(0);
    let running = WorkerState {
        positions: Some(activation.positions()),
        ..before.clone()
    };
    bench.worker.restore(&running, Some(activation)).unwrap();
    assert_eq!(bench.worker.save(by).unwrap(), running);
    bench.worker.restore(&before, None).unwrap();
    assert_eq!(bench.worker.save(by).unwrap(), before);
    bench.calls();
    assert_eq!(
        (bench.resume().as_str(), bench.calls().as_str()),
        (RUNS, "")
    );
    assert_eq!(bench.start(0), RUNS);
}

#[test]
fn states_of_others_are_refused() {
    let bad = |change: fn(&mut Saved)| {
        let mut bench = Bench::new();
        let mut device = Saved {
            kind: "puppet".to_owned(),
            version: 3,
            state: json!(1),
        };
        change(&mut device);
        let state = WorkerState {
            positions: None,
            device,
        };
        let restored = bench.worker.restore(&state, None);
        assert_eq!(bench.calls().is_empty(), restored.is_err());
        restored.map_err(|error| error.to_string())
    };
    assert_eq!(bad(|_| {}), Ok(()));
    assert_eq!(
        bad(|saved| saved.version = 2),
        Ok(()),
        "an older form is the device's to judge"
    );
    let kind = bad(|saved| saved.kind = "rng".to_owned()).unwrap_err();
    assert_eq!(
        kind,
        "the saved state is that of a device of kind \"rng\", not \"puppet\""
    );
    assert!(
        bad(|saved| saved.version = 4)
            .unwrap_err()
            .contains("version 4, and 3 is the newest")
    );
    assert!(
        bad(|saved| saved.state = json!(256))
            .unwrap_err()
            .contains("can't be read")
    );
}
