// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! PCI addresses.

use std::fmt;

/// The address of a function in a segment.
///
/// # Example
/// ```
/// use pci_root::Address;
///
/// let address = Address::new(0, 3, 1).ok_or("no such address")?;
/// assert_eq!(address.to_string(), "00:03.1");
/// assert_eq!(Address::new(0, 32, 0), None);
/// # Ok::<(), &str>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(u16);

impl Address {
    /// The host bridge's address, 00:00.0.
    pub const HOST_BRIDGE: Address = Address(0);

    /// Device numbers on a bus.
    pub const DEVICES: u8 = 32;

    /// Functions of a device.
    pub const FUNCTIONS: u8 = 8;

    /// A function of a device on a bus. `None` if there is no such device number (0 to 31) or function (0 to 7).
    pub const fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device >= Self::DEVICES || function >= Self::FUNCTIONS {
            return None;
        }
        Some(Self::from_bits(
            ((bus as u16) << 8) | ((device as u16) << 3) | function as u16,
        ))
    }

    /// The address with this requester id: bus in bits 15 to 8, device in 7 to 3, function in 2 to 0.
    pub const fn from_bits(bits: u16) -> Self {
        Address(bits)
    }

    /// The requester id: see [`from_bits`](Self::from_bits).
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Bus and device, without the function.
    pub(crate) const fn device_bits(self) -> u16 {
        self.0 >> 3
    }

    /// The bus number.
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The device number, 0 to 31.
    pub const fn device(self) -> u8 {
        (self.0 >> 3) as u8 & 0x1f
    }

    /// The function number, 0 to 7.
    pub const fn function(self) -> u8 {
        self.0 as u8 & 7
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bus, device, function) = (self.bus(), self.device(), self.function());
        write!(f, "{bus:02x}:{device:02x}.{function}")
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back() {
        for bits in 0..=u16::MAX {
            let address = Address::from_bits(bits);
            let parts = (address.bus(), address.device(), address.function());
            assert_eq!(Address::new(parts.0, parts.1, parts.2), Some(address));
        }
        assert_eq!(Address::new(0, 32, 0), None);
        assert_eq!(Address::new(0, 0, 8), None);
    }
}
