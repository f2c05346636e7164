// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A root under construction.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use super::PciRoot;
use super::assign::assign;
use crate::address::Address;
use crate::config::{Class, Ids};
use crate::function::{Function, FunctionBuilder, FunctionError, NoDevice};
use crate::hotplug;
use crate::window::{Window, WindowError, Windows};

/// The host bridge's IDs are Cloud Hypervisor's, which its firmware looks for.
const HOST_BRIDGE: Ids = Ids::new(0x8086, 0x0d57, Class::HOST_BRIDGE);

/// How many functions [`RootBuilder::push`] can place: 8 of each device except for the host bridge.
const MAX_PUSHED: usize = 31 * 8;

/// Why a root can't be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RootError {
    /// A window is invalid.
    #[error(transparent)]
    Windows(#[from] WindowError),
    /// The host bridge can't be built.
    #[error("the host bridge can't be built: {0}")]
    HostBridge(#[from] FunctionError),
    /// Another function has this address.
    #[error("two functions have the PCI address {address}: move one of them")]
    Taken {
        /// The address.
        address: Address,
    },
    /// The bus doesn't exist.
    #[error(
        "PCI address {address} is on a bus that isn't there: give the root more buses, of which it has {buses}"
    )]
    NoBus {
        /// The address.
        address: Address,
        /// The number of buses.
        buses: u16,
    },
    /// A guest wouldn't find this function.
    #[error(
        "there is a function at the PCI address {address} but none at function 0: guests look for that one first"
    )]
    NoFunction0 {
        /// The address.
        address: Address,
    },
    /// All addresses are taken.
    #[error(
        "all PCI addresses of bus 0 are taken: use fewer devices, at most {MAX_PUSHED} without slots for hotplug"
    )]
    Full,
    /// A window is full.
    #[error(
        "BAR {bar} of the PCI function {address} with {size:#x} bytes doesn't fit into {window}: make that larger"
    )]
    WindowFull {
        /// The function.
        address: Address,
        /// The BAR.
        bar: u8,
        /// Its size in bytes.
        size: u64,
        /// The window.
        window: Window,
    },
}

/// Builds a [`PciRoot`]. It adds the host bridge itself.
#[derive(Debug)]
pub struct RootBuilder {
    windows: Windows,
    functions: BTreeMap<Address, Function>,
    memory_enabled: bool,
    slots: u8,
}

impl RootBuilder {
    /// A root with only a host bridge, 8086:0d57 at 00:00.0.
    ///
    /// # Errors
    /// The windows are invalid: see [`WindowError`].
    pub fn new(windows: Windows) -> Result<Self, RootError> {
        windows.check()?;
        let bridge = FunctionBuilder::new(HOST_BRIDGE)?.build(Arc::new(NoDevice));
        Ok(RootBuilder {
            windows,
            functions: BTreeMap::from([(Address::HOST_BRIDGE, bridge)]),
            memory_enabled: false,
            slots: 0,
        })
    }

    /// Adds a function at an address.
    ///
    /// # Errors
    /// The address is taken, or the bus doesn't exist.
    pub fn insert(&mut self, address: Address, function: Function) -> Result<(), RootError> {
        let buses = self.windows.buses;
        if u16::from(address.bus()) >= buses {
            return Err(RootError::NoBus { address, buses });
        }
        match self.functions.entry(address) {
            Entry::Occupied(_) => Err(RootError::Taken { address }),
            Entry::Vacant(place) => {
                place.insert(function);
                Ok(())
            }
        }
    }

    /// Keeps `count` device numbers of bus 0 as [slots](crate::hotplug::slots) for hotplug, at most all. [`push`](Self::push)
    /// leaves them alone, so call this before. [`insert`](Self::insert) can fill them.
    pub fn hotplug(&mut self, count: u8) -> &mut Self {
        self.slots = count;
        self
    }

    /// Adds a function at the first free address of bus 0, and returns that address. Each function gets its own device
    /// number while there are any that are no slots for hotplug. Further functions are added to device 1, 2 and so on: few devices with several
    /// functions keep a guest's scan short. The host bridge's device gets no further functions.
    ///
    /// # Errors
    /// All of these addresses are taken.
    pub fn push(&mut self, function: Function) -> Result<Address, RootError> {
        let end = hotplug::slots(self.slots).start;
        let devices = (1..end).map(|device| (device, 0));
        let more =
            (1..end).flat_map(|device| (1..Address::FUNCTIONS).map(move |number| (device, number)));
        let address = devices
            .chain(more)
            .filter_map(|(device, number)| Address::new(0, device, number))
            .find(|address| !self.functions.contains_key(address))
            .ok_or(RootError::Full)?;
        self.insert(address, function)?;
        Ok(address)
    }

    /// Whether the BARs are enabled at the start, as after PC firmware. The default is no, which saves a guest some
    /// accesses when it sizes BARs.
    pub fn memory_enabled(&mut self, enabled: bool) -> &mut Self {
        self.memory_enabled = enabled;
        self
    }

    /// Gives the BARs their addresses, and freezes the list of functions.
    ///
    /// # Errors
    /// A window is too small, or a device has no function 0.
    pub fn build(self) -> Result<PciRoot, RootError> {
        let RootBuilder {
            windows,
            mut functions,
            memory_enabled,
            slots,
        } = self;
        let addresses: Vec<_> = functions.keys().copied().collect();
        for of_device in addresses.chunk_by(|a, b| a.device_bits() == b.device_bits()) {
            let first = of_device[0];
            if first.function() != 0 {
                return Err(RootError::NoFunction0 { address: first });
            }
            if of_device.len() > 1
                && let Some(function) = functions.get_mut(&first)
            {
                function.config_mut().set_multi_function();
            }
        }
        assign(&mut functions, &windows)?;
        let functions = functions.into_iter().map(|(address, mut function)| {
            function.config_mut().set_decodes_memory(memory_enabled);
            function.set_windows(windows);
            (address, Arc::new(function))
        });
        Ok(PciRoot::new(windows, slots, functions.collect()))
    }
}
