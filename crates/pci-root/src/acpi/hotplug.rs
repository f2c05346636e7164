// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Hotplug.

use acpi_tables::aml::{
    Acquire, And, Arg, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule,
    FieldUpdateRule, If, Method, MethodCall, Mutex, Name, Notify, ONE, OpRegion, OpRegionSpace,
    Path, Release, ResourceTemplate, Return, ShiftLeft, Store, ZERO,
};
use acpi_tables::{Aml, AmlSink};

use super::reserved::own;
use crate::hotplug::{HOTPLUG_SIZE, slots};

/// `Notify` values (section 5.6.6): check for a new device, request ejection.
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

/// The device `_SB_.PHPR` with the registers of [`HotplugRegisters`](crate::hotplug::HotplugRegisters). The slots are in
/// [`HostBridge::with_hotplug`](super::HostBridge::with_hotplug).
#[derive(Clone, Copy, Debug)]
pub struct HotplugController {
    address: u64,
}

impl HotplugController {
    /// A controller with registers at a guest-physical address, which must be a multiple of [`HOTPLUG_SIZE`]; lower
    /// bits are dropped.
    pub fn new(address: u64) -> Self {
        HotplugController {
            address: address & !(HOTPLUG_SIZE - 1),
        }
    }
}

/// The code for an event device's method: calls `_SB_.PHPR.PSCN` to handle slot events.
#[derive(Clone, Copy, Debug)]
pub struct ScanSlots;

impl Aml for ScanSlots {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        MethodCall::new(Path::new("\\_SB_.PHPR.PSCN"), vec![]).to_aml_bytes(sink);
    }
}

/// No time-out.
const FOREVER: u16 = 0xffff;

impl Aml for HotplugController {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (first, last) = (self.address, self.address | (HOTPLUG_SIZE - 1));
        let range = own(first, last);
        let lock = || Acquire::new("BLCK".into(), FOREVER);
        let unlock = || Release::new("BLCK".into());
        let (slot, segment) = (Arg(0), Arg(1));
        Device::new(
            "_SB_.PHPR".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0A06")),
                &Name::new("_UID".into(), &"PCI Hotplug Controller"),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&*range])),
                &Mutex::new("BLCK".into(), 0),
                &OpRegion::new(
                    "PCST".into(),
                    OpRegionSpace::SystemMemory,
                    &first,
                    &HOTPLUG_SIZE,
                ),
                &Field::new(
                    "PCST".into(),
                    FieldAccessType::DWord,
                    FieldLockRule::NoLock,
                    FieldUpdateRule::WriteAsZeroes,
                    [b"PCIU", b"PCID", b"B0EJ", b"PSEG"]
                        .map(|name| FieldEntry::Named(*name, 32))
                        .into(),
                ),
                &Method::new(
                    "PCEJ".into(),
                    2,
                    true,
                    vec![
                        &lock(),
                        &Store::new(&Path::new("PSEG"), &segment),
                        &ShiftLeft::new(&Path::new("B0EJ"), &ONE, &slot),
                        &unlock(),
                        &Return::new(&ZERO),
                    ],
                ),
                &Method::new(
                    "PSCN".into(),
                    0,
                    true,
                    vec![
                        &lock(),
                        &Store::new(&Path::new("PSEG"), &ZERO),
                        &MethodCall::new(Path::new("\\_SB_.PCI0.PCNT"), vec![]),
                        &unlock(),
                    ],
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The host bridge's part: its slots, and the method that notifies them as the registers say.
pub(super) struct Slots(pub u8);

/// A slot's name, `S001` to `S031`.
fn name(slot: u8) -> String {
    format!("S{slot:03}")
}

impl Aml for Slots {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        for slot in slots(self.0) {
            let eject = MethodCall::new(Path::new("\\_SB_.PHPR.PCEJ"), vec![&slot, &ZERO]);
            Device::new(
                Path::new(&name(slot)),
                vec![
                    &Name::new("_SUN".into(), &slot),
                    &Name::new("_ADR".into(), &(u32::from(slot) << 16)),
                    &Method::new("_EJ0".into(), 1, true, vec![&eject]),
                ],
            )
            .to_aml_bytes(sink);
        }
        let tell = |register: &str, what: &dyn Aml| {
            let slots = Path::new(&format!("\\_SB_.PHPR.{register}"));
            let mut call = Vec::new();
            MethodCall::new(Path::new("DVNT"), vec![&slots, what]).to_aml_bytes(&mut call);
            Code(call)
        };
        let (news, what) = (Arg(0), Arg(1));
        let mut notices = Vec::new();
        for slot in slots(self.0) {
            let (bit, device) = (1u32 << slot, Path::new(&name(slot)));
            let has_news = And::new(&ZERO, &news, &bit);
            let notify = Notify::new(&device, &what);
            If::new(&has_news, vec![&notify]).to_aml_bytes(&mut notices);
        }
        Method::new("DVNT".into(), 2, true, vec![&Code(notices)]).to_aml_bytes(sink);
        let (up, down) = (tell("PCIU", &DEVICE_CHECK), tell("PCID", &EJECT_REQUEST));
        Method::new("PCNT".into(), 0, true, vec![&up, &down]).to_aml_bytes(sink);
    }
}

/// Bytes of AML code.
struct Code(Vec<u8>);

impl Aml for Code {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}
