// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Slots for devices that come and go while the guest runs.

use std::ops::Range;

use pci_root::hotplug;
use serde::{Deserializer, Serialize};

use super::words::{self, Number, Word, WordError};
use super::{DiskSpec, Error, NetSpec, VirtioSpec, VmSpec};

/// How many slots a machine has for devices that come and go. A slot is a PCI device number, which `lspci` shows: the last
/// ones of the bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct HotplugSlots(pub u8);

impl HotplugSlots {
    /// The most slots. The other device numbers have room for all devices that a machine can start with.
    pub const MAX: u8 = 16;

    /// Their numbers.
    pub fn numbers(self) -> Range<u8> {
        hotplug::slots(self.0)
    }
}

impl Word for HotplugSlots {
    const EXPECTED: &'static str = "a number of slots such as 4";
    const NUMBERS: bool = true;

    fn from_word(word: &str) -> Result<Self, WordError> {
        let Number(number) = Number::from_word(word)?;
        // Any larger number is as wrong.
        Ok(HotplugSlots(u8::try_from(number).unwrap_or(u8::MAX)))
    }
}

/// Deserializes the slot of a device that names one. Its range is checked later; no slot is as large as the largest.
pub(super) fn slot<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u8>, D::Error> {
    let Number(slot) = words::word(from)?;
    Ok(Some(u8::try_from(slot).unwrap_or(u8::MAX)))
}

/// A device among others of its kind, whatever others come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceAt {
    /// One of those without a slot, by its number from 0 on.
    Number(usize),
    /// The one in this slot.
    Slot(u8),
}

/// A device that may have a slot.
pub trait MaySlot {
    /// Its slot.
    fn slot(&self) -> Option<u8>;
}

impl MaySlot for DiskSpec {
    fn slot(&self) -> Option<u8> {
        self.slot
    }
}

impl MaySlot for NetSpec {
    fn slot(&self) -> Option<u8> {
        self.slot
    }
}

impl DeviceAt {
    /// The device with this index in a list, if there is one.
    pub fn of(devices: &[impl MaySlot], index: usize) -> Option<Self> {
        Some(match devices.get(index)?.slot() {
            Some(slot) => DeviceAt::Slot(slot),
            None => {
                let earlier = devices[..index].iter();
                DeviceAt::Number(earlier.filter(|device| device.slot().is_none()).count())
            }
        })
    }

    /// Its index in a list.
    pub fn index(self, devices: &[impl MaySlot]) -> Option<usize> {
        (0..devices.len()).find(|index| DeviceAt::of(devices, *index) == Some(self))
    }
}

impl VmSpec {
    /// The slots that its devices are in.
    pub(crate) fn taken_slots(&self) -> impl Iterator<Item = u8> {
        let disks = self.disk.iter().filter_map(|disk| disk.slot);
        disks.chain(self.net.iter().filter_map(|net| net.slot))
    }

    /// A free slot, the first one.
    pub(crate) fn free_slot(&self) -> Option<u8> {
        let mut slots = self.hotplug.numbers();
        slots.find(|slot| self.taken_slots().all(|taken| taken != *slot))
    }

    /// Checks disks and networks with their slots, as far as that needs no host.
    pub(crate) fn check_devices(&self) -> Result<(), Error> {
        self.check_disks()?;
        self.check_nets()?;
        self.check_slots()
    }

    /// Checks that each device with a slot has one of the machine's, for itself.
    pub(crate) fn check_slots(&self) -> Result<(), Error> {
        let slots = self.hotplug.0;
        if slots > HotplugSlots::MAX {
            return Err(Error::ManySlots { slots });
        }
        if slots > 0 && self.virtio != VirtioSpec::Pci {
            return Err(Error::SlotsNeedPci);
        }
        let mut taken = Vec::new();
        for slot in self.taken_slots() {
            if !self.hotplug.numbers().contains(&slot) {
                return Err(Error::NoSlot { slot, slots });
            }
            if taken.contains(&slot) {
                return Err(Error::SameSlot { slot });
            }
            taken.push(slot);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LinkSpec;

    fn disk(slot: Option<u8>) -> DiskSpec {
        DiskSpec {
            slot,
            ..DiskSpec::new("disk")
        }
    }

    #[test]
    fn a_device_is_found_whatever_comes_and_goes() {
        let mut disks = vec![disk(None), disk(Some(31)), disk(None), disk(Some(30))];
        let at = [0, 1, 2, 3].map(|index| DeviceAt::of(&disks, index).unwrap());
        use DeviceAt::{Number, Slot};
        assert_eq!(at, [Number(0), Slot(31), Number(1), Slot(30)]);
        assert_eq!(at.map(|at| at.index(&disks)), [0, 1, 2, 3].map(Some));
        disks.remove(1);
        assert_eq!(
            at.map(|at| at.index(&disks)),
            [Some(0), None, Some(1), Some(2)]
        );
        assert_eq!(DeviceAt::of(&disks, 3), None);
    }

    #[test]
    fn slots_are_of_the_machine_and_taken_once() {
        let mut spec = VmSpec::new("vmlinux");
        (spec.hotplug, spec.disk) = (HotplugSlots(2), vec![disk(None), disk(Some(31))]);
        spec.check_slots().unwrap();
        assert_eq!(spec.free_slot(), Some(30));
        let mut net = NetSpec::new(LinkSpec::Fd(3));
        net.slot = Some(31);
        spec.net = vec![net.clone()];
        assert_eq!(spec.check_slots(), Err(Error::SameSlot { slot: 31 }));
        spec.net[0].slot = Some(30);
        spec.check_slots().unwrap();
        assert_eq!(spec.free_slot(), None);
        spec.net[0].slot = Some(29);
        let error = Error::NoSlot { slot: 29, slots: 2 };
        assert_eq!(spec.check_slots(), Err(error));
        spec.virtio = VirtioSpec::Mmio;
        assert_eq!(spec.check_slots(), Err(Error::SlotsNeedPci));
        spec.hotplug = HotplugSlots(17);
        assert_eq!(spec.check_slots(), Err(Error::ManySlots { slots: 17 }));
    }

    #[test]
    fn all_devices_of_a_start_have_room_beside_the_slots() {
        let others = usize::from(HotplugSlots(HotplugSlots::MAX).numbers().start - 1) * 8;
        // Random numbers, a seed, sockets, and some more to come.
        assert!(others >= VmSpec::MAX_DISKS + VmSpec::MAX_NETS + 16);
    }
}
