// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The behaviour of the processes under test.

use std::fs;
use std::io::Write;
use std::process;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use mini_vmm::config::SerialSpec;
use mini_vmm::console::{Console, ConsoleOutput, line_end};
use mini_vmm::devices::{Device, SerialDevice};
use mini_vmm::irq::IrqLine;
use mini_vmm::logging;
use mini_vmm::outcome::{Outcome, OutcomeLatch};
use vcpu_loop::bus::{BusDevice, Place};

use crate::{CHILD, PATIENCE};

/// Does what the environment says. Does nothing when run as a test itself.
#[test]
fn child() {
    let Ok(mode) = std::env::var(CHILD) else {
        return;
    };
    let console = Console::open(&SerialSpec::Stdio).unwrap();
    let mut output = console.output().unwrap();
    output.write_all(b"ready\r\n").unwrap();
    match mode.as_str() {
        "drop" => {}
        "sleep" => thread::sleep(PATIENCE),
        "panic" => {
            let panicked = thread::spawn(|| panic!("on purpose")).join();
            assert!(panicked.is_err());
            // Neither dropped nor closed: only the panic restores the terminal.
            thread::sleep(Duration::from_millis(100));
            process::exit(3);
        }
        "overflow" => {
            let overflow = thread::spawn(|| overflow_stack(&[0; 64]));
            let _ = overflow.join();
        }
        "echo" => echo(&console),
        "idle" => idle(&console),
        "say" => say(&console),
        "flood" => {
            // The first bytes are also the first to be dropped.
            thread::sleep(Duration::from_millis(200));
            for _ in 0..40_000 {
                output.write_all(&[b'x'; 100]).unwrap();
            }
        }
        other => panic!("unknown mode {other}"),
    }
    drop(console);
    process::exit(0);
}

/// Recurses 2^60 times.
fn overflow_stack(depth: &[u64; 64]) -> u64 {
    let next = std::hint::black_box([depth[0] + 1; 64]);
    if next[0] == 1 << 60 {
        return 0;
    }
    overflow_stack(&next) + depth[1]
}

type Manager = EventManager<Arc<Mutex<dyn MutEventSubscriber>>>;

/// COM1's data register.
pub const DATA: Place = Place {
    window: 0,
    offset: 0,
};

/// Whether the guest has read all input.
pub fn is_drained(serial: &impl Device) -> bool {
    serial.save(Instant::now()).unwrap().unwrap().state["in_buffer"]
        .as_array()
        .unwrap()
        .is_empty()
}

/// A serial device and its event loop.
pub struct Machine {
    pub serial: Arc<SerialDevice<ConsoleOutput>>,
    outcome: OutcomeLatch,
    pub manager: Manager,
}

impl Machine {
    /// A machine on `console`.
    pub fn new(console: &Console) -> Machine {
        let serial =
            Arc::new(SerialDevice::new(console.output().unwrap(), IrqLine::unconnected()).unwrap());
        let outcome = OutcomeLatch::new().unwrap();
        let mut manager = Manager::new().unwrap();
        let input = console
            .attach_input(Arc::clone(&serial) as _, outcome.clone())
            .unwrap();
        manager.add_subscriber(Arc::new(Mutex::new(input)));
        Machine {
            serial,
            outcome,
            manager,
        }
    }
}

/// A guest that echoes its input until `!` or the escape sequence.
fn echo(console: &Console) {
    let mut machine = Machine::new(console);
    let mut byte = [0];
    while byte != *b"!" {
        machine.manager.run_with_timeout(1000).unwrap();
        if machine.outcome.get() == Some(Outcome::ConsoleQuit) {
            console.output().unwrap().write_all(b"quit").unwrap();
            return;
        }
        while byte != *b"!" && !is_drained(&*machine.serial) {
            let _ = machine.serial.read(DATA, &mut byte);
            let _ = machine.serial.write(DATA, &byte);
        }
    }
}

/// A guest that doesn't end its line until there is input. Then it causes a warning.
fn say(console: &Console) {
    let mut machine = Machine::new(console);
    let mut output = console.output().unwrap();
    output.write_all(b"unfinished").unwrap();
    while is_drained(&*machine.serial) {
        machine.manager.run_with_timeout(1000).unwrap();
    }
    logging::init(0);
    log::warn!("first");
    log::warn!("second");
}

/// A guest that does nothing. The console must be idle, too.
fn idle(console: &Console) {
    let mut machine = Machine::new(console);
    let before = cpu_ticks();
    let deadline = Instant::now() + Duration::from_millis(500);
    let mut events = 0;
    while Instant::now() < deadline {
        events += machine.manager.run_with_timeout(100).unwrap();
    }
    assert!(events < 3, "{events} events without input");
    // Ticks are 10 ms.
    assert!(cpu_ticks() - before < 10, "the console spins");
    assert_eq!(line_end(), "\n");
}

fn cpu_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
