// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every guest-physical address, port and GSI of the machine.
//!
//! Overlapping ranges don't compile.

/// One kibibyte, in bytes.
pub const KIB: u64 = 1 << 10;
/// One mebibyte, in bytes.
pub const MIB: u64 = 1 << 20;
/// One gibibyte, in bytes.
pub const GIB: u64 = 1 << 30;

/// The page size of x86-64, in bytes.
pub const PAGE_SIZE: u64 = 4 * KIB;

// ---- Low memory, as the boot processor finds it -------------------------------------------

/// The GDT that the boot processor starts with.
pub const BOOT_GDT: u64 = 0x500;
/// The (empty) IDT that the boot processor starts with.
pub const BOOT_IDT: u64 = 0x520;
/// PVH: `struct hvm_start_info`, followed by its module list and memory map.
pub const PVH_START_INFO: u64 = 0x6000;
/// PVH: the module list (`struct hvm_modlist_entry`), one entry.
pub const PVH_MODLIST: u64 = 0x6040;
/// PVH: the memory map (`struct hvm_memmap_table_entry`).
pub const PVH_MEMMAP: u64 = 0x6100;
/// Linux's `struct boot_params` (the "zero page").
pub const ZERO_PAGE: u64 = 0x7000;
/// The initial stack of the boot processor (grows down).
pub const BOOT_STACK: u64 = 0x8ff0;
/// The first of the identity-mapping page tables: PML4, PDPT, then four page directories.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// Bytes of page tables: a PML4, a PDPT and four page directories map the first 4 GiB.
pub const BOOT_PAGE_TABLES_SIZE: u64 = 6 * PAGE_SIZE;
/// The kernel command line, NUL-terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// Size of the command line's buffer including the NUL, in bytes.
pub const CMDLINE_SIZE: u64 = 0x1_0000;
/// End of the conventional memory that the memory map declares usable (the EBDA would start here).
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The ACPI tables, RSDP first, in the BIOS area that operating systems search.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// Size of the range for all ACPI tables, in bytes.
pub const ACPI_TABLES_SIZE: u64 = 0x1_f000;
/// The MPtable, its floating pointer first. Operating systems search the 64 KiB below 1 MiB for it. In the last page,
/// which [`BIOS_ENTRY`] is in, too, it takes no memory of its own.
pub const MP_TABLE: u64 = ACPI_TABLES + ACPI_TABLES_SIZE;
/// Size of the range for the MPtable, in bytes.
pub const MP_TABLE_SIZE: u64 = VM_GENERATION_ID - MP_TABLE;
/// The generation ID of the virtual machine, which a restore changes (Microsoft, "Virtual Machine Generation ID"). It
/// shares the page of [`BIOS_ENTRY`].
pub const VM_GENERATION_ID: u64 = BIOS_ENTRY - VM_GENERATION_ID_SIZE;
/// Size of the generation ID in bytes.
pub const VM_GENERATION_ID_SIZE: u64 = 16;
/// The real-mode entry point of a PC's firmware.
pub const BIOS_ENTRY: u64 = HIGH_RAM - BIOS_ENTRY_SIZE;
/// Size of the code at that entry point, in bytes.
pub const BIOS_ENTRY_SIZE: u64 = 16;
/// Start of the memory above the BIOS area, where kernels are loaded.
pub const HIGH_RAM: u64 = MIB;
/// Load address of the guest of `mini-vmm demo`, as for kernels.
pub const DEMO_GUEST: u32 = 16 * MIB as u32;
/// The demo guest's para page, after its code, which is shorter than two pages.
pub const DEMO_PARA_PAGE: u32 = DEMO_GUEST + 0x2000;

// ---- The hole below 4 GiB ------------------------------------------------------------------

/// End of RAM below 4 GiB. Device memory follows.
pub const HOLE_START: u64 = 3 * GIB;
/// Start of RAM above the hole.
pub const HOLE_END: u64 = 4 * GIB;
/// PCI: BARs below 4 GiB.
pub const PCI_LOW: u64 = HOLE_START;
/// Firecracker's boot timer, one byte. Only machines without PCI have it.
pub const BOOT_TIMER: u64 = HOLE_START;
/// Size of the range for BARs below 4 GiB, in bytes.
pub const PCI_LOW_SIZE: u64 = 256 * MIB;
/// Register windows of virtio-mmio devices.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Size of the range for virtio-mmio register windows, in bytes.
pub const VIRTIO_MMIO_SIZE: u64 = 16 * MIB;
/// PCI: configuration space (ECAM).
pub const PCI_ECAM: u64 = 0xe000_0000;
/// PCI: buses, which have 1 MiB of configuration space each.
pub const PCI_BUSES: u16 = 1;
/// PCI: the registers of a hotplug controller, behind the most buses that ECAM can have. No device comes or goes yet.
pub const PCI_HOTPLUG: u64 = 0xf000_0000;
/// The IOAPIC's registers.
pub const IOAPIC: u64 = 0xfec0_0000;
/// The local APIC's registers.
pub const LAPIC: u64 = 0xfee0_0000;

/// The address of a message to the local APIC with this ID: no logical destination (bit 2), no redirection hint (bit 3)
/// (Intel SDM volume 3A, "Message Address Register Format").
pub const fn msi_address(apic_id: u8) -> u64 {
    LAPIC | (apic_id as u64) << 12
}

/// KVM's identity-map page (VMX without unrestricted guest).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// KVM's three TSS pages (VMX without unrestricted guest).
pub const KVM_TSS: u64 = 0xfffb_d000;

// ---- Above 4 GiB and RAM ---------------------------------------------------------------------

/// Size of the range for BARs above RAM, in bytes. Small, because the guest's CPU may have few physical address bits.
pub const PCI_HIGH_SIZE: u64 = GIB;

/// PCI: BARs above RAM in a machine with `ram` bytes of RAM: the first multiple of 1 GiB after RAM and the hole.
pub const fn pci_high(ram: u64) -> u64 {
    let above = ram.saturating_sub(HOLE_START);
    HOLE_END + above.next_multiple_of(GIB)
}

/// Memory that the guest shares with the host, in a machine with `ram` bytes of RAM: after the BARs above RAM.
pub const fn shared_memory(ram: u64) -> u64 {
    pci_high(ram) + PCI_HIGH_SIZE
}

// ---- Ports -----------------------------------------------------------------------------------

/// The i8042 data port; [`I8042_STATUS`] is its status and command port.
pub const I8042_DATA: u16 = 0x60;
/// The i8042 status and command port: writing 0xFE requests a reset.
pub const I8042_STATUS: u16 = 0x64;
/// The real-time clock's index port; its data port follows.
pub const RTC: u16 = 0x70;
/// Number of the real-time clock's ports.
pub const RTC_SIZE: u16 = 2;
/// The first debug-exit port, unless another one is given.
pub const DEBUG_EXIT: u16 = 0xf4;
/// Number of the debug-exit device's ports: wide writes reach it as they reach QEMU's.
pub const DEBUG_EXIT_SIZE: u16 = 4;
/// COM1, eight ports.
pub const SERIAL: u16 = 0x3f8;
/// Number of COM1's ports.
pub const SERIAL_SIZE: u16 = 8;
/// pvpanic's only port.
pub const PVPANIC: u16 = 0x505;
/// The first port of ACPI's registers.
pub const ACPI_PM: u16 = 0x600;
/// Number of ACPI's ports.
pub const ACPI_PM_SIZE: u16 = 4;
/// ACPI's sleep control register (FADT `SLEEP_CONTROL_REG`), one byte.
pub const ACPI_SLEEP_CONTROL: u16 = ACPI_PM;
/// ACPI's sleep status register (FADT `SLEEP_STATUS_REG`), one byte.
pub const ACPI_SLEEP_STATUS: u16 = ACPI_PM + 1;
/// ACPI's reset register (FADT `RESET_REG`), one byte.
pub const ACPI_RESET: u16 = ACPI_PM + 2;
/// The value to write to [`ACPI_RESET`] for a reset.
pub const ACPI_RESET_VALUE: u8 = 0x01;
/// Pending events of the Generic Event Device, one byte, cleared by reading.
pub const GED_EVENTS: u16 = ACPI_PM + 3;
/// Bit of [`GED_EVENTS`]: the power button was pressed.
pub const GED_POWER_BUTTON: u8 = 0x01;
/// Bit of [`GED_EVENTS`] for news in the registers at [`PCI_HOTPLUG`]. Never set yet, so the DSDT doesn't look at it.
pub const GED_PCI_HOTPLUG: u8 = 0x02;
/// Bit of [`GED_EVENTS`]: [`VM_GENERATION_ID`] has changed.
pub const GED_GENERATION: u8 = 0x04;
/// The PM1 event registers, with `--legacy-timer` (FADT `PM1a_EVT_BLK`).
pub const PM1_EVENTS: u16 = 0x604;
/// Number of the PM1 event registers' ports.
pub const PM1_EVENTS_SIZE: u16 = 4;
/// The PM1 control register, after the event registers (FADT `PM1a_CNT_BLK`).
pub const PM1_CONTROL: u16 = PM1_EVENTS + PM1_EVENTS_SIZE;
/// Number of the PM1 control register's ports.
pub const PM1_CONTROL_SIZE: u16 = 2;
/// Number of all PM1 registers' ports.
pub const PM1_SIZE: u16 = PM1_EVENTS_SIZE + PM1_CONTROL_SIZE;
/// The sleep type (`SLP_TYP`) of S5, soft-off.
pub const ACPI_S5_SLEEP_TYPE: u8 = 5;
/// The reset control register of PC chipsets; a write with bit 2 set resets.
pub const CF9_RESET: u16 = 0xcf9;

// ---- Interrupts ------------------------------------------------------------------------------

/// Pins of the IOAPIC (KVM's has 24); the GSI of a pin is its number.
pub const IOAPIC_PINS: u32 = 24;
/// The interval timer's GSI, with `--legacy-timer`.
pub const TIMER_GSI: u32 = 0;
/// The second PIC's input of the first PIC. No device has it.
pub const CASCADE_GSI: u32 = 2;
/// COM1's GSI.
pub const SERIAL_GSI: u32 = 4;
/// The Generic Event Device's GSI.
pub const GED_GSI: u32 = 5;
/// The real-time clock's GSI.
pub const RTC_GSI: u32 = 8;
/// ACPI's system control interrupt; declared, never raised: there are no fixed events.
pub const SCI_GSI: u32 = 9;
/// The GSIs above, sorted. No other device gets them.
pub const FIXED_GSIS: [u32; 6] = [
    TIMER_GSI,
    CASCADE_GSI,
    SERIAL_GSI,
    GED_GSI,
    RTC_GSI,
    SCI_GSI,
];

// ---- MSRs ------------------------------------------------------------------------------------

/// The MSR that KVM's forwarding of hypercalls requires. A write to it would make KVM write Xen's hypercall page into
/// the guest, so the filter hides it from the guest. With 0, KVM forwards nothing until another VM sets one. Since Linux
/// 6.15 it must lie in 0x40000000 to 0x4fffffff.
pub const FORWARD_MSR: u32 = 0x4d56_0200;

// ---- Limits ----------------------------------------------------------------------------------

/// The fewest bytes of RAM that a machine may have.
pub const MIN_RAM: u64 = 32 * MIB;
/// The most bytes of RAM that a machine may have. KVM's page tables reach further, but hosts rarely do.
pub const MAX_RAM: u64 = 1024 * GIB;
/// The most vCPUs that a machine may have.
pub const MAX_CPUS: u8 = 64;

/// Ranges of low memory, sorted by address, to check for overlaps.
const LOW_MEMORY: [(u64, u64); 11] = [
    (BOOT_GDT, 0x20),
    (BOOT_IDT, 0x10),
    (PVH_START_INFO, PAGE_SIZE),
    (ZERO_PAGE, PAGE_SIZE),
    (BOOT_STACK - 0xff0, 0xff0),
    (BOOT_PAGE_TABLES, BOOT_PAGE_TABLES_SIZE),
    (CMDLINE, CMDLINE_SIZE),
    (ACPI_TABLES, ACPI_TABLES_SIZE),
    (MP_TABLE, MP_TABLE_SIZE),
    (VM_GENERATION_ID, VM_GENERATION_ID_SIZE),
    (BIOS_ENTRY, BIOS_ENTRY_SIZE),
];

/// Ranges of the hole below 4 GiB, sorted by address.
const HOLE: [(u64, u64); 8] = [
    (PCI_LOW, PCI_LOW_SIZE),
    (VIRTIO_MMIO, VIRTIO_MMIO_SIZE),
    (PCI_ECAM, 256 * MIB),
    (PCI_HOTPLUG, pci_root::hotplug::HOTPLUG_SIZE),
    (IOAPIC, PAGE_SIZE),
    (LAPIC, PAGE_SIZE),
    (KVM_IDENTITY_MAP, PAGE_SIZE),
    (KVM_TSS, 3 * PAGE_SIZE),
];

/// Port ranges, sorted.
const PORTS: [(u64, u64); 9] = [
    (I8042_DATA as u64, 1),
    (I8042_STATUS as u64, 1),
    (RTC as u64, RTC_SIZE as u64),
    (DEBUG_EXIT as u64, DEBUG_EXIT_SIZE as u64),
    (SERIAL as u64, SERIAL_SIZE as u64),
    (PVPANIC as u64, 1),
    (ACPI_PM as u64, ACPI_PM_SIZE as u64),
    (PM1_EVENTS as u64, PM1_SIZE as u64),
    (CF9_RESET as u64, 1),
];

/// Ports with an owner: first port, last port, owner. The last lines are ports of every PC that KVM emulates or kernels
/// write to, whether or not this machine has the device.
const OWNED_PORTS: [(u16, u16, &str); 14] = [
    (I8042_DATA, I8042_DATA, "the keyboard controller"),
    (I8042_STATUS, I8042_STATUS, "the keyboard controller"),
    (SERIAL, SERIAL + SERIAL_SIZE - 1, "COM1"),
    (PVPANIC, PVPANIC, "the panic device"),
    (ACPI_PM, PM1_EVENTS + PM1_SIZE - 1, "ACPI"),
    (CF9_RESET, CF9_RESET, "the reset register"),
    (0x20, 0x21, "the interrupt controller"),
    (0xa0, 0xa1, "the interrupt controller"),
    (0x4d0, 0x4d1, "the interrupt controller"),
    (0x40, 0x43, "the timer"),
    (0x61, 0x61, "the timer"),
    (RTC, RTC + RTC_SIZE - 1, "the real-time clock"),
    (0x80, 0x80, "the delay port"),
    (0xcf8, 0xcff, "PCI configuration"),
];

/// The owner of a port that the debug-exit device would take if it started at `port`. `None` if all are free.
pub fn port_owner(port: u16) -> Option<&'static str> {
    let end = port.saturating_add(DEBUG_EXIT_SIZE - 1);
    let mut owners = OWNED_PORTS.iter();
    let owner = owners.find(|(first, last, _)| port <= *last && *first <= end);
    owner.map(|(_, _, name)| *name)
}

/// Whether `ranges` of (start, length) are sorted, without overlaps, and within `[low, high)`.
const fn apart(ranges: &[(u64, u64)], low: u64, high: u64) -> bool {
    let mut free_from = low;
    let mut i = 0;
    while i < ranges.len() {
        let (start, len) = ranges[i];
        if start < free_from || start + len > high {
            return false;
        }
        free_from = start + len;
        i += 1;
    }
    true
}

const _: () = assert!(apart(&LOW_MEMORY, 0, HIGH_RAM));
const _: () = assert!(apart(&HOLE, HOLE_START, HOLE_END));
const _: () = assert!(apart(&PORTS, 0, 0x1_0000));
const _: () = assert!(CMDLINE + CMDLINE_SIZE <= LOW_RAM_END);
const _: () = assert!(GED_POWER_BUTTON & GED_PCI_HOTPLUG == 0);
const _: () = assert!((GED_POWER_BUTTON | GED_PCI_HOTPLUG) & GED_GENERATION == 0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_exit_takes_four_free_ports() {
        assert_eq!(port_owner(DEBUG_EXIT), None);
        assert_eq!(port_owner(SERIAL - DEBUG_EXIT_SIZE), None);
        assert_eq!(port_owner(SERIAL - 1), Some("COM1"));
        assert_eq!(port_owner(SERIAL + SERIAL_SIZE), None);
    }

    #[test]
    fn overlap_and_overflow_are_seen() {
        assert!(apart(&[(0, 4), (4, 4)], 0, 8));
        assert!(!apart(&[(0, 5), (4, 4)], 0, 8));
        assert!(!apart(&[(0, 4), (4, 5)], 0, 8));
        assert!(!apart(&[(4, 4), (0, 4)], 0, 8));
    }
}
