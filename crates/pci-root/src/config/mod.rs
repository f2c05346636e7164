// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configuration space of a function with a type 0 header: 256 bytes, each with a mask of writable bits.

mod capability;
mod header;

use std::fmt;

use crate::bar::{BARS, Bar, BarError};

pub use capability::Capability;
pub use header::{Class, Ids};

/// The used bytes of configuration space. The rest of a function's 4 KiB in ECAM reads as zeros, which means that there
/// are no extended capabilities.
pub const CONFIG_SIZE: usize = 256;

/// There is no space left for a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "capability {id:#04x} with {len} bytes doesn't fit: the capabilities of a function have 192 bytes in all, and \
     each begins at a multiple of 4"
)]
pub struct CapabilityError {
    /// The capability's id.
    pub id: u8,
    /// Its size in bytes, including ID and next pointer.
    pub len: usize,
}

/// Why a saved configuration space is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigStateError {
    /// It has the wrong size.
    #[error(
        "the state has {found} bytes of configuration space instead of {CONFIG_SIZE}: it is damaged"
    )]
    Size {
        /// Its size in bytes.
        found: usize,
    },
    /// It belongs to another function, or has a value that no guest can write.
    #[error(
        "configuration register {register:#04x} has {found:#04x} in the state and {expected:#04x} in the device, and \
         no guest can change that: restore the state into the machine that it was saved from"
    )]
    Register {
        /// The byte's offset.
        register: u8,
        /// The byte in the state.
        found: u8,
        /// The byte in the function.
        expected: u8,
    },
}

/// The configuration space of a function.
///
/// # Example
/// ```
/// use pci_root::{Bar, Class, ConfigSpace, Ids};
///
/// let mut config = ConfigSpace::new(&Ids::new(0x1af4, 0x1044, Class::OTHER));
/// config.add_bar(0, Bar::memory32(0x1000))?;
///
/// // A guest asks for the size of BAR 0.
/// let mut bar = [0; 4];
/// config.write(0x10, &u32::MAX.to_le_bytes());
/// config.read(0x10, &mut bar);
/// assert_eq!(u32::from_le_bytes(bar), 0xffff_f000);
/// # Ok::<(), pci_root::bar::BarError>(())
/// ```
pub struct ConfigSpace {
    bytes: Box<[u8; CONFIG_SIZE]>,
    /// The bits that a guest may write.
    writable: Box<[u8; CONFIG_SIZE]>,
    /// Each BAR at its first register.
    bars: [Option<Bar>; BARS as usize],
    /// The offset for the next capability.
    free: usize,
    /// The offset of the pointer to set to it.
    link: usize,
}

impl fmt::Debug for ConfigSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bars: Vec<_> = self.bars().collect();
        f.debug_struct("ConfigSpace")
            .field("bars", &bars)
            .finish_non_exhaustive()
    }
}

impl ConfigSpace {
    /// A function with these IDs, without BARs and capabilities. Interrupt Pin is 0: it has no INTx.
    pub fn new(ids: &Ids) -> Self {
        let mut config = ConfigSpace {
            bytes: Box::new([0; CONFIG_SIZE]),
            writable: Box::new([0; CONFIG_SIZE]),
            bars: [None; BARS as usize],
            free: header::FIRST_CAPABILITY,
            link: header::CAPABILITIES,
        };
        for (at, bytes) in ids.bytes() {
            config.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        for (at, mask) in header::WRITABLE {
            config.writable[at] = mask;
        }
        config
    }

    /// Reads `data.len()` bytes from `register` on, with any width. Beyond the 256 bytes there are zeros.
    pub fn read(&self, register: u16, data: &mut [u8]) {
        for (at, place) in (usize::from(register)..).zip(data) {
            *place = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// A guest's write from `register` on, with any width. Read-only bits keep their values.
    pub fn write(&mut self, register: u16, data: &[u8]) {
        for (at, value) in (usize::from(register)..).zip(data) {
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = *byte & !mask | value & mask;
            }
        }
    }

    /// Adds a BAR in register `number`, and in the next one if it is 64 bits wide. Its address is 0.
    ///
    /// # Errors
    /// The size or the registers are invalid, or another BAR has one of the registers.
    pub fn add_bar(&mut self, number: u8, bar: Bar) -> Result<(), BarError> {
        bar.check(number)?;
        let (at, len) = (bar_register(number), bar.len());
        let overlaps = |(other, bar): (u8, Bar)| {
            let start = bar_register(other);
            start < at + len && at < start + bar.len()
        };
        if self.bars().any(overlaps) {
            return Err(BarError::Taken { number });
        }
        self.bytes[at..at + len].copy_from_slice(&bar.flags().to_le_bytes()[..len]);
        self.writable[at..at + len].copy_from_slice(&bar.mask().to_le_bytes()[..len]);
        self.bars[usize::from(number)] = Some(bar);
        Ok(())
    }

    /// The BARs and their numbers.
    pub fn bars(&self) -> impl Iterator<Item = (u8, Bar)> + '_ {
        (0..BARS).filter_map(|number| Some((number, self.bar(number)?)))
    }

    /// The BAR that begins in register `number`.
    pub fn bar(&self, number: u8) -> Option<Bar> {
        *self.bars.get(usize::from(number))?
    }

    /// The address in a BAR's registers, whether or not it is decoded.
    pub fn bar_address(&self, number: u8) -> Option<u64> {
        let bar = self.bar(number)?;
        let (at, len) = (bar_register(number), bar.len());
        let mut value = [0; 8];
        value[..len].copy_from_slice(&self.bytes[at..at + len]);
        Some(u64::from_le_bytes(value) & bar.mask())
    }

    /// Sets the address in a BAR's registers. Bits below the BAR's size or beyond its width are dropped.
    pub fn set_bar_address(&mut self, number: u8, address: u64) {
        if let Some(bar) = self.bar(number) {
            let value = &address.to_le_bytes()[..bar.len()];
            self.write(bar_register(number) as u16, value);
        }
    }

    /// Whether the function decodes its BARs: Command, bit 1.
    pub fn decodes_memory(&self) -> bool {
        self.bytes[header::COMMAND] & header::COMMAND_MEMORY != 0
    }

    /// Adds a capability to the list. Returns its offset.
    ///
    /// # Errors
    /// There is no space for it.
    pub fn add_capability(&mut self, capability: &Capability) -> Result<u8, CapabilityError> {
        let id = capability.id();
        let (at, len) = (self.free, capability.len());
        let (Ok(start), true) = (u8::try_from(at), at + len <= CONFIG_SIZE) else {
            return Err(CapabilityError { id, len });
        };
        self.bytes[at] = id;
        self.bytes[at + 2..at + len].copy_from_slice(capability.body());
        self.writable[at + 2..at + len].copy_from_slice(capability.writable());
        self.bytes[self.link] = start;
        self.bytes[header::STATUS] |= header::STATUS_CAPABILITIES;
        self.link = at + 1;
        self.free = (at + len).next_multiple_of(4);
        Ok(start)
    }

    /// Sets whether the function decodes its BARs.
    pub fn set_decodes_memory(&mut self, decodes: bool) {
        self.bytes[header::COMMAND] &= !header::COMMAND_MEMORY;
        if decodes {
            self.bytes[header::COMMAND] |= header::COMMAND_MEMORY;
        }
    }

    /// Marks function 0 of a device that has more functions.
    pub fn set_multi_function(&mut self) {
        self.bytes[header::HEADER_TYPE] |= header::MULTI_FUNCTION;
    }

    /// The state as plain data.
    pub fn save(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Checks that a guest can have produced `state` in this configuration space.
    ///
    /// # Errors
    /// See [`ConfigStateError`].
    pub fn check(&self, state: &[u8]) -> Result<(), ConfigStateError> {
        if state.len() != CONFIG_SIZE {
            let found = state.len();
            return Err(ConfigStateError::Size { found });
        }
        let bytes = self.bytes.iter().zip(&self.writable[..]).zip(state);
        for (at, ((&expected, mask), &found)) in bytes.enumerate() {
            if (expected ^ found) & !mask != 0 {
                return Err(ConfigStateError::Register {
                    register: at as u8,
                    found,
                    expected,
                });
            }
        }
        Ok(())
    }

    /// Restores a state.
    ///
    /// # Errors
    /// It doesn't fit; nothing has changed then.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), ConfigStateError> {
        self.check(state)?;
        self.write(0, state);
        Ok(())
    }
}

/// The offset of a BAR's register.
fn bar_register(number: u8) -> usize {
    header::BAR0 + usize::from(number) * 4
}

#[cfg(test)]
mod tests;
