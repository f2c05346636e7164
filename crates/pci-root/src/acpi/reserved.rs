// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Address ranges that operating systems must leave alone.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, Memory32Fixed, Name, ResourceTemplate,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::{Aml, AmlSink};

use crate::hotplug::HOTPLUG_SIZE;
use crate::window::{Window, Windows};

/// Addresses that a device uses itself. The descriptor for ranges below 4 GiB expresses that. Other ranges need the
/// descriptor for windows that a device passes on. Linux reserves both.
pub(super) fn own(first: u64, last: u64) -> Box<dyn Aml> {
    match (u32::try_from(first), u32::try_from(last - first + 1)) {
        (Ok(base), Ok(size)) => Box::new(Memory32Fixed::new(true, base, size)),
        _ => {
            let cacheable = AddressSpaceCacheable::NotCacheable;
            Box::new(AddressSpace::new_memory(cacheable, true, first, last, None))
        }
    }
}

/// The device `_SB_.ECAM`, a motherboard resource. It keeps the operating system from using ECAM's addresses for
/// something else (firmware specification, section 4.1.2). Linux checks the MCFG against it.
#[derive(Clone, Copy, Debug)]
pub struct EcamReservation {
    first: u64,
    last: u64,
    hotplug: Option<u64>,
}

impl EcamReservation {
    /// The reservation of a root with these windows.
    pub fn new(windows: &Windows) -> Self {
        let span = windows.span(Window::Ecam);
        EcamReservation {
            first: span.base,
            last: span.last().unwrap_or(span.base),
            hotplug: None,
        }
    }

    /// The same with the registers of a [`HotplugController`](super::HotplugController) at a guest-physical address, for
    /// a root whose DSDT doesn't have that controller yet. So nothing else takes the address before.
    #[must_use]
    pub fn with_hotplug(self, address: u64) -> Self {
        EcamReservation {
            hotplug: Some(address),
            ..self
        }
    }
}

impl Aml for EcamReservation {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let hotplug = self.hotplug;
        let hotplug = hotplug.map(|first| own(first, first.saturating_add(HOTPLUG_SIZE - 1)));
        let ranges: Vec<_> = [own(self.first, self.last)]
            .into_iter()
            .chain(hotplug)
            .collect();
        let ranges = ranges.iter().map(|range| &**range).collect();
        Device::new(
            "_SB_.ECAM".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
                &Name::new("_UID".into(), &"ECAM"),
                &Name::new("_CRS".into(), &ResourceTemplate::new(ranges)),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The MCFG (firmware specification, section 4.1.2): ECAM of segment 0.
pub fn mcfg(
    windows: &Windows,
    oem_id: [u8; 6],
    oem_table_id: [u8; 8],
    oem_revision: u32,
) -> Vec<u8> {
    let mut table = MCFG::new(oem_id, oem_table_id, oem_revision);
    table.add_ecam(windows.ecam, 0, 0, windows.last_bus());
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}
