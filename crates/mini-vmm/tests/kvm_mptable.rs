// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The MPtable as a guest finds it, and whether it agrees with the guest's APICs.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use bare::{Asm, Vm, guest};
use mini_vmm::layout;

/// Ends the run with `failure` unless the `ECX` bytes at RSI have the sum 0.
fn expect_sum_0(asm: &mut Asm, failure: u8) {
    // xor ebx, ebx; lodsb; add bl, al; loop; mov al, bl
    asm.raw(&[0x31, 0xdb, 0xac, 0x00, 0xc3, 0xe2, 0xfb, 0x88, 0xd8]);
    asm.expect_al(0, failure);
}

/// Finds the table as an operating system does, checks its sums, and leaves its address in EDI.
fn find(asm: &mut Asm) {
    asm.rdi(0xf_0000 - 16).until_equal(|asm| {
        // add edi, 16; cmp edi, 1 MiB
        asm.raw(&[0x83, 0xc7, 16, 0x81, 0xff]);
        asm.raw(&(layout::HIGH_RAM as u32).to_le_bytes());
        asm.if_equal(|asm| asm.fail(1));
        // cmp dword [rdi], "_MP_"
        asm.raw(&[0x81, 0x3f]).raw(b"_MP_");
    });
    // mov esi, edi
    asm.raw(&[0x89, 0xfe]).ecx(16);
    expect_sum_0(asm, 2);
    // mov edi, [rdi + 4]; cmp dword [rdi], "PCMP"
    asm.raw(&[0x8b, 0x7f, 0x04, 0x81, 0x3f]).raw(b"PCMP");
    asm.if_different(|asm| asm.fail(3));
    // mov esi, edi; movzx ecx, word [rdi + 4]
    asm.raw(&[0x89, 0xfe, 0x0f, 0xb7, 0x4f, 0x04]);
    expect_sum_0(asm, 4);
}

/// Writes AL to COM1.
fn show_al(asm: &mut Asm) {
    asm.port(layout::SERIAL).raw(&[0xee]);
}

/// The entries of the table that a guest with `args` finds, and what its APICs say: the I/O APIC's ID and version, and
/// the local APIC's version.
fn entries(test: &str, args: &[&str]) -> Option<(Vec<Vec<u8>>, [u8; 3])> {
    let guest = guest(|asm| {
        asm.store(layout::IOAPIC, 0).load(layout::IOAPIC + 0x10);
        asm.raw(&[0xc1, 0xe8, 24]); // shr eax, 24
        show_al(asm);
        asm.store(layout::IOAPIC, 1).load(layout::IOAPIC + 0x10);
        show_al(asm);
        asm.load(layout::LAPIC + 0x30);
        show_al(asm);
        find(asm);
        // mov esi, edi; movzx ecx, word [rdi + 4]; mov edx, COM1; lodsb; out dx, al; loop
        asm.raw(&[0x89, 0xfe, 0x0f, 0xb7, 0x4f, 0x04]);
        asm.port(layout::SERIAL).raw(&[0xac, 0xee, 0xe2, 0xfc]);
        asm.power_off();
    });
    let ended = Vm::new(test, &guest)?.args(args).run();
    ended.expect(0).silent();
    let (apics, mut rest) = ended.stdout.split_at(3);
    rest = &rest[44..];
    let mut entries = Vec::new();
    while let Some(kind) = rest.first() {
        let (entry, next) = rest.split_at(if *kind == 0 { 20 } else { 8 });
        entries.push(entry.to_vec());
        rest = next;
    }
    Some((entries, apics.try_into().unwrap()))
}

#[test]
fn a_guest_finds_its_processors_and_apics() {
    let test = "a_guest_finds_its_processors_and_apics";
    for cpus in ["1", "2", "64"] {
        let Some((entries, apics)) = entries(test, &["--cpus", cpus]) else {
            return;
        };
        let [id, version, local_version] = apics;
        let processors: Vec<_> = entries.iter().filter(|entry| entry[0] == 0).collect();
        assert_eq!(processors.len().to_string(), cpus);
        for (number, processor) in (0..).zip(processors) {
            let flags = if number == 0 { 3 } else { 1 };
            assert_eq!(processor[1..4], [number, local_version, flags]);
        }
        let io_apics = entries.iter().filter(|entry| entry[0] == 2);
        let io_apics: Vec<_> = io_apics.map(|entry| &entry[1..4]).collect();
        assert_eq!(io_apics, [[id, version, 1]]);
    }
}

#[test]
fn a_guest_finds_the_wires_of_its_devices() {
    let test = "a_guest_finds_the_wires_of_its_devices";
    let args = ["--virtio", "mmio,cmdline", "--rng", "on"];
    for (timer, irqs) in [(&[][..], vec![]), (&["--legacy-timer"], vec![0])] {
        let Some((entries, _)) = entries(test, &[&args, timer].concat()) else {
            return;
        };
        let wires = entries.iter().filter(|entry| entry[0] == 3);
        let wires: Vec<_> = wires.map(|entry| [entry[5], entry[7]]).collect();
        let irqs = irqs.into_iter().chain(1..2).chain(3..16);
        assert!(irqs.map(|irq| [irq, irq]).eq(wires.iter().copied()));
        // The random numbers' device has the first free pin of ISA.
        assert!(wires.contains(&[1, 1]));
    }
}
