// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The tables with a fixed format: FADT, MADT and XSDT.

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, table};
use crate::layout;
use crate::plan::MachinePlan;

/// `IAPC_BOOT_ARCH`: no VGA.
const VGA_NOT_PRESENT: u16 = 1 << 2;
/// `IAPC_BOOT_ARCH`: no CMOS real-time clock.
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// MADT revision of ACPI 6.5 (section 5.2.12).
const MADT_REVISION: u8 = 6;
/// MADT flag `PCAT_COMPAT`: there are two 8259 PICs as well.
const PCAT_COMPAT: u32 = 1;
/// MADT structure types (table 5.21).
const LOCAL_APIC: u8 = 0;
const IO_APIC: u8 = 1;
const LOCAL_APIC_NMI: u8 = 4;
/// Local APIC flag: the processor is ready for use (section 5.2.12.2).
const ENABLED: u32 = 1;
/// `ACPI Processor UID` that means all processors (section 5.2.12.7).
const ALL_PROCESSORS: u8 = 0xff;
/// MPS INTI flags (table 5.26): polarity and trigger mode conform to the bus.
const CONFORMS_TO_BUS: u16 = 0;

/// The alignment of the FACS (section 5.2.10), in bytes.
pub(super) const FACS_ALIGN: usize = 64;

/// The register block of `size` bytes at `port`.
fn register(port: u16, size: u16, access: AccessSize) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        (size * 8) as u8,
        0,
        access,
        port.into(),
    )
}

/// An 8-bit register at `port`.
fn port(port: u16) -> GAS {
    register(port, 1, AccessSize::ByteAccess)
}

/// The FADT (section 5.2.9): the power registers, and which parts of a PC this machine lacks.
///
/// `facs` is the address of the FACS on a platform with fixed hardware; without one it is hardware-reduced.
/// `IAPC_BOOT_ARCH` doesn't announce the i8042. Its ports only take the reset command, and this way Linux skips a probe
/// that would wait for a keyboard.
pub(super) fn fadt(machine: &MachinePlan, dsdt: u64, facs: Option<u64>) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::Headless)
        .flag(Flags::ResetRegSup)
        // Neither button is a fixed feature. The power button is a device in the DSDT.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt = match facs {
        Some(facs) => with_fixed_hardware(fadt.firmware_ctrl_64(facs)),
        None => fadt.flag(Flags::HwReducedAcpi),
    };
    fadt.iapc_boot_arch = machine
        .boot_arch(VGA_NOT_PRESENT | CMOS_RTC_NOT_PRESENT)
        .into();
    fadt.sci_int = (layout::SCI_GSI as u16).into();
    fadt.reset_reg = port(layout::ACPI_RESET);
    fadt.reset_value = layout::ACPI_RESET_VALUE;
    fadt.sleep_control_reg = port(layout::ACPI_SLEEP_CONTROL);
    fadt.sleep_status_reg = port(layout::ACPI_SLEEP_STATUS);
    let mut bytes = Vec::new();
    fadt.finalize().to_aml_bytes(&mut bytes);
    bytes
}

/// Describes the PM1 registers (section 4.8.3). There is no PM timer. `SMI_CMD` is 0: the machine is always in ACPI
/// mode.
fn with_fixed_hardware(mut fadt: FADTBuilder) -> FADTBuilder {
    use layout::{PM1_CONTROL, PM1_CONTROL_SIZE, PM1_EVENTS, PM1_EVENTS_SIZE};
    fadt.pm1a_evt_blk = u32::from(PM1_EVENTS).into();
    fadt.pm1a_cnt_blk = u32::from(PM1_CONTROL).into();
    fadt.pm1_evt_len = PM1_EVENTS_SIZE as u8;
    fadt.pm1_cnt_len = PM1_CONTROL_SIZE as u8;
    fadt.x_pm1a_evt_blk = register(PM1_EVENTS, PM1_EVENTS_SIZE, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = register(PM1_CONTROL, PM1_CONTROL_SIZE, AccessSize::WordAccess);
    fadt
}

/// The FACS (section 5.2.10), required on a platform with fixed hardware: no waking vector, no global lock.
pub(super) fn facs() -> Vec<u8> {
    let mut bytes = Vec::new();
    FACS::new().to_aml_bytes(&mut bytes);
    bytes
}

/// The MADT (section 5.2.12): local APICs, the IOAPIC, and how interrupts are wired.
///
/// APIC ids stay below 255. So local APIC structures suffice, also for a guest that enables x2APIC mode (section
/// 5.2.12.12). ISA interrupts are mapped to the IOAPIC's pins one to one, also the PIT's: KVM raises pin 0 for it,
/// unless other routes are set.
pub(super) fn madt(machine: &MachinePlan) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&(layout::LAPIC as u32).to_le_bytes());
    let flags = if machine.legacy_timer { PCAT_COMPAT } else { 0 };
    body.extend_from_slice(&flags.to_le_bytes());

    for id in 0..machine.cpus {
        body.extend_from_slice(&[LOCAL_APIC, 8, id, id]);
        body.extend_from_slice(&ENABLED.to_le_bytes());
    }
    body.extend_from_slice(&[IO_APIC, 12, 0, 0]);
    body.extend_from_slice(&(layout::IOAPIC as u32).to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes());
    body.extend_from_slice(&[LOCAL_APIC_NMI, 6, ALL_PROCESSORS]);
    body.extend_from_slice(&CONFORMS_TO_BUS.to_le_bytes());
    body.push(1);
    table(b"APIC", MADT_REVISION, &body)
}

/// The XSDT (section 5.2.8): the addresses of all tables except the DSDT.
pub(super) fn xsdt(tables: &[u64]) -> Vec<u8> {
    let body: Vec<u8> = tables
        .iter()
        .flat_map(|address| address.to_le_bytes())
        .collect();
    table(b"XSDT", 1, &body)
}
