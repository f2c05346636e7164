// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests that misuse virtio devices at random, on real KVM. Afterwards all devices still work, and the log is short.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::fs;

use bare::monkey::{Transport, monkey};
use bare::{Vm, is_long, passt};
use mini_vmm::layout::MIB;

/// Lines that a run may log, however often its guest breaks a rule.
const MAX_LINES: usize = 40;

fn misuse(test: &str, transport: Transport, words: &str) {
    let (seeds, steps) = match is_long(test) {
        true => (20, 1000),
        false => (3, 400),
    };
    for seed in 0..seeds {
        let Some(mut vm) = Vm::new(test, &monkey(transport, seed, steps)) else {
            return;
        };
        let image = vm.path("disk.img");
        fs::write(&image, vec![0; MIB as usize]).unwrap();
        let disk = format!("path={},iothread=disk", image.display());
        // The network returns what the guest sends.
        let path = passt::stand_in(&vm.path(""), passt::ECHO);
        vm.command.env("PATH", path);
        vm.args(["--virtio", words, "--rng", "on", "--disk", &disk]);
        vm.args(["--net", "user", "--serial", "off"]);
        let ended = vm.run();
        assert!(
            !ended.stderr.contains("panicked"),
            "seed {seed}: {}",
            ended.stderr
        );
        assert!(ended.is_code(0), "seed {seed}: {ended:?}");
        let lines = ended.stderr.lines().count();
        assert!(
            lines < MAX_LINES,
            "seed {seed}: {lines} lines: {}",
            ended.stderr
        );
    }
}

#[test]
fn a_guest_that_misuses_pci_does_no_harm() {
    let test = "a_guest_that_misuses_pci_does_no_harm";
    misuse(test, Transport::Pci, "pci");
}

#[test]
fn a_guest_that_misuses_mmio_does_no_harm() {
    let test = "a_guest_that_misuses_mmio_does_no_harm";
    misuse(test, Transport::Mmio, "mmio");
}
