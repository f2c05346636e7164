// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Configuration space through ports, CONFIG_ADDRESS and CONFIG_DATA (PCI Local Bus Specification 3.0, section
//! 3.2.2.3.2).
//!
//! Each access costs a guest two exits, so leave them out if the guest uses ECAM. Some firmware and kernels support
//! nothing else.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::address::Address;
use crate::function::Reply;
use crate::root::PciRoot;

/// The first port, CONFIG_ADDRESS.
pub const CONFIG_PORTS: u16 = 0xcf8;
/// The number of ports.
pub const CONFIG_PORTS_SIZE: u16 = 8;

/// CONFIG_ADDRESS is 32 bits wide.
const ADDRESS_SIZE: usize = 4;
/// CONFIG_ADDRESS: CONFIG_DATA accesses configuration space.
const ENABLE: u32 = 1 << 31;
/// CONFIG_ADDRESS: the writable bits.
const WRITABLE: u32 = 0x80ff_fffc;

/// The ports 0xcf8 to 0xcff.
///
/// # Example
/// ```
/// use pci_root::ports::ConfigPorts;
/// use pci_root::{Reply, RootBuilder, Span, Windows};
///
/// let low = Span::new(0xd000_0000, 0x1000_0000);
/// let windows = Windows { ecam: 0xe000_0000, buses: 1, low, high: Span::default() };
/// let (root, ports) = (RootBuilder::new(windows)?.build()?, ConfigPorts::default());
///
/// assert_eq!(ports.write(&root, 0, &0x8000_0000u32.to_le_bytes()), Reply::Done);
/// let mut id = [0; 4];
/// assert_eq!(ports.read(&root, 4, &mut id), Reply::Done);
/// assert_eq!(id, [0x86, 0x80, 0x57, 0x0d]);
///
/// // Port 0xcf9 is the reset register of PCs, which belongs to another device.
/// assert_eq!(ports.write(&root, 1, &[6]), Reply::Unclaimed);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct ConfigPorts {
    address: AtomicU32,
}

impl ConfigPorts {
    /// The guest reads `data.len()` bytes at a port, counted from [`CONFIG_PORTS`]. If no device claims it, `data` is
    /// all ones.
    pub fn read(&self, root: &PciRoot, port: u64, data: &mut [u8]) -> Reply {
        if port == 0 && data.len() == ADDRESS_SIZE {
            data.copy_from_slice(&self.save().to_le_bytes());
            return Reply::Done;
        }
        match self.place(port, data.len()) {
            Some((address, register)) => {
                root.read_config(address, register, data);
                Reply::Done
            }
            None => {
                data.fill(0xff);
                Reply::Unclaimed
            }
        }
    }

    /// The guest writes at a port, counted from [`CONFIG_PORTS`]. CONFIG_ADDRESS accepts only four bytes at once.
    pub fn write(&self, root: &PciRoot, port: u64, data: &[u8]) -> Reply {
        if let (0, Ok(address)) = (port, data.try_into()) {
            self.restore(u32::from_le_bytes(address));
            return Reply::Done;
        }
        match self.place(port, data.len()) {
            Some((address, register)) => {
                root.write_config(address, register, data);
                Reply::Done
            }
            None => Reply::Unclaimed,
        }
    }

    /// The value of CONFIG_ADDRESS, to be saved.
    pub fn save(&self) -> u32 {
        self.address.load(Ordering::Relaxed)
    }

    /// Restores CONFIG_ADDRESS. Unknown bits are dropped.
    pub fn restore(&self, address: u32) {
        self.address.store(address & WRITABLE, Ordering::Relaxed);
    }

    /// The function and the register of an access to CONFIG_DATA.
    fn place(&self, port: u64, len: usize) -> Option<(Address, u16)> {
        let address = self.save();
        let in_data = port >= ADDRESS_SIZE as u64
            && port.checked_add(len as u64)? <= u64::from(CONFIG_PORTS_SIZE);
        (in_data && address & ENABLE != 0).then(|| {
            let register = (address & 0xfc) as u16 + (port as u16 - ADDRESS_SIZE as u16);
            (Address::from_bits((address >> 8) as u16), register)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::RootBuilder;
    use crate::window::{Span, Windows};

    fn root() -> PciRoot {
        let windows = Windows {
            ecam: 0,
            buses: 1,
            low: Span::new(0x8000_0000, 0x1000_0000),
            high: Span::default(),
        };
        RootBuilder::new(windows).unwrap().build().unwrap()
    }

    #[test]
    fn every_port_at_every_width() {
        let root = root();
        let mut config = [0; 0x100];
        root.read_config(Address::HOST_BRIDGE, 0, &mut config);
        for (enable, exists) in [(true, true), (true, false), (false, true)] {
            for register in (0..0x100u32).step_by(4) {
                let ports = ConfigPorts::default();
                let address = u32::from(enable) << 31 | u32::from(!exists) << 11 | register;
                assert_eq!(
                    ports.write(&root, 0, &(address | 0x7f00_0003).to_le_bytes()),
                    Reply::Done
                );
                for len in 1..=8usize {
                    for port in 0..10 {
                        let in_data = port >= 4 && port as usize + len <= 8;
                        let in_address = port == 0 && len == 4;
                        let claimed = in_address || in_data && enable;
                        let mut data = vec![0xee; len];
                        let reply = ports.read(&root, port, &mut data);
                        assert_eq!(reply == Reply::Done, claimed, "{len} at {port}");
                        if in_address {
                            assert_eq!(data, address.to_le_bytes());
                        } else if in_data && enable && exists {
                            let at = register as usize + port as usize - 4;
                            assert_eq!(data, config[at..at + len]);
                        } else {
                            assert_eq!(data, vec![0xff; len]);
                        }
                        let data = if in_address {
                            address.to_le_bytes().to_vec()
                        } else {
                            vec![0; len]
                        };
                        assert_eq!(ports.write(&root, port, &data) == Reply::Done, claimed);
                        assert_eq!(ports.save(), address);
                    }
                }
            }
        }
        let mut after = [0; 0x100];
        root.read_config(Address::HOST_BRIDGE, 0, &mut after);
        assert_eq!(after, config);
    }

    #[test]
    fn a_write_reaches_the_register() {
        let (root, ports) = (root(), ConfigPorts::default());
        assert_eq!(
            ports.write(&root, 0, &0x8000_003cu32.to_le_bytes()),
            Reply::Done
        );
        assert_eq!(ports.write(&root, 4, &[11]), Reply::Done);
        let mut line = [0];
        root.read_config(Address::HOST_BRIDGE, 0x3c, &mut line);
        assert_eq!(line, [11]);
    }

    #[test]
    fn a_forged_address_has_no_bits_that_there_are_not() {
        let ports = ConfigPorts::default();
        ports.restore(u32::MAX);
        assert_eq!(ports.save(), WRITABLE);
    }
}
