// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest drives a virtio device, by MMIO and by PCI, on real KVM; and goes on in another machine.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::time::Duration;

use bare::virtio::{COUNT, ENTROPY, LEN, USED, by_mmio, by_pci};
use bare::{Asm, Built, Vm, without_event};
use mini_vmm::config::{RngSpec, SerialSpec, VirtioSpec, VmSpec};
use mini_vmm::layout::MIB;

const RAM: u64 = 32 * MIB;

/// A machine with the entropy device.
fn machine(vm: &Vm, virtio: VirtioSpec) -> Built {
    let spec = VmSpec {
        memory: RAM,
        serial: SerialSpec::Off,
        virtio,
        rng: Some(RngSpec::default()),
        ..VmSpec::new(vm.path("kernel"))
    };
    Built::new(&spec, None)
}

/// Waits until so many more requests were answered.
fn answer(guest: &Built, requests: u32) {
    let before = guest.read(COUNT);
    while guest.read(COUNT).wrapping_sub(before) < requests {
        assert_eq!(guest.latch.get(), None);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What the guest has so far goes on in another machine, and in the first one.
fn goes_on_elsewhere(test: &str, virtio: VirtioSpec, guest: &Asm) {
    let Some(vm) = Vm::new(test, guest) else {
        return;
    };
    let first = machine(&vm, virtio);
    first.machine.start().unwrap();
    answer(&first, 5);
    first.machine.pause().unwrap();
    let count = first.read(COUNT);
    let used: u32 = first.read(USED + 4 + 4);
    assert_eq!(used, LEN, "each request is filled");
    let snapshot = first.save();
    assert_eq!(first.read(COUNT), count);

    let second = machine(&vm, virtio);
    second.restore(&snapshot);
    let again = serde_json::to_value(second.machine.save().unwrap()).unwrap();
    assert_eq!(without_event(again)["devices"], snapshot.state["devices"]);
    for running in [&second, &first] {
        running.machine.start().unwrap();
        answer(running, 5);
        running.machine.pause().unwrap();
        running.machine.start().unwrap();
        answer(running, 5);
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
    let running = machine(&vm, virtio);
    running.machine.start().unwrap();
    answer(&running, 5);
    let count = || running.machine.exits().iter().sum::<u64>();
    let before = count();
    answer(&running, 100);
    Some(count() - before)
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
