// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices in the plan of a machine.

use super::*;
use crate::config::{DiskSpec, RngSpec, VirtioSpec};
use crate::irq::NoPin;
use crate::plan::MachinePlan;

fn entropy() -> VmSpec {
    VmSpec {
        rng: Some(RngSpec::default()),
        virtio: VirtioSpec::Mmio,
        ..VmSpec::new("vmlinux")
    }
}

#[test]
fn the_next_device_without_a_pin_is_refused_by_the_option_that_helps() {
    let plan = |count, announced| mmio::plan(vec![echo(); count], &mut Pins::new(), announced);
    let slots = plan(18, Announced::InDsdt).unwrap();
    let mut bases: Vec<_> = slots.iter().map(|slot| slot.windows[0].base).collect();
    bases.dedup();
    assert_eq!(bases.len(), 18);
    let refusal = plan(19, Announced::InDsdt).unwrap_err();
    assert_eq!(refusal, NoPin);
    assert!(refusal.to_string().contains("--virtio pci"));
    plan(10, Announced::OnCmdline).unwrap();
    plan(11, Announced::OnCmdline).unwrap_err();
}

#[test]
fn a_kernel_learns_of_devices_in_one_way_or_both() {
    let plan = |virtio| {
        MachinePlan::new(&VmSpec {
            virtio,
            ..entropy()
        })
        .unwrap()
    };
    let dsdt = |plan: &MachinePlan| {
        let aml: Vec<u8> = plan
            .devices
            .iter()
            .flat_map(|slot| slot.aml.clone())
            .collect();
        aml.windows(8).any(|bytes| bytes == b"LNRO0005")
    };
    let (by_dsdt, by_line) = (plan(VirtioSpec::Mmio), plan(VirtioSpec::MmioCmdline));
    assert!(dsdt(&by_dsdt) && !dsdt(&by_line));
    assert_eq!(by_dsdt.cmdline("quiet"), "quiet");
    assert_eq!(
        by_line.cmdline("quiet"),
        "quiet virtio_mmio.device=0x1000@0xd0000000:1"
    );
    let by_both = plan(VirtioSpec::MmioBoth);
    assert!(dsdt(&by_both));
    assert_eq!(by_both.cmdline("quiet"), by_line.cmdline("quiet"));
    let by_pci = plan(VirtioSpec::Pci);
    let root = by_pci.devices.iter().find(|slot| slot.id == "pci").unwrap();
    assert_eq!(
        (root.gsi, root.pci.is_some(), root.windows.len()),
        (None, true, 4)
    );
}

#[test]
fn a_seed_comes_after_the_disks() {
    let spec = VmSpec {
        disk: vec![DiskSpec::new("a"), DiskSpec::new("b")],
        cloud_init: Some("seed".into()),
        ..VmSpec::new("vmlinux")
    };
    let ids = crate::devices::virtio::block::models(&spec)
        .into_iter()
        .map(|model| model.id);
    assert_eq!(ids.collect::<Vec<_>>(), ["disk0", "disk1", "cloud-init"]);
}

#[test]
fn a_machine_without_virtio_devices_has_no_root() {
    let without = VmSpec {
        rng: None,
        ..entropy()
    };
    for virtio in [VirtioSpec::Pci, VirtioSpec::Mmio, VirtioSpec::MmioCmdline] {
        let plan = MachinePlan::new(&VmSpec {
            virtio,
            ..without.clone()
        })
        .unwrap();
        let ids: Vec<_> = plan.devices.iter().map(|slot| slot.id.as_ref()).collect();
        assert!(!ids.contains(&"pci") && !ids.contains(&"rng"), "{ids:?}");
    }
}
