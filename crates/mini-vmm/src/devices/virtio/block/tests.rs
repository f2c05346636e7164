// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fs::File;
use std::sync::Arc;

use tempfile::TempDir;
use vcpu_loop::bus::{Bus, BusBuilder};
use virtio_transport::testing;

use super::*;
use crate::config::{DiskSpec, VirtioSpec};
use crate::devices::{Backends, Connections, DeviceSet};
use crate::irq::Irqs;
use crate::layout::{PCI_ECAM, VIRTIO_MMIO};
use crate::outcome::OutcomeLatch;
use crate::plan::MachinePlan;

/// A machine with so many disks. Each has one sector more than the one before.
fn machine(count: u64, virtio: VirtioSpec) -> (VmSpec, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let disks = (0..count).map(|number| {
        let path = folder.path().join(number.to_string());
        let file = File::create(&path).unwrap();
        file.set_len(512 * (number + 1)).unwrap();
        DiskSpec::new(path)
    });
    let spec = VmSpec {
        disk: disks.collect(),
        virtio,
        ..VmSpec::new("vmlinux")
    };
    (spec, folder)
}

fn build(spec: &VmSpec) -> (DeviceSet, Arc<Bus>) {
    spec.validate().unwrap();
    let mut bus = BusBuilder::new();
    let connections = Connections {
        spec,
        output: None,
        backends: &Backends::open(spec, &|| true).unwrap(),
        outcome: &OutcomeLatch::new().unwrap(),
        irqs: &Irqs::unconnected(),
        memory: &testing::memory(1 << 20),
    };
    let plan = MachinePlan::new(spec).unwrap();
    let virtio = plan.devices.into_iter();
    let virtio = virtio.filter(|slot| slot.id == "pci" || slot.id.starts_with("disk"));
    let slots: Vec<_> = virtio.collect();
    let set = DeviceSet::build(&slots, &connections, &mut bus).unwrap();
    (set, bus.build())
}

fn read(bus: &Bus, at: u64) -> u32 {
    let mut data = [0; 4];
    let _ = bus.mmio_read(at, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn a_bus_has_all_the_disks_that_a_machine_may_have() {
    let count = VmSpec::MAX_DISKS as u64;
    let (spec, _folder) = machine(count, VirtioSpec::Pci);
    let (_set, bus) = build(&spec);
    let functions = (8..256).map(|function| read(&bus, PCI_ECAM + (function << 12)));
    let disks = functions.filter(|ids| *ids == 0x1042_1af4).count();
    assert_eq!(disks as u64, count);
}

#[test]
fn by_mmio_disks_are_in_order_and_the_next_one_is_refused() {
    let (spec, _folder) = machine(18, VirtioSpec::Mmio);
    let (set, bus) = build(&spec);
    for number in 0..18 {
        let base = VIRTIO_MMIO + (number << 12);
        let (id, sectors) = (read(&bus, base + 8), read(&bus, base + 0x100));
        assert_eq!((id, sectors), (2, number as u32 + 1));
    }
    let saved = set.save().unwrap();
    let ids: Vec<_> = saved.iter().map(|saved| saved.id.as_str()).collect();
    assert_eq!((ids[0], ids[17], ids.len()), ("disk0", "disk17", 18));

    let (spec, _folder) = machine(19, VirtioSpec::Mmio);
    let refusal = MachinePlan::new(&spec).unwrap_err().to_string();
    assert!(refusal.contains("use --virtio pci"), "{refusal}");
}
