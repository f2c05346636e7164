// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The messages between vCPUs and a device's thread under every interleaving: the crate's state machines on both sides,
//! on loom's locks and channels. A vCPU that waits for ever is a deadlock, which loom reports.
#![allow(clippy::unwrap_used)]

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::sync::mpsc::{Receiver, Sender, channel};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use virtio_transport::device::{
    Active, Event, Interest, Interrupt, Io, Poller, RestoreError, StartError,
};
use virtio_transport::layout::Layout;
use virtio_transport::message::{Answer, Command};
use virtio_transport::queue::{NotDrained, QueueState};
use virtio_transport::registers::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, Effect, FEATURES_OK, Half, NEEDS_RESET, Registers, Ring,
};
use virtio_transport::testing::{DriverRing, Memory, memory};
use virtio_transport::worker::Worker;
use virtio_transport::{AnyDevice, Broken, Device};

/// The state shared by vCPUs and the device's thread.
struct Vmm {
    registers: Mutex<Registers>,
    settled: Condvar,
    /// The queue's eventfd.
    kicked: AtomicBool,
    /// The driver has made a request available.
    offered: AtomicBool,
    /// The number of starts without a stop. While above 0, the device accesses guest memory.
    running: AtomicU32,
    /// The device found the request.
    served: AtomicBool,
}

/// The messages to the device's thread.
enum Mail {
    Command(Command),
    /// The eventfd is readable.
    Kick,
    Pause,
    Resume,
    Quit,
}

#[derive(Clone, Copy, Debug, Default)]
struct Traits {
    /// A stop must wait for a completion.
    drains: bool,
    /// A request breaks it.
    breaks: bool,
}

struct Modelled {
    vmm: Arc<Vmm>,
    traits: Traits,
    active: Option<Active<Memory>>,
    in_flight: bool,
    key: u8,
}

impl Device<Memory> for Modelled {
    type State = ();

    const KIND: &'static str = "modelled";
    const VERSION: u32 = 1;

    fn layout(&self) -> Layout {
        layout()
    }

    fn config(&self, out: &mut Vec<u8>) {
        out.push(self.key);
    }

    fn set_config(&mut self, _: &mut Io<'_>, _: u32, data: &[u8]) {
        self.key = data[0];
    }

    fn start(&mut self, _: &mut Io<'_>, active: Active<Memory>) -> Result<(), StartError> {
        assert_eq!(self.vmm.running.fetch_add(1, Ordering::SeqCst), 0);
        self.active = Some(active);
        self.in_flight = self.traits.drains;
        Ok(())
    }

    fn process(&mut self, _: &mut Io<'_>, event: Event) -> Result<(), Broken> {
        assert!(self.active.is_some());
        match event {
            Event::Source(_) => self.in_flight = false,
            Event::Queue(_) if self.vmm.offered.load(Ordering::SeqCst) => {
                self.vmm.served.store(true, Ordering::SeqCst);
                if self.traits.breaks {
                    return Err(Broken::Device("it is modelled to"));
                }
            }
            Event::Queue(_) => {}
        }
        Ok(())
    }

    fn stop(&mut self, _: &mut Io<'_>, by: Instant) -> Result<Vec<Option<QueueState>>, NotDrained> {
        // A pause waits; a reset doesn't.
        if self.in_flight && by <= Instant::now() {
            return Err(NotDrained { in_flight: 1 });
        }
        self.in_flight = false;
        let Some(active) = self.active.take() else {
            return Ok(Vec::new());
        };
        assert_eq!(self.vmm.running.fetch_sub(1, Ordering::SeqCst), 1);
        let queues = active.queues.into_iter();
        queues
            .map(|queue| queue.map(|queue| queue.state()).transpose())
            .collect()
    }

    fn reset(&mut self) {
        assert!(self.active.is_none());
        self.key = 0;
    }

    fn save(&self) {}

    fn restore(&mut self, _: u32, (): ()) -> Result<(), RestoreError> {
        Ok(())
    }
}

fn layout() -> Layout {
    Layout {
        id: 1,
        features: 0,
        requires: &[],
        queues: vec![8],
        config_len: 1,
    }
}

struct Silent;

impl Interrupt for Silent {
    fn queue(&self, _: u16) {}
    fn config(&self) {}
}

impl Poller for Silent {
    fn watch(&mut self, _: BorrowedFd<'_>, _: u32, _: Interest) -> io::Result<()> {
        Ok(())
    }

    fn unwatch(&mut self, _: BorrowedFd<'_>, _: u32) -> io::Result<()> {
        Ok(())
    }
}

/// The device's thread.
fn serve(vmm: &Vmm, worker: &mut Worker<Memory>, mailbox: &Receiver<Mail>) {
    loop {
        let mail = mailbox.recv().unwrap();
        let mut answers = Vec::new();
        // An event loop may see the eventfd before an earlier message.
        if vmm.kicked.swap(false, Ordering::SeqCst) {
            worker.process(&mut Silent, Event::Queue(0), &mut answers);
        }
        match mail {
            Mail::Command(command) => worker.perform(&mut Silent, command, &mut answers),
            Mail::Kick => {}
            Mail::Pause => {
                let by = Instant::now() + std::time::Duration::from_secs(3600);
                worker.pause(&mut Silent, by, &mut answers).unwrap();
            }
            Mail::Resume => worker.resume(&mut Silent, &mut answers),
            Mail::Quit => return,
        }
        deliver(vmm, &answers);
        // A completion comes later than its request.
        let mut answers = Vec::new();
        while worker.is_draining() {
            worker.process(&mut Silent, Event::Source(0), &mut answers);
        }
        deliver(vmm, &answers);
    }
}

fn deliver(vmm: &Vmm, answers: &[Answer]) {
    for answer in answers {
        let mut registers = vmm.registers.lock().unwrap();
        let notice = registers.answer(answer);
        drop(registers);
        vmm.settled.notify_all();
        let _ = notice;
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// All steps to `DRIVER_OK`, if the status is 0.
    Start,
    /// A request, and a notification.
    Request,
    /// Writes the status, waits for the reset, and checks that the device is quiet.
    ResetAlone,
    /// The same, but another vCPU may start the device again.
    Reset,
    /// A write to the configuration.
    SetConfig,
    Pause,
    Resume,
}

/// One register access. Its effect is carried out without the lock.
fn access(vmm: &Vmm, sender: &Sender<Mail>, access: impl FnOnce(&mut Registers) -> Effect) {
    let effect = access(&mut vmm.registers.lock().unwrap());
    let waits = matches!(effect, Effect::PostAndWait(_) | Effect::Wait);
    match effect {
        Effect::Post(command) | Effect::PostAndWait(command) => {
            sender.send(Mail::Command(command)).unwrap();
        }
        Effect::Kick(_) => {
            // A swap instead of a store, since loom lets a swap overwrite a store that it didn't read.
            vmm.kicked.swap(true, Ordering::SeqCst);
            sender.send(Mail::Kick).unwrap();
        }
        Effect::None | Effect::Wait => {}
    }
    if waits {
        wait(vmm, Registers::is_settled);
    }
}

fn wait(vmm: &Vmm, holds: impl Fn(&Registers) -> bool) {
    let mut registers = vmm.registers.lock().unwrap();
    while !holds(&registers) {
        registers = vmm.settled.wait(registers).unwrap();
    }
}

/// Up to `FEATURES_OK`, and one queue.
fn negotiate(registers: &mut Registers, ring: &QueueState) {
    for status in [ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
        assert_eq!(registers.set_status(status), Effect::None);
    }
    registers.select_driver_features(1);
    registers.set_driver_features(1);
    let effect = registers.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(effect, Effect::None);
    registers.set_queue_size(ring.size.into());
    let parts = [
        (Ring::Descriptors, ring.descriptors),
        (Ring::Available, ring.available),
        (Ring::Used, ring.used),
    ];
    for (part, address) in parts {
        registers.set_queue_address(part, Half::Low, address as u32);
    }
    registers.enable_queue();
}

const READY: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

fn perform(vmm: &Vmm, sender: &Sender<Mail>, ring: &QueueState, step: Step) {
    match step {
        Step::Start => access(vmm, sender, |registers| {
            if registers.status() != 0 {
                return Effect::None;
            }
            negotiate(registers, ring);
            registers.set_status(READY)
        }),
        Step::Request => {
            vmm.offered.store(true, Ordering::SeqCst);
            access(vmm, sender, |registers| registers.kick(0));
        }
        Step::ResetAlone | Step::Reset => {
            let epoch = vmm.registers.lock().unwrap().epoch();
            access(vmm, sender, |registers| registers.set_status(0));
            wait(vmm, |registers| registers.epoch() > epoch);
            if step == Step::ResetAlone {
                assert_eq!(
                    vmm.running.load(Ordering::SeqCst),
                    0,
                    "it runs after its reset"
                );
            }
        }
        Step::SetConfig => access(vmm, sender, |registers| registers.write_config(0, &[5])),
        Step::Pause => sender.send(Mail::Pause).unwrap(),
        Step::Resume => sender.send(Mail::Resume).unwrap(),
    }
}

/// Whether long variants are enabled. If not, says that there is one.
fn is_long() -> bool {
    let long = std::env::var_os("MINI_VMM_TEST_LONG").is_some_and(|value| value == "1");
    if !long {
        eprintln!("LONG: {}", std::thread::current().name().unwrap_or("model"));
    }
    long
}

/// One vCPU for each list of steps, with one device. At the end device and registers must agree on whether it runs.
fn model(traits: Traits, vcpus: &'static [&'static [Step]], judge: fn(&Vmm)) {
    let memory = memory(1 << 16);
    let ring = DriverRing::new(&memory, 0x1000, 8).state();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(if is_long() { 3 } else { 2 });
    builder.check(move || {
        let vmm = Arc::new(Vmm {
            registers: Mutex::new(Registers::new(layout(), vec![0]).unwrap()),
            settled: Condvar::new(),
            kicked: AtomicBool::new(false),
            offered: AtomicBool::new(false),
            running: AtomicU32::new(0),
            served: AtomicBool::new(false),
        });
        let device: Box<dyn AnyDevice<Memory>> = Box::new(Modelled {
            vmm: Arc::clone(&vmm),
            traits,
            active: None,
            in_flight: false,
            key: 0,
        });
        let mut worker = Worker::new(device, memory.clone(), Arc::new(Silent));
        let (sender, mailbox) = channel();
        let io = Arc::clone(&vmm);
        let io = thread::spawn(move || {
            serve(&io, &mut worker, &mailbox);
            worker
        });
        let (last, others) = vcpus.split_last().unwrap();
        let others: Vec<_> = others
            .iter()
            .map(|steps| {
                let (vmm, sender) = (Arc::clone(&vmm), sender.clone());
                thread::spawn(move || {
                    steps
                        .iter()
                        .for_each(|step| perform(&vmm, &sender, &ring, *step));
                })
            })
            .collect();
        last.iter()
            .for_each(|step| perform(&vmm, &sender, &ring, *step));
        for other in others {
            other.join().unwrap();
        }
        sender.send(Mail::Quit).unwrap();
        let worker = io.join().unwrap();
        let registers = vmm.registers.lock().unwrap();
        assert!(registers.is_settled());
        let runs = registers.status() & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK;
        assert_eq!(
            worker.is_running(),
            runs,
            "status {:#x}",
            registers.status()
        );
        assert_eq!(vmm.running.load(Ordering::SeqCst), u32::from(runs));
        drop(registers);
        judge(&vmm);
    });
}

const PLAIN: Traits = Traits {
    drains: false,
    breaks: false,
};
const DRAINS: Traits = Traits {
    drains: true,
    breaks: false,
};
const BREAKS: Traits = Traits {
    drains: false,
    breaks: true,
};

fn status(vmm: &Vmm) -> u8 {
    vmm.registers.lock().unwrap().status()
}

#[test]
fn a_request_of_before_the_start_is_served() {
    model(PLAIN, &[&[Step::Start, Step::Request]], |vmm| {
        assert!(vmm.served.load(Ordering::SeqCst));
    });
}

#[test]
fn a_device_is_quiet_after_its_reset() {
    for traits in [PLAIN, DRAINS] {
        model(
            traits,
            &[&[Step::Start, Step::Request, Step::ResetAlone, Step::Start]],
            |vmm| assert_eq!(status(vmm), READY),
        );
    }
}

#[test]
fn a_reset_overtakes_the_start_of_another_vcpu() {
    for traits in [PLAIN, DRAINS] {
        model(traits, &[&[Step::Start], &[Step::Reset]], |_| {});
    }
}

#[test]
fn two_resets_are_one_or_two() {
    model(
        DRAINS,
        &[&[Step::Reset, Step::Start], &[Step::Start, Step::Reset]],
        |_| {},
    );
}

#[test]
fn writes_to_the_configuration_are_answered() {
    model(
        PLAIN,
        &[
            &[Step::SetConfig],
            &[Step::Start, Step::SetConfig, Step::Reset],
        ],
        |_| {},
    );
}

#[test]
fn a_break_is_that_of_its_own_epoch() {
    model(
        BREAKS,
        &[&[Step::Start, Step::Request, Step::ResetAlone]],
        |vmm| assert_eq!(status(vmm), 0),
    );
    model(
        BREAKS,
        &[&[Step::Start, Step::Request], &[Step::Reset]],
        |_| {},
    );
}

#[test]
fn a_pause_meets_a_reset() {
    for traits in [PLAIN, DRAINS] {
        model(
            traits,
            &[
                &[Step::Pause, Step::Resume],
                &[Step::Start, Step::ResetAlone, Step::Start],
            ],
            |vmm| assert_eq!(status(vmm), READY),
        );
    }
}
