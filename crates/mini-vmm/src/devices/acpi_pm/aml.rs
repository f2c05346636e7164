// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The DSDT's description of the power button, the generation ID and the event device.

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If,
    Interrupt, Local, Method, Name, Notify, OpRegion, OpRegionSpace, Package, Path,
    ResourceTemplate, Store, ZERO,
};

use pci_root::acpi::ScanSlots;

use crate::layout;

/// `Notify` value of a power button that was pressed (ACPI 6.5, section 4.8.3.1.2).
const BUTTON_PRESSED: u8 = 0x80;

/// `Notify` value of a generation ID that has changed (Microsoft, "Virtual Machine Generation ID").
const GENERATION_CHANGED: u8 = 0x80;

/// Describes the devices. `has_slots` says whether the root has slots for hotplug.
pub(super) fn describe(body: &mut Vec<u8>, has_slots: bool) {
    power_button(body);
    generation_id(body);
    event_device(body, has_slots);
}

/// The control method power button (section 4.8.2.2.1.2), notified by the event device.
fn power_button(body: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0C0C"));
    Device::new("_SB_.PWRB".into(), vec![&hid]).to_aml_bytes(body);
}

/// The generation ID, notified by the event device. Up to Linux 6.9 a driver is found only by `_HID`, and later also by
/// `_CID`, which is Microsoft's name. `ADDR` has the lower and the upper half of the address.
fn generation_id(body: &mut Vec<u8>) {
    let [low, high] = [
        layout::VM_GENERATION_ID as u32,
        (layout::VM_GENERATION_ID >> 32) as u32,
    ];
    Device::new(
        "_SB_.VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"VMGENCTR"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
    )
    .to_aml_bytes(body);
}

/// The Generic Event Device (section 5.6.9). Its method reads the pending events, which clears them, and notifies the
/// device of each one.
fn event_device(body: &mut Vec<u8>, has_slots: bool) {
    let (port, len) = (layout::GED_EVENTS, 1u8);
    let interrupt = Interrupt::new(true, true, false, false, layout::GED_GSI);
    let pending = Local(0);
    let (power_button, generation) = (Path::new("PWRB"), Path::new("VGEN"));
    let register = Path::new("EVNT");
    let read = Store::new(&pending, &register);
    let is = |event: &'static u8| And::new(&ZERO, &pending, event);
    let (pressed, changed, news) = (
        is(&layout::GED_POWER_BUTTON),
        is(&layout::GED_GENERATION),
        is(&layout::GED_PCI_HOTPLUG),
    );
    let tell_button = Notify::new(&power_button, &BUTTON_PRESSED);
    let tell_generation = Notify::new(&generation, &GENERATION_CHANGED);
    let events = [
        If::new(&pressed, vec![&tell_button]),
        If::new(&changed, vec![&tell_generation]),
        If::new(&news, vec![&ScanSlots]),
    ];
    let known = if has_slots { 3 } else { 2 };
    let mut method: Vec<&dyn Aml> = vec![&read];
    method.extend(events[..known].iter().map(|event| event as &dyn Aml));
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
            &Method::new("_EVT".into(), 1, true, method),
        ],
    )
    .to_aml_bytes(body);
}
