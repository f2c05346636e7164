// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The root: finds the function of each access.

mod assign;
mod builder;
mod decode;
mod plug;
mod state;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::address::Address;
use crate::bar::BARS;
use crate::function::{Function, Reply};
use crate::window::{Window, Windows};

pub use builder::{RootBuilder, RootError};
use decode::{Decoder, Found};
pub use plug::PlugError;
pub use state::{RootState, RootStateError, SavedFunction};

/// The size of a function's configuration space in ECAM, in bytes.
const ECAM_FUNCTION_SIZE: u64 = 4096;

/// The functions behind a root.
///
/// The VMM's bus passes it the accesses to three ranges, [`Windows`]. The root finds the function, so a guest can move
/// BARs while the bus stays frozen. Any thread may call it.
///
/// If BARs overlap, the function with the lower address gets the access, and within a function the BAR with the lower
/// number. A BAR that doesn't lie entirely in one window is not decoded. An access beyond the end of its BAR, or of a
/// function's configuration space, is unclaimed.
///
/// Functions in the slots of [`RootBuilder::hotplug`] can come and go while the guest runs.
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use pci_root::{Class, FunctionBuilder, Ids, NoDevice, Reply, RootBuilder, Span, Window, Windows};
///
/// let windows = Windows {
///     ecam: 0xe000_0000,
///     buses: 1,
///     low: Span::new(0xd000_0000, 0x1000_0000),
///     high: Span::new(1 << 39, 1 << 39),
/// };
/// let device = FunctionBuilder::new(Ids::new(0x1af4, 0x1044, Class::OTHER))?.build(Arc::new(NoDevice));
/// let mut builder = RootBuilder::new(windows)?;
/// assert_eq!(builder.push(device)?.to_string(), "00:01.0");
/// let root = builder.build()?;
///
/// let mut id = [0; 4];
/// assert_eq!(root.read(Window::Ecam, 1 << 15, &mut id), Reply::Done);
/// assert_eq!(id, [0xf4, 0x1a, 0x44, 0x10]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PciRoot {
    windows: Windows,
    /// How many device numbers are slots for hotplug.
    slots: u8,
    /// Read at each access. While it is held, only function locks may be taken.
    present: RwLock<Present>,
}

/// The functions that are there.
struct Present {
    /// In ascending order of their addresses.
    functions: Vec<(Address, Arc<Function>)>,
    decoder: Decoder,
}

impl Present {
    fn index(&self, address: Address) -> Result<usize, usize> {
        self.functions
            .binary_search_by_key(&address, |(address, _)| *address)
    }

    fn function(&self, address: Address) -> Option<&Arc<Function>> {
        let index = self.index(address).ok()?;
        Some(&self.functions[index].1)
    }
}

impl fmt::Debug for PciRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciRoot")
            .field("windows", &self.windows)
            .field("functions", &self.read_present().functions)
            .finish_non_exhaustive()
    }
}

impl PciRoot {
    fn new(windows: Windows, slots: u8, functions: Vec<(Address, Arc<Function>)>) -> Self {
        let bars = functions.len() * usize::from(BARS);
        let root = PciRoot {
            windows,
            slots,
            present: RwLock::new(Present {
                functions,
                decoder: Decoder::with_capacity(bars),
            }),
        };
        for (address, function) in root.functions() {
            if (0..BARS).any(|bar| function.decoded(bar).is_some()) {
                root.moved(address, &function);
            }
        }
        root
    }

    /// The root's address ranges.
    pub fn windows(&self) -> &Windows {
        &self.windows
    }

    /// The functions that are there now, in ascending order of their addresses.
    pub fn functions(&self) -> impl Iterator<Item = (Address, Arc<Function>)> {
        self.read_present().functions.clone().into_iter()
    }

    /// The function at an address.
    pub fn function(&self, address: Address) -> Option<Arc<Function>> {
        self.read_present().function(address).cloned()
    }

    fn read_present(&self) -> RwLockReadGuard<'_, Present> {
        self.present.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_present(&self) -> RwLockWriteGuard<'_, Present> {
        self.present.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest reads `data.len()` bytes at `offset` in a window, with any width and alignment. If no device claims
    /// it, `data` is all ones.
    pub fn read(&self, window: Window, offset: u64, data: &mut [u8]) -> Reply {
        data.fill(0);
        let reply = match window {
            Window::Ecam => match config_place(offset, data.len()) {
                Some((address, register)) => {
                    self.read_config(address, register, data);
                    Reply::Done
                }
                None => Reply::Unclaimed,
            },
            Window::Low | Window::High => match self.find(window, offset, data.len()) {
                Some(found) => found.function.read_bar(found.bar, found.offset, data),
                None => Reply::Unclaimed,
            },
        };
        if reply == Reply::Unclaimed {
            data.fill(0xff);
        }
        reply
    }

    /// The guest writes at `offset` in a window, with any width and alignment.
    pub fn write(&self, window: Window, offset: u64, data: &[u8]) -> Reply {
        match window {
            Window::Ecam => match config_place(offset, data.len()) {
                Some((address, register)) => {
                    self.write_config(address, register, data);
                    Reply::Done
                }
                None => Reply::Unclaimed,
            },
            Window::Low | Window::High => match self.find(window, offset, data.len()) {
                Some(found) => found.function.write_bar(found.bar, found.offset, data),
                None => Reply::Unclaimed,
            },
        }
    }

    /// The guest reads configuration space. Without a function, `data` is all ones, as a bus scan expects.
    pub fn read_config(&self, address: Address, register: u16, data: &mut [u8]) {
        match self.function(address) {
            Some(function) => function.read_config(register, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes configuration space. Without a function, the write is dropped.
    pub fn write_config(&self, address: Address, register: u16, data: &[u8]) {
        if let Some(function) = self.function(address)
            && function.write_config(register, data)
        {
            self.moved(address, &function);
        }
    }

    /// Updates the decoder after the function's BARs have moved, unless the function has gone meanwhile.
    fn moved(&self, address: Address, function: &Arc<Function>) {
        let mut present = self.write_present();
        let here = present.function(address);
        if here.is_some_and(|here| Arc::ptr_eq(here, function)) {
            present.decoder.update(address, function);
        }
        drop(present);
        function.device().moved(function);
    }

    /// The function and BAR of an access, and the offset in the BAR.
    fn find(&self, window: Window, offset: u64, len: usize) -> Option<Found> {
        let first = self.windows.span(window).base.checked_add(offset)?;
        let last = first.checked_add((len as u64).saturating_sub(1))?;
        self.read_present().decoder.find(first, last)
    }
}

/// The function and the register of an access to ECAM. `None` unless it is entirely in one function.
fn config_place(offset: u64, len: usize) -> Option<(Address, u16)> {
    let address = u16::try_from(offset / ECAM_FUNCTION_SIZE).ok()?;
    let register = offset % ECAM_FUNCTION_SIZE;
    let end = register.checked_add(len as u64)?;
    (end <= ECAM_FUNCTION_SIZE).then_some((Address::from_bits(address), register as u16))
}

#[cfg(test)]
mod tests;
