// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices on PCI.

use super::*;
use crate::config::HotplugSlots;
use crate::devices::virtio::pci;
use crate::layout::{MIB, PCI_ECAM, PCI_HOTPLUG, PCI_LOW};

/// Devices on PCI.
pub(super) struct Pci(pub Rig);

impl Pci {
    fn new(count: usize) -> Self {
        Pci::with_slots(count, 0)
    }

    pub fn with_slots(count: usize, slots: u8) -> Self {
        let spec = VmSpec {
            memory: 64 * MIB,
            hotplug: HotplugSlots(slots),
            ..VmSpec::new("vmlinux")
        };
        Pci(Rig::new(&[pci::plan(&spec, vec![echo(); count])]))
    }

    pub fn write(&self, at: u64, data: &[u8]) {
        let _ = self.0.bus.mmio_write(at, data);
    }

    pub fn read(&self, at: u64) -> u32 {
        let mut data = [0; 4];
        let _ = self.0.bus.mmio_read(at, &mut data);
        u32::from_le_bytes(data)
    }

    /// Moves the first device's BAR to the 32-bit window, and starts the device.
    fn start(&self) -> DriverRing {
        self.start_at(1)
    }

    /// The same for the device with this number.
    pub fn start_at(&self, device: u64) -> DriverRing {
        let config = PCI_ECAM + (device << 15);
        self.write(config + 0x10, &(PCI_LOW as u32).to_le_bytes());
        self.write(config + 0x14, &[0; 4]);
        self.write(config + 4, &[6, 0]);
        let ring = DriverRing::new(&self.0.memory, 0, 16);
        let (common, at) = (PCI_LOW + 0x2000, ring.state());
        self.write(common + 0x14, &[0]);
        self.write(common + 0x14, &[3]);
        self.write(common + 8, &1u32.to_le_bytes());
        self.write(common + 0xc, &1u32.to_le_bytes());
        self.write(common + 0x14, &[11]);
        self.write(common + 0x18, &16u16.to_le_bytes());
        for (offset, address) in [
            (0x20, at.descriptors),
            (0x28, at.available),
            (0x30, at.used),
        ] {
            self.write(common + offset, &address.to_le_bytes());
        }
        self.write(common + 0x1c, &1u16.to_le_bytes());
        self.write(common + 0x14, &[15]);
        ring
    }
}

#[test]
fn a_guest_finds_each_device_on_pci() {
    let pci = Pci::new(33);
    assert_eq!(pci.read(PCI_ECAM), 0x0d57_8086);
    for device in 1..32 {
        let id = pci.read(PCI_ECAM + (device << 15));
        assert_eq!(id, (0x1040 + 42) << 16 | 0x1af4);
    }
    // Two more as further functions of the first one.
    let further = |function: u64| pci.read(PCI_ECAM + (1 << 15) + (function << 12));
    assert_eq!(further(2), further(1));
    assert_eq!((further(1) as u16, further(3)), (0x1af4, u32::MAX));
}

#[test]
fn no_device_comes_or_goes() {
    let pci = Pci::new(1);
    let all = || [0, 4, 8, 12].map(|register| pci.read(PCI_HOTPLUG + register));
    assert_eq!(all(), [0; 4]);
    // The guest gives up all devices, unasked.
    pci.write(PCI_HOTPLUG + 8, &[0xff; 4]);
    assert_eq!(all(), [0; 4]);
    assert_eq!(pci.read(PCI_ECAM + (1 << 15)) as u16, 0x1af4);
    assert_eq!(pci.read(PCI_HOTPLUG + 16), u32::MAX, "no register");
    pci.write(PCI_HOTPLUG + 12, &[7, 0, 0, 0]);
    let (saved, other) = (pci.0.set.save().unwrap(), Pci::new(1));
    other.0.set.restore(&saved).unwrap();
    assert_eq!(other.read(PCI_HOTPLUG + 12), 7, "the segment");
}

#[test]
fn a_request_by_pci_is_answered_and_survives_a_save() {
    let first = Pci::new(2);
    let mut ring = first.start();
    send(&first.0.memory, &mut ring);
    first.write(PCI_LOW + 0x4000, &[0]);
    answer(&mut ring);
    first.0.set.pause().unwrap();
    let saved = first.0.set.save().unwrap();

    let second = Pci::new(2);
    second.0.set.restore(&saved).unwrap();
    assert_eq!(second.0.set.save().unwrap(), saved);
    copy(&first.0, &second.0);
    ring.move_to(&second.0.memory);
    second.0.set.resume();
    send(&second.0.memory, &mut ring);
    // The BAR is where the guest had moved it.
    second.write(PCI_LOW + 0x4000, &[0]);
    answer(&mut ring);
    let one = Pci::new(1);
    let error = one.0.set.restore(&saved).unwrap_err();
    assert!(error.to_string().contains("\"pci\""), "{error}");
}

#[test]
fn a_function_that_is_refused_leaves_the_root_as_it_was() {
    let first = Pci::new(2);
    first.start();
    first.0.set.pause().unwrap();
    let saved = first.0.set.save().unwrap();
    let second = Pci::new(2);
    let before = second.0.set.save().unwrap();
    let mut bad = saved.clone();
    let kind = bad[0].state.pointer_mut("/devices/1/device/device/kind");
    *kind.unwrap() = "block".into();
    second.0.set.restore(&bad).unwrap_err();
    assert_eq!(second.0.set.save().unwrap(), before);
    second.0.set.restore(&saved).unwrap();
    assert_eq!(second.0.set.save().unwrap(), saved);
}
