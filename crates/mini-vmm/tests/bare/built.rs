// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Machines in the test's own process.

use kvm_bindings::kvm_irqchip;
use kvm_ioctls::Kvm;
use mini_vmm::boot::Unwatched;
use mini_vmm::config::VmSpec;
use mini_vmm::console::ConsoleOutput;
use mini_vmm::layout::{GED_GENERATION, GED_GSI};
use mini_vmm::machine::{Host, Images, Loading, Machine, MachineState};
use mini_vmm::outcome::OutcomeLatch;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// A machine that is not started yet, and what it reports its end to.
pub struct Built {
    pub machine: Machine,
    pub latch: OutcomeLatch,
}

/// A machine's saved state, as JSON, and its memory.
pub struct Snapshot {
    pub state: serde_json::Value,
    ram: Vec<u8>,
}

/// Where the byte at `at` of an interrupt controller (`struct kvm_irqchip`) is in the digits of a saved state.
fn chip_digits(chip: usize, at: usize) -> std::ops::Range<usize> {
    let byte = chip * size_of::<kvm_irqchip>() + at;
    2 * byte..2 * byte + 2
}

/// The byte at `at` of an interrupt controller, of a machine's saved state.
pub fn chip_byte(state: &serde_json::Value, chip: usize, at: usize) -> u8 {
    let digits = state["vm"]["chips"].as_str().unwrap();
    u8::from_str_radix(&digits[chip_digits(chip, at)], 16).unwrap()
}

/// A state without the event of a restore, a new generation. Its interrupt may be in the requests (IRR) of the first PIC,
/// at byte 9 of `struct kvm_irqchip`, and of the IOAPIC, at byte 24.
pub fn without_event(mut state: serde_json::Value) -> serde_json::Value {
    for (chip, at) in [(0, 9), (2, 24)] {
        let byte = chip_byte(&state, chip, at) & !(1 << GED_GSI);
        let mut digits = state["vm"]["chips"].as_str().unwrap().to_owned();
        digits.replace_range(chip_digits(chip, at), &format!("{byte:02x}"));
        state["vm"]["chips"] = digits.into();
    }
    let events = &mut state["devices"][0]["state"]["events"];
    *events = (events.as_u64().unwrap() & !u64::from(GED_GENERATION)).into();
    state
}

impl Built {
    /// Opens its images for itself.
    pub fn new(spec: &VmSpec, output: Option<ConsoleOutput>) -> Self {
        let images = Images::open(spec, &Unwatched).unwrap();
        Built::finish(spec, &images, output)
    }

    /// Without a console.
    pub fn with_images(spec: &VmSpec, images: &Images) -> Self {
        Built::finish(spec, images, None)
    }

    fn finish(spec: &VmSpec, images: &Images, output: Option<ConsoleOutput>) -> Self {
        let host = Host::new(Kvm::new().unwrap());
        let loading = Loading::start(&host, spec, images, &Unwatched).unwrap();
        let latch = OutcomeLatch::new().unwrap();
        let (machine, _events) = loading.finish(&host, spec, output, &latch).unwrap();
        Built { machine, latch }
    }

    /// Four bytes of its memory.
    pub fn read(&self, at: u64) -> u32 {
        self.machine.memory().read_obj(GuestAddress(at)).unwrap()
    }

    /// Of a paused machine with its memory in one piece.
    pub fn save(&self) -> Snapshot {
        let state = serde_json::to_value(self.machine.save().unwrap()).unwrap();
        let memory = self.machine.memory();
        let mut ram = vec![0; memory.last_addr().0 as usize + 1];
        memory.read_slice(&mut ram, GuestAddress(0)).unwrap();
        Snapshot { state, ram }
    }

    pub fn restore(&self, snapshot: &Snapshot) {
        let memory = self.machine.memory();
        memory.write_slice(&snapshot.ram, GuestAddress(0)).unwrap();
        let state: MachineState = serde_json::from_value(snapshot.state.clone()).unwrap();
        self.machine.restore(state).unwrap();
    }
}
