// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The DSDT: devices that can't be enumerated by a bus.
//!
//! There are no processor devices: the MADT describes the vCPUs in full, and each device costs a kernel a few
//! evaluations at boot.

use acpi_tables::Aml;
use acpi_tables::aml::{Name, Package, ZERO};

use super::table;
use crate::layout;
use crate::plan::MachinePlan;

/// DSDT revision from which integers have 64 bits (section 5.2.11.1).
const REVISION: u8 = 2;

/// The DSDT of `machine`: soft-off, then the AML of each device.
pub(super) fn dsdt(machine: &MachinePlan) -> Vec<u8> {
    let mut body = Vec::new();
    soft_off(&mut body);
    for device in &machine.devices {
        body.extend_from_slice(&device.aml);
    }
    table(b"DSDT", REVISION, &body)
}

/// `\_S5` (section 7.4.2.6): the soft-off value of the sleep control register.
fn soft_off(body: &mut Vec<u8>) {
    let sleep_types = Package::new(vec![&layout::ACPI_S5_SLEEP_TYPE, &ZERO, &ZERO, &ZERO]);
    Name::new("_S5_".into(), &sleep_types).to_aml_bytes(body);
}
