// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest drives a virtio device, by MMIO and by PCI, on real KVM; and goes on in another machine.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::time::Duration;

use bare::virtio::{COUNT, ENTROPY, LEN, USED, by_mmio, by_pci};
use bare::{Asm, Vm};
use kvm_ioctls::Kvm;
use mini_vmm::boot::Unwatched;
use mini_vmm::config::{SerialSpec, VirtioSpec, VmSpec};
use mini_vmm::layout::MIB;
use mini_vmm::machine::{Host, Images, Loading, Machine, MachineState};
use mini_vmm::outcome::OutcomeLatch;
use vm_memory::{Bytes, GuestAddress};

const RAM: u64 = 32 * MIB;

/// A machine with the entropy device.
struct Running {
    machine: Machine,
    latch: OutcomeLatch,
}

impl Running {
    fn new(vm: &Vm, virtio: VirtioSpec) -> Self {
        let spec = VmSpec {
            memory: RAM,
            serial: SerialSpec::Off,
            virtio,
            rng: true,
            ..VmSpec::new(vm.path("kernel"))
        };
        let host = Host::new(Kvm::new().unwrap());
        let images = Images::open(&spec, &Unwatched).unwrap();
        let loading = Loading::start(&host, &spec, &images, &Unwatched).unwrap();
        let latch = OutcomeLatch::new().unwrap();
        let (machine, _events) = loading.finish(&host, &spec, None, &latch).unwrap();
        Running { machine, latch }
    }

    fn read(&self, at: u64) -> u32 {
        self.machine.memory().read_obj(GuestAddress(at)).unwrap()
    }

    /// Waits until so many more requests were answered.
    fn answer(&self, requests: u32) {
        let before = self.read(COUNT);
        while self.read(COUNT).wrapping_sub(before) < requests {
            assert_eq!(self.latch.get(), None);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn exits(&self) -> u64 {
        self.machine.exits().iter().sum()
    }
}

/// What the guest has so far goes on in another machine, and in the first one.
fn goes_on_elsewhere(test: &str, virtio: VirtioSpec, guest: &Asm) {
    let Some(vm) = Vm::new(test, guest) else {
        return;
    };
    let first = Running::new(&vm, virtio);
    first.machine.start().unwrap();
    first.answer(5);
    first.machine.pause().unwrap();
    let count = first.read(COUNT);
    let used: u32 = first.read(USED + 4 + 4);
    assert_eq!(used, LEN, "each request is filled");
    let state = serde_json::to_value(first.machine.save().unwrap()).unwrap();
    assert_eq!(first.read(COUNT), count);

    let second = Running::new(&vm, virtio);
    let mut ram = vec![0; RAM as usize];
    let (from, to) = (first.machine.memory(), second.machine.memory());
    from.read_slice(&mut ram, GuestAddress(0)).unwrap();
    to.write_slice(&ram, GuestAddress(0)).unwrap();
    let restored: MachineState = serde_json::from_value(state.clone()).unwrap();
    second.machine.restore(restored).unwrap();
    let again = serde_json::to_value(second.machine.save().unwrap()).unwrap();
    assert_eq!(again["devices"], state["devices"]);
    for running in [&second, &first] {
        running.machine.start().unwrap();
        running.answer(5);
        running.machine.pause().unwrap();
        running.machine.start().unwrap();
        running.answer(5);
    }
}

#[test]
fn a_guest_that_drives_mmio_goes_on_elsewhere() {
    let test = "a_guest_that_drives_mmio_goes_on_elsewhere";
    goes_on_elsewhere(test, VirtioSpec::Mmio, &by_mmio(&ENTROPY, |_| ()));
}

#[test]
fn a_guest_that_drives_pci_goes_on_elsewhere() {
    let test = "a_guest_that_drives_pci_goes_on_elsewhere";
    goes_on_elsewhere(test, VirtioSpec::Pci, &by_pci(&ENTROPY, |_| ()));
}

/// How many exits a hundred requests take.
fn exits(test: &str, virtio: VirtioSpec, guest: &Asm) -> Option<u64> {
    let vm = Vm::new(test, guest)?;
    let running = Running::new(&vm, virtio);
    running.machine.start().unwrap();
    running.answer(5);
    let before = running.exits();
    running.answer(100);
    Some(running.exits() - before)
}

/// KVM takes the notification, also where the guest has moved the BAR; no register says why an interrupt came.
#[test]
fn a_request_by_pci_needs_no_exit() {
    let exits = exits(
        "a_request_by_pci_needs_no_exit",
        VirtioSpec::Pci,
        &by_pci(&ENTROPY, |_| ()),
    );
    assert!(exits.is_none_or(|exits| exits < 50), "{exits:?}");
}

/// The one that acknowledges the interrupt.
#[test]
fn a_request_by_mmio_needs_one_exit() {
    let test = "a_request_by_mmio_needs_one_exit";
    let exits = exits(test, VirtioSpec::Mmio, &by_mmio(&ENTROPY, |_| ()));
    assert!(exits.is_none_or(|exits| exits < 150), "{exits:?}");
}
