// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver whose actions come from arbitrary input bytes.

use vm_memory::{Bytes, GuestAddress};

use crate::device::AnyDevice;
use crate::queue::QueueState;
use crate::registers::{DRIVER_OK, FEATURES_OK, NEEDS_RESET};

use super::driver::{Driver, Request};
use super::machine::Machine;
use super::port::Port;
use super::{MEMORY, Memory, memory};

/// The parameters that a driver has set: features and queues.
type Parameters = (u64, Vec<Option<QueueState>>);

/// Returns the input bytes, then zeros.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// A number that is likely to be meaningful.
    fn value(&mut self) -> u64 {
        match self.byte() % 8 {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << (self.byte() % 64),
            3 => MEMORY as u64 - u64::from(self.byte()),
            4 => u64::from(self.number()) << 4,
            5 => u64::from(self.number()) << 48 | u64::from(self.number()),
            _ => self.byte().into(),
        }
    }
}

/// The invariants that must hold for any driver.
struct Watch {
    epoch: u64,
    status: u8,
    frozen: Option<Parameters>,
}

impl Watch {
    fn look<P: Port>(&mut self, machine: &mut Machine<P>) {
        let registers = machine.port.registers();
        let status = registers.status();
        if registers.epoch() != self.epoch {
            self.epoch = registers.epoch();
            self.frozen = None;
            self.status = 0;
        }
        assert_eq!(
            status & self.status,
            self.status,
            "a bit of the status is lost"
        );
        self.status = status;
        let now = registers.parameters();
        let layout = registers.layout();
        assert!(
            status & FEATURES_OK == 0 || layout.accepts(now.0),
            "{now:x?}"
        );
        for (queue, max) in now.1.iter().zip(&layout.queues) {
            if let Some(queue) = queue {
                assert!(queue.size <= *max && queue.check().is_ok(), "{queue:x?}");
            }
        }
        if let Some(frozen) = &self.frozen {
            assert_eq!(*frozen, now, "a running queue has changed");
        } else if status & DRIVER_OK != 0 {
            self.frozen = Some(now);
        }
        assert!(!machine.worker.is_running() || status & DRIVER_OK != 0);
        assert!(machine.failures.is_empty() || self.epoch > 0 || status & NEEDS_RESET != 0);
    }
}

/// Drives a device by `input`: registers, rings, notifications, pauses, saved states. Checks that the driver's
/// parameters stay while it runs, and that the device works after a reset. For property tests and fuzzers.
///
/// # Panics
/// If one of these checks fails.
pub fn monkey<P: Port>(make: impl Fn() -> Box<dyn AnyDevice<Memory>>, input: &[u8]) {
    let mut machine = Machine::<P>::new(make(), &memory(MEMORY));
    let mut input = Input(input);
    let mut watch = Watch {
        epoch: 0,
        status: 0,
        frozen: None,
    };
    while !input.0.is_empty() {
        if step(&mut machine, &mut input, &make) {
            // Its epochs start again.
            watch.epoch = u64::MAX;
        }
        watch.look(&mut machine);
    }
    machine.resume();
    let mut driver = Driver::start(&mut machine, u64::MAX);
    // Ignore failures from before the reset.
    machine.failures.clear();
    machine.pump();
    assert!(machine.worker.is_running());
    let request = Request {
        queue: 0,
        readable: vec![0; 16],
        writable: 16,
    };
    driver.send(&machine, &request);
    machine.kick(0);
    machine.pump();
    assert!(machine.worker.is_running() && machine.failures.is_empty());
}

/// Does one step. Returns whether the machine was restored.
fn step<P: Port>(
    machine: &mut Machine<P>,
    input: &mut Input<'_>,
    make: &impl Fn() -> Box<dyn AnyDevice<Memory>>,
) -> bool {
    match input.byte() % 16 {
        0..=4 => {
            // Most registers are in the first 64 bytes of their page.
            let page = u64::from(input.byte()) << 8 & !0xff;
            let offset = (page + u64::from(input.byte())) % P::SPAN;
            let width = usize::from(input.byte() % 8) + 1;
            let value = input.value().to_le_bytes();
            machine.write(offset, &value[..width]);
        }
        5 => {
            let offset = u64::from(input.number()) % P::SPAN;
            let mut data = [0; 8];
            let width = usize::from(input.byte() % 8) + 1;
            machine.port.read(offset, &mut data[..width]);
        }
        6 => machine.set_status(input.byte() & 0xcf),
        7 => {
            Driver::start(machine, u64::MAX);
        }
        8 => {
            let without = u64::from(input.byte() % 4) << 28;
            Driver::prepare(machine, !without);
        }
        9 => machine.kick(input.byte().into()),
        10 => machine.kick(u16::from(input.byte() % 2)),
        11 => {
            // The rings are at the start of memory.
            let at = u64::from(input.number()) % 0x2000;
            let value = input.value();
            let written = machine.memory.write_obj(value, GuestAddress(at));
            written.expect("guest memory");
        }
        12 => machine.pump(),
        13 => machine.step(),
        14 => {
            machine.settle();
            machine.pause().expect("a device that drains");
            if input.byte().is_multiple_of(2) {
                let saved = machine.save();
                let mut other = Machine::new(make(), &machine.memory);
                other.restore(&saved).expect("a state that was saved");
                *machine = other;
                return true;
            }
        }
        _ => machine.resume(),
    }
    false
}
