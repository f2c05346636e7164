// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host bridge.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, BufferData, Device, EISAName, Equal, If, Method,
    Name, ResourceTemplate, Return, Uuid, ZERO,
};
use acpi_tables::{Aml, AmlSink};

use super::hotplug::Slots;
use crate::window::{Span, Windows};

/// The host bridge's `_DSM` (firmware specification, section 4.6).
const DSM: &str = "e5c937d0-3553-4d7a-9117-ea4d19c3434d";
/// Function 5 of it: whether the operating system may reassign resources (section 4.6.5).
const KEEP_BOOT_CONFIGURATION: u8 = 5;

/// The device `_SB_.PCI0`, a PCI Express root. It has bus numbers and windows (`_CRS`, section 6.2.2) and ECAM
/// (`_CBA`), and tells the operating system to keep the BARs' addresses (`_DSM`). There is no `_PRT`: no function has
/// INTx.
#[derive(Clone, Copy, Debug)]
pub struct HostBridge {
    windows: Windows,
    slots: u8,
}

impl HostBridge {
    /// The bridge of a root with these windows, which must pass [`Windows::check`].
    pub fn new(windows: &Windows) -> Self {
        HostBridge {
            windows: *windows,
            slots: 0,
        }
    }

    /// The same with `count` [slots](crate::hotplug::slots) for hotplug. They need a
    /// [`HotplugController`](super::HotplugController). A guest has a device for each slot, also while it is empty.
    #[must_use]
    pub fn with_hotplug(self, count: u8) -> Self {
        HostBridge {
            slots: count,
            ..self
        }
    }
}

/// A window of 64-bit addresses, if it isn't empty.
fn memory(span: Span) -> Option<AddressSpace<u64>> {
    let cacheable = AddressSpaceCacheable::NotCacheable;
    let last = span.last()?;
    Some(AddressSpace::new_memory(
        cacheable, true, span.base, last, None,
    ))
}

impl Aml for HostBridge {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let Windows {
            ecam, low, high, ..
        } = self.windows;
        let buses = AddressSpace::new_bus_number(0u16, self.windows.last_bus().into());
        let windows: Vec<_> = [low, high].into_iter().filter_map(memory).collect();
        let mut resources: Vec<&dyn Aml> = vec![&buses];
        resources.extend(windows.iter().map(|window| window as &dyn Aml));
        let (hid, cid) = (EISAName::new("PNP0A08"), EISAName::new("PNP0A03"));
        let [hid, cid] =
            [("_HID", &hid), ("_CID", &cid)].map(|(name, id)| Name::new(name.into(), id));
        let [segment, uid, bus] =
            ["_SEG", "_UID", "_BBN"].map(|name| Name::new(name.into(), &ZERO));
        let ecam = Name::new("_CBA".into(), &ecam);
        let resources = Name::new("_CRS".into(), &ResourceTemplate::new(resources));
        let mut body: Vec<&dyn Aml> =
            vec![&hid, &cid, &segment, &uid, &bus, &ecam, &resources, &Dsm];
        let slots = Slots(self.slots);
        if self.slots > 0 {
            body.push(&slots);
        }
        Device::new("_SB_.PCI0".into(), body).to_aml_bytes(sink);
    }
}

/// `_DSM` (section 9.1.1).
struct Dsm;

impl Aml for Dsm {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (uuid, function) = (Arg(0), Arg(2));
        // Functions 0 and 5 exist.
        let functions = BufferData::new(vec![1 | 1 << KEEP_BOOT_CONFIGURATION]);
        Method::new(
            "_DSM".into(),
            4,
            false,
            vec![
                &If::new(
                    &Equal::new(&uuid, &Uuid::new(DSM)),
                    vec![
                        &If::new(
                            &Equal::new(&function, &ZERO),
                            vec![&Return::new(&functions)],
                        ),
                        &If::new(
                            &Equal::new(&function, &KEEP_BOOT_CONFIGURATION),
                            vec![&Return::new(&ZERO)],
                        ),
                    ],
                ),
                &Return::new(&BufferData::new(vec![0])),
            ],
        )
        .to_aml_bytes(sink);
    }
}
