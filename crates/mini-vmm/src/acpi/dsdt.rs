// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The DSDT: devices that no bus enumerates.
//!
//! There are no processor devices: the MADT has all that is to say about vCPUs, and each device
//! costs a kernel a few evaluations at boot.

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO,
    If, Interrupt, Local, Method, Name, Notify, OpRegion, OpRegionSpace, Package, Path,
    ResourceTemplate, Store, ZERO,
};

use super::{AcpiMachine, table};
use crate::layout;

/// DSDT revision from which integers have 64 bits (section 5.2.11.1).
const REVISION: u8 = 2;
/// `Notify` value of a power button that was pressed (section 4.8.3.1.2).
const BUTTON_PRESSED: u8 = 0x80;
/// `_STA`: present, enabled, shown, working (section 6.3.7).
const PRESENT: u8 = 0xf;

/// The DSDT of `machine`.
pub(super) fn dsdt(machine: &AcpiMachine) -> Vec<u8> {
    let mut body = Vec::new();
    soft_off(&mut body);
    power_button(&mut body);
    event_device(&mut body);
    pvpanic(&mut body);
    if machine.serial {
        com1(&mut body);
    }
    table(b"DSDT", REVISION, &body)
}

/// `\_S5` (section 7.4.2.6): the value that the sleep control register takes for soft-off.
fn soft_off(body: &mut Vec<u8>) {
    let sleep_types = Package::new(vec![&layout::ACPI_S5_SLEEP_TYPE, &ZERO, &ZERO, &ZERO]);
    Name::new("_S5_".into(), &sleep_types).to_aml_bytes(body);
}

/// The control method power button (section 4.8.2.2.1.2), notified by the event device.
fn power_button(body: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0C0C"));
    Device::new("_SB_.PWRB".into(), vec![&hid]).to_aml_bytes(body);
}

/// The Generic Event Device (section 5.6.9). Its method reads the pending events, which clears
/// them, and tells each device of its own.
fn event_device(body: &mut Vec<u8>) {
    let (port, len) = (layout::GED_EVENTS, 1u8);
    let interrupt = Interrupt::new(true, true, false, false, layout::GED_GSI);
    let (pending, power_button) = (Local(0), Path::new("PWRB"));
    Device::new(
        "_SB_.GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt])),
            &OpRegion::new("EVTR".into(), OpRegionSpace::SystemIO, &port, &len),
            &Field::new(
                "EVTR".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"EVNT", 8)],
            ),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &Store::new(&pending, &Path::new("EVNT")),
                    &If::new(
                        &And::new(&ZERO, &pending, &layout::GED_POWER_BUTTON),
                        vec![&Notify::new(&power_button, &BUTTON_PRESSED)],
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(body);
}

/// The pvpanic device, as QEMU names it: one port where the guest says that it panicked.
fn pvpanic(body: &mut Vec<u8>) {
    let io = IO::new(layout::PVPANIC, layout::PVPANIC, 1, 1);
    Device::new(
        "_SB_.PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_STA".into(), &PRESENT),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&io])),
        ],
    )
    .to_aml_bytes(body);
}

/// COM1: a 16550A-compatible port. Linux finds its interrupt here, as there is no legacy PIC to
/// map IRQ 4 for it.
fn com1(body: &mut Vec<u8>) {
    let io = IO::new(layout::SERIAL, layout::SERIAL, 1, layout::SERIAL_SIZE as u8);
    let interrupt = Interrupt::new(true, true, false, false, layout::SERIAL_GSI);
    Device::new(
        "_SB_.COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&io, &interrupt])),
        ],
    )
    .to_aml_bytes(body);
}
