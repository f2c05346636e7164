// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The MPtable: processors and interrupts, for kernels that read no ACPI tables (Linux with `acpi=off`, FreeBSD's and
//! NetBSD's kernels for small machines). Kernels that use ACPI ignore it.
//!
//! Section and table numbers are those of Intel's MultiProcessor Specification, version 1.4.

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

use crate::layout;
use crate::plan::MachinePlan;

/// Version 1.4, in the floating pointer and in the header.
const SPEC_REVISION: u8 = 4;
/// Bytes of the floating pointer (section 4.1).
const POINTER_LEN: usize = 16;
/// Bytes of the configuration table's header (section 4.2).
const HEADER_LEN: usize = 44;
/// Bytes of a processor entry (section 4.3.1). All other entries have 8.
const PROCESSOR_LEN: usize = 20;
const OEM_ID: [u8; 8] = *b"MINVMM  ";
const PRODUCT_ID: [u8; 12] = *b"MINIVMM     ";

/// Entry types (table 4-3). Entries are sorted by type.
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

/// Flags of processors (section 4.3.1): usable, the boot processor. An I/O APIC has the first one, too.
const ENABLED: u8 = 1;
const BOOT: u8 = 2;
/// The version of KVM's local APICs: bits 7:0 of their version register.
const LAPIC_VERSION: u8 = 0x14;
/// Family, and the features FPU and APIC. Kernels ask CPUID; the fields are for processors without it.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 1 << 9 | 1;

/// The I/O APIC's ID as its register has it after a reset, and as in the MADT. Local APICs have IDs of their own kind.
const IO_APIC_ID: u8 = 0;
/// The version of KVM's I/O APIC: bits 7:0 of its version register.
const IO_APIC_VERSION: u8 = 0x11;

/// Interrupt types (table 4-10).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// Polarity and trigger mode conform to the bus: ISA's are edges, active high.
const CONFORMS_TO_BUS: [u8; 2] = [0, 0];
/// The destination that means every local APIC (table 4-11).
const ALL_LOCAL_APICS: u8 = 0xff;

/// An entry that is not a processor.
type Entry = [u8; 8];

/// Guest memory has no RAM at the MPtable's address.
#[derive(Debug, thiserror::Error)]
#[error(
    "the MPtable doesn't fit guest memory at {:#x}; give the machine at least {} MiB",
    layout::MP_TABLE,
    layout::MIN_RAM / layout::MIB
)]
pub struct Error(#[source] GuestMemoryError);

/// Writes the MPtable to [`layout::MP_TABLE`].
///
/// # Errors
/// Guest memory doesn't reach there.
pub fn write<M: GuestMemory>(memory: &M, machine: &MachinePlan) -> Result<(), Error> {
    let address = GuestAddress(layout::MP_TABLE);
    memory.write_slice(&build(machine), address).map_err(Error)
}

/// The floating pointer, followed by the configuration table.
fn build(machine: &MachinePlan) -> Vec<u8> {
    let entries = entries(machine);
    let count = usize::from(machine.cpus) + entries.len();
    let len = HEADER_LEN + usize::from(machine.cpus) * PROCESSOR_LEN + size_of_val(&*entries);

    let mut table = Vec::with_capacity(POINTER_LEN + len);
    table.extend(pointer());
    table.extend(b"PCMP");
    table.extend((len as u16).to_le_bytes());
    table.extend([SPEC_REVISION, 0]); // the checksum follows below
    table.extend(OEM_ID);
    table.extend(PRODUCT_ID);
    table.extend([0; 6]); // no OEM table
    table.extend((count as u16).to_le_bytes());
    table.extend((layout::LAPIC as u32).to_le_bytes());
    table.extend([0; 4]); // no extended table
    for id in 0..machine.cpus {
        table.extend(processor(id));
    }
    table.extend(entries.as_flattened());
    table[POINTER_LEN + 7] = checksum(&table[POINTER_LEN..]);
    table
}

/// The largest table fits its range.
const _: () = {
    let entries = layout::PCI_BUSES as usize + 1 + 1 + ISA_INTERRUPTS as usize + 2;
    let processors = layout::MAX_CPUS as usize * PROCESSOR_LEN;
    let len = POINTER_LEN + HEADER_LEN + processors + entries * size_of::<Entry>();
    assert!(len <= layout::MP_TABLE_SIZE as usize);
};

/// The floating pointer (section 4.1). Its feature bytes are 0: there is a configuration table, and the PIC is wired to
/// the local APIC, not to the processor.
fn pointer() -> [u8; POINTER_LEN] {
    let mut pointer = [0; POINTER_LEN];
    let table = layout::MP_TABLE as u32 + POINTER_LEN as u32;
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&table.to_le_bytes());
    pointer[8] = 1; // its own length, in units of 16 bytes
    pointer[9] = SPEC_REVISION;
    pointer[10] = checksum(&pointer);
    pointer
}

/// A processor (section 4.3.1), whose local APIC has the ID `id`.
fn processor(id: u8) -> [u8; PROCESSOR_LEN] {
    let mut entry = [0; PROCESSOR_LEN];
    let flags = if id == 0 { ENABLED | BOOT } else { ENABLED };
    entry[..4].copy_from_slice(&[PROCESSOR, id, LAPIC_VERSION, flags]);
    entry[4..8].copy_from_slice(&CPU_SIGNATURE.to_le_bytes());
    entry[8..12].copy_from_slice(&CPU_FEATURES.to_le_bytes());
    entry
}

/// Number of ISA's interrupts.
const ISA_INTERRUPTS: u8 = 16;

/// Everything but the processors: buses, the I/O APIC, and how interrupts are wired.
///
/// Devices on pins that ISA does not have are described in the DSDT only, so no kernel without ACPI knows them. The same
/// is true for PCI's interrupts, which are messages.
fn entries(machine: &MachinePlan) -> Vec<Entry> {
    // The ID of a PCI bus is its number, so ISA's is the next one (section 4.3.2).
    let has_pci = machine.devices.iter().any(|device| device.pci.is_some());
    let isa = if has_pci { layout::PCI_BUSES as u8 } else { 0 };
    let mut entries: Vec<Entry> = (0..isa).map(|id| bus(id, *b"PCI   ")).collect();
    entries.push(bus(isa, *b"ISA   "));
    entries.push(io_apic());
    let wires = (0..ISA_INTERRUPTS).filter(|irq| has_isa_interrupt(machine, *irq));
    entries.extend(wires.map(|irq| interrupt(IO_INTERRUPT, INT, [isa, irq], [IO_APIC_ID, irq])));
    // LINT0 of the boot processor is the PIC, LINT1 of all is the NMI.
    entries.push(interrupt(LOCAL_INTERRUPT, EXT_INT, [isa, 0], [0, 0]));
    entries.push(interrupt(
        LOCAL_INTERRUPT,
        NMI,
        [isa, 0],
        [ALL_LOCAL_APICS, 1],
    ));
    entries
}

/// Whether an interrupt of ISA is wired to the I/O APIC's pin of the same number. The second PIC's never is, and the
/// timer's only if there is a timer.
fn has_isa_interrupt(machine: &MachinePlan, irq: u8) -> bool {
    match u32::from(irq) {
        layout::TIMER_GSI => machine.legacy_timer,
        gsi => gsi != layout::CASCADE_GSI,
    }
}

/// A bus (section 4.3.2).
fn bus(id: u8, name: [u8; 6]) -> Entry {
    let [a, b, c, d, e, f] = name;
    [BUS, id, a, b, c, d, e, f]
}

/// The I/O APIC (section 4.3.3).
fn io_apic() -> Entry {
    let [a, b, c, d] = (layout::IOAPIC as u32).to_le_bytes();
    [IO_APIC, IO_APIC_ID, IO_APIC_VERSION, ENABLED, a, b, c, d]
}

/// A wire from an interrupt of a bus to an input of an APIC (sections 4.3.4 and 4.3.5).
fn interrupt(entry: u8, kind: u8, [bus, irq]: [u8; 2], [apic, input]: [u8; 2]) -> Entry {
    let [low, high] = CONFORMS_TO_BUS;
    [entry, kind, low, high, bus, irq, apic, input]
}

/// The byte that makes the sum of all bytes 0, if it replaces a 0.
fn checksum(bytes: &[u8]) -> u8 {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    sum.wrapping_neg()
}

#[cfg(test)]
mod tests;
