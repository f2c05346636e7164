// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use vm_memory::GuestMemoryMmap;

use super::*;
use crate::config::{RngSpec, SerialSpec, VirtioSpec, VmSpec};

fn plan(change: impl FnOnce(&mut VmSpec)) -> MachinePlan {
    let mut spec = VmSpec::new("vmlinux");
    change(&mut spec);
    MachinePlan::new(&spec).unwrap()
}

/// One machine for each number of vCPUs and combination of options that changes the table.
fn machines() -> impl Iterator<Item = MachinePlan> {
    (1..=layout::MAX_CPUS).flat_map(|cpus| {
        [
            (false, VirtioSpec::Pci),
            (true, VirtioSpec::Pci),
            (false, VirtioSpec::Mmio),
            (true, VirtioSpec::MmioBoth),
        ]
        .map(|(legacy_timer, virtio)| {
            plan(|spec| {
                (spec.cpus, spec.legacy_timer) = (cpus, legacy_timer);
                (spec.virtio, spec.rng) = (virtio, Some(RngSpec::default()));
            })
        })
    })
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// The configuration table, found in guest memory as a kernel finds it.
fn find(machine: &MachinePlan) -> Vec<u8> {
    let memory = [(GuestAddress(0), layout::MIB as usize)];
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&memory).unwrap();
    write(&memory, machine).unwrap();
    let read = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    };
    let bios = read(0xf_0000, 0x1_0000);
    let mut found = bios.chunks(16).filter(|chunk| chunk.starts_with(b"_MP_"));
    let pointer = found.next().unwrap();
    assert!(found.next().is_none(), "two pointers");
    assert_eq!((pointer[8], pointer[9], sum(pointer)), (1, 4, 0));
    assert_eq!(pointer[11..], [0; 5], "features");

    let at = u32_at(pointer, 4).into();
    let len = u16_at(&read(at, HEADER_LEN), 4).into();
    let end = at + len as u64;
    assert!(end <= 0xf_fff0, "the table ends at {end:#x}");
    assert_eq!(read(end, 16), [0; 16], "something follows the table");
    read(at, len)
}

/// The entries after the header, after a check of the header.
fn walk(table: &[u8]) -> Vec<&[u8]> {
    assert_eq!((&table[..4], table[6], sum(table)), (&b"PCMP"[..], 4, 0));
    assert_eq!(&table[8..28], b"MINVMM  MINIVMM     ");
    assert_eq!(table[28..34], [0; 6], "an OEM table");
    assert_eq!(u32_at(table, 36), 0xfee0_0000, "local APICs");
    assert_eq!(table[40..44], [0; 4], "an extended table");
    let mut rest = &table[44..];
    let mut entries = Vec::new();
    while let Some(&kind) = rest.first() {
        let (entry, next) = rest.split_at(if kind == 0 { 20 } else { 8 });
        entries.push(entry);
        rest = next;
    }
    assert_eq!(usize::from(u16_at(table, 34)), entries.len(), "entry count");
    assert!(entries.is_sorted_by_key(|entry| entry[0]), "order of types");
    entries
}

fn of_type<'a>(entries: &[&'a [u8]], kind: u8) -> Vec<&'a [u8]> {
    let found = entries.iter().filter(|entry| entry[0] == kind);
    found.copied().collect()
}

#[test]
fn every_processor_is_usable_and_the_first_one_boots() {
    for machine in machines() {
        let table = find(&machine);
        let processors = of_type(&walk(&table), 0);
        assert_eq!(processors.len(), usize::from(machine.cpus));
        for (id, entry) in (0..).zip(processors) {
            let flags = if id == 0 { 3 } else { 1 };
            assert_eq!(entry[1..4], [id, 0x14, flags]);
            assert_eq!([u32_at(entry, 4), u32_at(entry, 8)], [0x600, 0x201]);
            assert_eq!(entry[12..], [0; 8]);
        }
    }
}

#[test]
fn buses_are_isa_and_pci_if_there_is_a_root() {
    for machine in machines() {
        let table = find(&machine);
        let buses = of_type(&walk(&table), 1);
        if machine.devices.iter().any(|device| device.pci.is_some()) {
            assert_eq!(buses, [b"\x01\x00PCI   ", b"\x01\x01ISA   "]);
        } else {
            assert_eq!(buses, [b"\x01\x00ISA   "]);
        }
    }
}

#[test]
fn interrupts_go_from_isa_to_the_pins_of_the_same_number() {
    for machine in machines() {
        let table = find(&machine);
        let entries = walk(&table);
        let isa = of_type(&entries, 1).last().unwrap()[1];
        let io_apics = of_type(&entries, 2);
        assert_eq!(io_apics, [[2, 0, 0x11, 1, 0, 0, 0xc0, 0xfe]]);
        let mut irqs: Vec<u8> = vec![1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        if machine.legacy_timer {
            irqs.insert(0, 0);
        }
        let wires = irqs.iter().map(|&irq| [3, 0, 0, 0, isa, irq, 0, irq]);
        assert!(wires.eq(of_type(&entries, 3)), "{entries:?}");
        let local = [[4, 3, 0, 0, isa, 0, 0, 0], [4, 1, 0, 0, isa, 0, 0xff, 1]];
        assert_eq!(of_type(&entries, 4), local);
    }
}

#[test]
fn every_device_that_a_kernel_without_acpi_knows_has_a_wire() {
    let machine = plan(|spec| {
        (spec.virtio, spec.rng, spec.rtc) =
            (VirtioSpec::MmioCmdline, Some(RngSpec::default()), true);
    });
    let table = find(&machine);
    let wires = of_type(&walk(&table), 3);
    for gsi in machine.devices.iter().filter_map(|device| device.gsi) {
        assert!(
            wires.iter().any(|wire| u32::from(wire[7]) == gsi),
            "{gsi} has no wire"
        );
    }
}

#[test]
fn memory_that_is_too_small_is_told_with_the_address() {
    let memory = [(GuestAddress(0), layout::MP_TABLE as usize)];
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&memory).unwrap();
    let machine = plan(|spec| spec.serial = SerialSpec::Off);
    let said = write(&memory, &machine).unwrap_err().to_string();
    assert!(
        said.contains("0xff000") && said.contains("32 MiB"),
        "{said}"
    );
}
