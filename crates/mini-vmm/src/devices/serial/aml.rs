// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the DSDT says of COM1.

use acpi_tables::Aml;
use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Name, ResourceTemplate, ZERO};

use crate::layout;

/// COM1: a 16550A-compatible port. Linux finds its interrupt here, as there is no legacy PIC to
/// map IRQ 4 for it.
pub(super) fn describe(body: &mut Vec<u8>) {
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
