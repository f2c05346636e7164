// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The DSDT's description of the power button and the event device.

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If,
    Interrupt, Local, Method, Name, Notify, OpRegion, OpRegionSpace, Path, ResourceTemplate, Store,
    ZERO,
};

use crate::layout;

/// `Notify` value of a power button that was pressed (ACPI 6.5, section 4.8.3.1.2).
const BUTTON_PRESSED: u8 = 0x80;

/// Describes both devices.
pub(super) fn describe(body: &mut Vec<u8>) {
    power_button(body);
    event_device(body);
}

/// The control method power button (section 4.8.2.2.1.2), notified by the event device.
fn power_button(body: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0C0C"));
    Device::new("_SB_.PWRB".into(), vec![&hid]).to_aml_bytes(body);
}

/// The Generic Event Device (section 5.6.9). Its method reads the pending events, which clears them, and notifies the
/// device of each one.
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
