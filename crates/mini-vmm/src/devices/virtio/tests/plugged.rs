// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that come and go while the guest runs, and guests that don't play along.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::hooked::Hooks;
use super::pci::Pci;
use super::*;
use crate::config::{DiskSpec, HotplugSlots};
use crate::devices::SlotError;
use crate::layout::{PCI_ECAM, PCI_HOTPLUG, PCI_LOW};

const UP: u64 = PCI_HOTPLUG;
const DOWN: u64 = PCI_HOTPLUG + 4;
const EJECT: u64 = PCI_HOTPLUG + 8;

/// Adds a device in a slot, without a description.
fn plug(pci: &Pci, model: Model, slot: u8) -> Result<(), SlotError> {
    let spec = VmSpec::new("vmlinux");
    let new = pci
        .0
        .set
        .create(&spec, &Backends::default(), |slots, parts| {
            slots.plug(&model.in_slot(Some(slot)), parts)
        });
    new.map(drop)
}

/// What the guest reads as the IDs of the device in a slot.
fn ids(pci: &Pci, slot: u8) -> u32 {
    pci.read(PCI_ECAM + (u64::from(slot) << 15))
}

/// The registers as they are without a device.
const NOBODY: u32 = u32::MAX;
const ECHO: u32 = (0x1040 + 42) << 16 | 0x1af4;

fn eject(pci: &Pci, slots: u32) {
    pci.write(EJECT, &slots.to_le_bytes());
}

/// A device goes that the guest was asked for, and nothing else.
#[test]
fn a_guest_gives_up_what_it_was_asked_for() {
    let mut pci = Pci::with_slots(1, 2);
    let waker = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    pci.0.set.wake_by(|| Arc::clone(&waker));
    plug(&pci, echo(), 31).unwrap();
    plug(&pci, echo(), 30).unwrap();
    assert_eq!([UP, UP].map(|at| pci.read(at)), [3 << 30, 0]);
    assert!(plug(&pci, echo(), 30).is_err() && plug(&pci, echo(), 29).is_err());
    eject(&pci, u32::MAX);
    assert_eq!([1, 30, 31].map(|slot| ids(&pci, slot)), [ECHO; 3]);
    assert!(waker.read().is_err());

    pci.0.set.ask_for(31);
    assert_eq!([DOWN, DOWN].map(|at| pci.read(at)), [1 << 31, 0]);
    assert!(!pci.0.set.is_given_up(31));
    eject(&pci, u32::MAX);
    assert_eq!(
        [1, 30, 31].map(|slot| ids(&pci, slot)),
        [ECHO, ECHO, NOBODY]
    );
    assert_eq!(waker.read().unwrap(), 1);
    assert!(pci.0.set.is_given_up(31) && !pci.0.set.is_given_up(30));
    assert!(!pci.0.set.withdraw(31), "it is too late for that");
    let spec = VmSpec::new("vmlinux");
    pci.0.set.unplug(31, &spec);
    assert_eq!(pci.read(UP), 0, "the guest knows it");

    // A request that was withdrawn allows nothing.
    pci.0.set.ask_for(30);
    assert!(pci.0.set.withdraw(30));
    eject(&pci, u32::MAX);
    assert_eq!(ids(&pci, 30), ECHO);
    // By force it goes without the guest, which is told to look.
    pci.0.set.unplug(30, &spec);
    assert_eq!((ids(&pci, 30), pci.read(UP)), (NOBODY, 1 << 30));
    for slot in [30, 31] {
        plug(&pci, echo(), slot).unwrap();
        assert_eq!(ids(&pci, slot), ECHO);
    }
    // A machine without slots takes nothing.
    let none = Pci::with_slots(1, 0);
    assert!(matches!(plug(&none, echo(), 31), Err(SlotError::None)));
}

/// Devices are added and removed while another one runs, and so does the one that is added.
#[test]
fn devices_run_that_come_while_others_do() {
    let mut pci = Pci::with_slots(1, 1);
    for round in 0..3 {
        plug(&pci, echo(), 31).unwrap();
        let mut ring = pci.start_at(31);
        send(&pci.0.memory, &mut ring);
        pci.write(PCI_LOW + 0x4000, &[0]);
        answer(&mut ring);
        assert!(pci.0.has_thread(), "round {round}");
        if round == 1 {
            pci.0.set.pause().unwrap();
        }
        pci.0.set.unplug(31, &VmSpec::new("vmlinux"));
        pci.0.set.resume();
        send(&pci.0.memory, &mut ring);
        pci.write(PCI_LOW + 0x4000, &[0]);
        assert_eq!(pci.read(PCI_LOW + 0x2000), NOBODY);
    }
}

/// What comes while the machine is paused is saved with it, and starts when it goes on.
#[test]
fn a_device_that_comes_in_a_pause_is_paused() {
    let pci = Pci::with_slots(2, 2);
    plug(&pci, echo(), 30).unwrap();
    let mut ring = pci.start_at(30);
    pci.0.set.pause().unwrap();
    plug(&pci, echo(), 31).unwrap();
    pci.0.set.ask_for(30);
    let saved = pci.0.set.save().unwrap();

    let other = Pci::with_slots(2, 2);
    let error = other.0.set.restore(&saved).unwrap_err();
    assert!(error.to_string().contains("\"pci\""), "{error}");
    // In another order, but in the same slots.
    plug(&other, echo(), 31).unwrap();
    plug(&other, echo(), 30).unwrap();
    other.0.set.restore(&saved).unwrap();
    copy(&pci.0, &other.0);
    ring.move_to(&other.0.memory);
    other.0.set.resume();
    send(&other.0.memory, &mut ring);
    other.write(PCI_LOW + 0x4000, &[0]);
    answer(&mut ring);
    // Nobody waits any more for what the guest was asked.
    assert_eq!((other.read(UP), other.read(DOWN)), (3 << 30, 0));
    eject(&other, u32::MAX);
    assert_eq!(ids(&other, 30), ECHO);
}

/// Two disks in slots of a machine with one more, and a directory with their images.
fn with_disks() -> (VmSpec, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let disk = |name: &str, slot| {
        let path: PathBuf = dir.path().join(name);
        File::create(&path).unwrap().set_len(4096).unwrap();
        DiskSpec {
            slot,
            ..DiskSpec::new(path)
        }
    };
    let disk = vec![disk("a", None), disk("b", Some(31)), disk("c", Some(30))];
    let spec = VmSpec {
        disk,
        hotplug: HotplugSlots(2),
        ..VmSpec::new("vmlinux")
    };
    spec.validate().unwrap();
    (spec, dir)
}

#[test]
fn a_disk_that_goes_closes_its_image_and_keeps_the_names_of_others() {
    let (mut spec, _dir) = with_disks();
    let mut backends = Backends::open(&spec, &|| true).unwrap();
    let models = super::super::models(&spec).collect();
    let mut bus = BusBuilder::new();
    let connections = Connections {
        spec: &spec,
        output: None,
        backends: &backends,
        outcome: &OutcomeLatch::new().unwrap(),
        irqs: &Irqs::unconnected(),
        memory: &testing::memory(MEMORY),
    };
    let root = super::super::pci::plan(&spec, models);
    let mut set = DeviceSet::build(&[root], &connections, &mut bus).unwrap();
    let names = |set: &DeviceSet| {
        let counters = set.offers().disk_counters.iter();
        counters.map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&set), ["disk0", "disk-slot31", "disk-slot30"]);

    let gone = spec.disk[1].clone();
    for round in 0..3 {
        Backends::open(&spec, &|| true).expect_err("the images are in use");
        set.unplug(31, &spec);
        backends.remove(31, &mut spec);
        assert_eq!(names(&set), ["disk0", "disk-slot30"], "round {round}");
        assert_eq!(set.offers().disks.len(), 2);
        // Its image is free again, and comes back as the last one.
        let image = virtio_models::block::open(&gone.block()).unwrap();
        let device = crate::devices::NewDevice::Disk(gone.clone(), image);
        backends.add(&device, &mut spec);
        drop(device);
        set.plug(31, &spec, &backends).unwrap();
        assert_eq!(names(&set), ["disk0", "disk-slot30", "disk-slot31"]);
    }
}

#[test]
fn a_device_that_does_not_stop_leaves_the_guest_and_keeps_its_thread() {
    let gate = Arc::new(std::sync::Mutex::new(()));
    let behind = Arc::clone(&gate);
    let (begun, stuck) = std::sync::mpsc::channel();
    let hooks = Hooks::process(move || {
        let _ = begun.send(());
        drop(crate::sync::lock(&behind));
    });
    let pci = Pci::with_slots(1, 1);
    plug(&pci, hooks.model(), 31).unwrap();
    let shut = crate::sync::lock(&gate);
    let mut ring = pci.start_at(31);
    send(&pci.0.memory, &mut ring);
    pci.write(PCI_LOW + 0x4000, &[0]);
    stuck.recv().unwrap();
    let slots = pci.0.set.offers().slots.clone().unwrap();
    assert!(!slots.remove(31, Instant::now() - Duration::from_secs(60)));
    assert_eq!(ids(&pci, 31), NOBODY);
    drop(shut);
    plug(&pci, echo(), 31).unwrap();
    assert_eq!(ids(&pci, 31), ECHO);
}

/// What a guest and its host do, in any order.
#[derive(Clone, Debug)]
enum Act {
    /// The guest writes at a place of the registers.
    Write(u64, Vec<u8>),
    Read(u64, usize),
    /// The host.
    Plug(u8),
    Ask(u8),
    Withdraw(u8),
    Unplug(u8),
}

fn act() -> impl Strategy<Value = Act> {
    let slot = 28..32u8;
    prop_oneof![
        (0..20u64, prop::collection::vec(any::<u8>(), 1..=8))
            .prop_map(|(at, data)| Act::Write(at, data)),
        any::<[u8; 4]>().prop_map(|slots| Act::Write(8, slots.to_vec())),
        (0..20u64, 1..=8usize).prop_map(|(at, len)| Act::Read(at, len)),
        slot.clone().prop_map(Act::Plug),
        slot.clone().prop_map(Act::Ask),
        slot.clone().prop_map(Act::Withdraw),
        slot.prop_map(Act::Unplug),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A slot has a device from when the host adds it until the host removes it, or the guest was asked for it and gives it
    /// up.
    #[test]
    fn a_slot_is_as_its_host_wants_it(acts in prop::collection::vec(act(), 1..60)) {
        let mut pci = Pci::with_slots(1, 3);
        let (mut there, mut asked, mut segment) = (0u32, 0u32, 0u32);
        let spec = VmSpec::new("vmlinux");
        for act in acts {
            match act {
                Act::Write(at, data) => {
                    pci.write(PCI_HOTPLUG + at, &data);
                    if let Ok(value) = data.try_into().map(u32::from_le_bytes) {
                        match at {
                            8 if segment == 0 => {
                                there &= !(asked & value);
                                asked &= !value;
                            }
                            12 => segment = value,
                            _ => {}
                        }
                    }
                }
                Act::Read(at, len) => {
                    let mut data = vec![0; len];
                    let _ = pci.0.bus.mmio_read(PCI_HOTPLUG + at, &mut data);
                }
                Act::Plug(slot) => {
                    let free = slot >= 29 && there & 1 << slot == 0;
                    // The host removes the rest of what is gone before it fills the slot.
                    if free {
                        pci.0.set.unplug(slot, &spec);
                        asked &= !(1 << slot);
                        there |= 1 << slot;
                    }
                    prop_assert_eq!(plug(&pci, echo(), slot).is_ok(), free);
                }
                Act::Ask(slot) if there & 1 << slot != 0 => {
                    pci.0.set.ask_for(slot);
                    asked |= 1 << slot;
                }
                Act::Ask(_) => {}
                Act::Withdraw(slot) => {
                    prop_assert_eq!(pci.0.set.withdraw(slot), asked & 1 << slot != 0);
                    asked &= !(1 << slot);
                }
                Act::Unplug(slot) => {
                    pci.0.set.unplug(slot, &spec);
                    (there, asked) = (there & !(1 << slot), asked & !(1 << slot));
                }
            }
            for slot in 28..32u8 {
                let expected = if there & 1 << slot == 0 { NOBODY } else { ECHO };
                prop_assert_eq!(ids(&pci, slot), expected);
            }
            prop_assert_eq!(ids(&pci, 1), ECHO);
        }
    }
}
