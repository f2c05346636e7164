// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Functions that come and go while the guest runs.

use std::sync::Arc;

use super::PciRoot;
use crate::address::Address;
use crate::bar::BARS;
use crate::function::Function;
use crate::hotplug;

/// Why a function can't be plugged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlugError {
    /// The root has no such slot.
    #[error(
        "PCI device number {slot} is no slot for hotplug: give the root more slots, or choose another one"
    )]
    NoSlot {
        /// The device number.
        slot: u8,
    },
    /// There is a function already.
    #[error("the slot with the PCI device number {slot} has a device: choose another one")]
    Taken {
        /// The device number.
        slot: u8,
    },
}

impl PciRoot {
    /// Adds a function in a free [slot](super::RootBuilder::hotplug) and returns its address. Its BARs have no addresses
    /// yet, and are disabled: the guest's operating system gives it some. The guest doesn't notice it by itself; see
    /// [`HotplugRegisters::announce_up`](crate::hotplug::HotplugRegisters::announce_up).
    ///
    /// # Errors
    /// There is no such slot, or it is taken.
    pub fn plug(&self, slot: u8, mut function: Function) -> Result<Address, PlugError> {
        let address = self.slot(slot).ok_or(PlugError::NoSlot { slot })?;
        function.set_windows(self.windows);
        let mut present = self.write_present();
        let Err(at) = present.index(address) else {
            return Err(PlugError::Taken { slot });
        };
        present.functions.insert(at, (address, Arc::new(function)));
        // So that a guest's moves allocate nothing.
        let bars = present.functions.len() * usize::from(BARS);
        present.decoder.reserve(bars);
        Ok(address)
    }

    /// Removes the function in a slot, and returns it. Accesses of other threads that have found it already still reach
    /// it. `None` if there is no such slot, or it is empty.
    pub fn unplug(&self, slot: u8) -> Option<Arc<Function>> {
        let address = self.slot(slot)?;
        let mut present = self.write_present();
        let at = present.index(address).ok()?;
        present.decoder.remove(address);
        Some(present.functions.remove(at).1)
    }

    /// The address of a slot.
    fn slot(&self, slot: u8) -> Option<Address> {
        let is_slot = hotplug::slots(self.slots).contains(&slot);
        Address::new(0, slot, 0).filter(|_| is_slot)
    }
}
