// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The DSDT's description of COM1.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Arg, Device, EISAName, Equal, IO, If, Interrupt, Method, Name, ONE, Path, ResourceTemplate,
    Return, Store, ZERO,
};

use crate::layout;

/// COM1: a 16550A-compatible port. Linux finds its interrupt here, since there is no legacy PIC to map IRQ 4. A kernel
/// without the IOAPIC (`noapic`) reports that by `\_PIC`. Without a PIC it can't get the interrupt, so the port then
/// has none and is polled.
pub(super) fn describe(has_pic: bool, body: &mut Vec<u8>) {
    let io = IO::new(layout::SERIAL, layout::SERIAL, 1, layout::SERIAL_SIZE as u8);
    let interrupt = Interrupt::new(true, true, false, false, layout::SERIAL_GSI);
    let with_interrupt = ResourceTemplate::new(vec![&io, &interrupt]);
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let uid = Name::new("_UID".into(), &ZERO);
    if has_pic {
        let resources = Name::new("_CRS".into(), &with_interrupt);
        Device::new("_SB_.COM1".into(), vec![&hid, &uid, &resources]).to_aml_bytes(body);
        return;
    }
    let model = Path::new("PICM");
    Name::new("PICM".into(), &ONE).to_aml_bytes(body);
    let store = Store::new(&model, &Arg(0));
    Method::new("_PIC".into(), 1, false, vec![&store]).to_aml_bytes(body);
    let without = ResourceTemplate::new(vec![&io]);
    let (is_pic, polled) = (Equal::new(&model, &ZERO), Return::new(&without));
    let (if_pic, usual) = (
        If::new(&is_pic, vec![&polled]),
        Return::new(&with_interrupt),
    );
    let resources = Method::new("_CRS".into(), 0, false, vec![&if_pic, &usual]);
    Device::new("_SB_.COM1".into(), vec![&hid, &uid, &resources]).to_aml_bytes(body);
}
