// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's side, for tests: it scans a root, sizes BARs and sets up MSI-X as Linux does (drivers/pci/probe.c,
//! drivers/pci/msi/).
//!
//! ```
//! use pci_root::testing::{Guest, Mechanism};
//! use pci_root::{RootBuilder, Span, Windows};
//!
//! let low = Span::new(0xd000_0000, 0x1000_0000);
//! let root = RootBuilder::new(Windows { ecam: 0xe000_0000, buses: 1, low, high: Span::default() })?.build()?;
//! let mut guest = Guest::new(&root, Mechanism::Ecam);
//! let functions = guest.scan();
//! assert_eq!(functions[0].vendor, 0x8086);
//! assert!(guest.accesses() > 32); // A bus has 32 device numbers.
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod scan;

use crate::address::Address;
use crate::function::Reply;
use crate::msix::{ENTRY_SIZE, Message};
use crate::ports::ConfigPorts;
use crate::root::PciRoot;
use crate::window::Window;

pub use scan::{FoundBar, FoundFunction, FoundMsix};

/// How a guest reaches configuration space.
#[derive(Clone, Copy, Debug)]
pub enum Mechanism<'a> {
    /// Through memory.
    Ecam,
    /// Through the ports 0xcf8 to 0xcff.
    Ports(&'a ConfigPorts),
}

/// A guest that uses a root, and counts its accesses. Each one is an exit.
#[derive(Debug)]
pub struct Guest<'a> {
    root: &'a PciRoot,
    mechanism: Mechanism<'a>,
    accesses: u64,
}

impl<'a> Guest<'a> {
    /// A guest of this root.
    pub fn new(root: &'a PciRoot, mechanism: Mechanism<'a>) -> Self {
        Guest {
            root,
            mechanism,
            accesses: 0,
        }
    }

    /// The number of exits so far.
    pub fn accesses(&self) -> u64 {
        self.accesses
    }

    /// Reads `N` bytes of configuration space, at most 4, within a register of 4.
    ///
    /// # Panics
    /// The root doesn't answer.
    pub fn read_config<const N: usize>(&mut self, address: Address, register: u16) -> [u8; N] {
        let mut data = [0; N];
        let reply = match self.mechanism {
            Mechanism::Ecam => self
                .root
                .read(Window::Ecam, ecam(address, register), &mut data),
            Mechanism::Ports(ports) => {
                self.select(ports, address, register);
                ports.read(self.root, 4 + u64::from(register % 4), &mut data)
            }
        };
        self.accesses += 1;
        assert_eq!(reply, Reply::Done, "{address} register {register:#x}");
        data
    }

    /// Writes configuration space, at most 4 bytes, within a register of 4.
    ///
    /// # Panics
    /// The root doesn't answer.
    pub fn write_config(&mut self, address: Address, register: u16, data: &[u8]) {
        let reply = match self.mechanism {
            Mechanism::Ecam => self.root.write(Window::Ecam, ecam(address, register), data),
            Mechanism::Ports(ports) => {
                self.select(ports, address, register);
                ports.write(self.root, 4 + u64::from(register % 4), data)
            }
        };
        self.accesses += 1;
        assert_eq!(reply, Reply::Done, "{address} register {register:#x}");
    }

    fn select(&mut self, ports: &ConfigPorts, address: Address, register: u16) {
        let value = 1 << 31 | u32::from(address.bits()) << 8 | u32::from(register & 0xfc);
        let reply = ports.write(self.root, 0, &value.to_le_bytes());
        self.accesses += 1;
        assert_eq!(reply, Reply::Done);
    }

    /// Reads memory at a guest-physical address. Addresses outside of all windows are unclaimed.
    pub fn read_memory(&mut self, address: u64, data: &mut [u8]) -> Reply {
        self.accesses += 1;
        match self.window(address) {
            Some((window, offset)) => self.root.read(window, offset, data),
            None => Reply::Unclaimed,
        }
    }

    /// Writes memory at a guest-physical address.
    pub fn write_memory(&mut self, address: u64, data: &[u8]) -> Reply {
        self.accesses += 1;
        match self.window(address) {
            Some((window, offset)) => self.root.write(window, offset, data),
            None => Reply::Unclaimed,
        }
    }

    fn window(&self, address: u64) -> Option<(Window, u64)> {
        Window::ALL.into_iter().find_map(|window| {
            let span = self.root.windows().span(window);
            let inside = span.contains(address, address);
            inside.then(|| (window, address - span.base))
        })
    }

    /// Enables a function, as a driver does: memory and bus master.
    pub fn enable(&mut self, function: &FoundFunction) {
        let [low, high] = self.read_config(function.address, scan::COMMAND);
        self.write_config(function.address, scan::COMMAND, &[low | 0b110, high]);
    }

    /// Sets up MSI-X of an enabled function, with a message for each of the first vectors. Masks the function, fills in
    /// the table, then unmasks it.
    ///
    /// # Panics
    /// The function has no MSI-X or too few vectors, or doesn't answer at its table.
    pub fn set_up_msix(&mut self, function: &FoundFunction, messages: &[Message]) {
        let msix = function.msix.as_ref().expect("the function has MSI-X");
        assert!(messages.len() <= usize::from(msix.vectors));
        let control = msix.capability + 2;
        let [low, high] = self.read_config(function.address, control);
        self.write_config(function.address, control, &[low, high | 0xc0]);
        let table = function.address_in(msix.table);
        let mut write = |at: u64, value: u32| {
            let reply = self.write_memory(table + at, &value.to_le_bytes());
            assert_eq!(reply, Reply::Done, "{} table at {at:#x}", function.address);
        };
        for vector in 0..u64::from(msix.vectors) {
            write(vector * ENTRY_SIZE + 12, 1);
        }
        for (vector, message) in (0..).zip(messages) {
            let entry = vector * ENTRY_SIZE;
            write(entry, message.address as u32);
            write(entry + 4, (message.address >> 32) as u32);
            write(entry + 8, message.data);
        }
        for (vector, _) in (0..).zip(messages) {
            write(vector * ENTRY_SIZE + 12, 0);
        }
        self.write_config(function.address, control, &[low, high & 0x3f | 0x80]);
    }

    /// Masks or unmasks a vector.
    ///
    /// # Panics
    /// The function has no MSI-X, or doesn't answer at its table.
    pub fn mask(&mut self, function: &FoundFunction, vector: u16, masked: bool) {
        let msix = function.msix.as_ref().expect("the function has MSI-X");
        let entry = function.address_in(msix.table) + u64::from(vector) * ENTRY_SIZE;
        let reply = self.write_memory(entry + 12, &u32::from(masked).to_le_bytes());
        assert_eq!(reply, Reply::Done);
    }

    /// Moves a BAR while its function is disabled, and then restores its Command register.
    pub fn move_bar(&mut self, function: &mut FoundFunction, number: u8, place: u64) {
        let address = function.address;
        let command = self.read_config::<2>(address, scan::COMMAND);
        self.write_config(address, scan::COMMAND, &[command[0] & !0b10, command[1]]);
        let bars = function.bars.iter_mut();
        for bar in bars.filter(|bar| bar.number == number) {
            let register = scan::BAR0 + u16::from(number) * 4;
            self.write_config(address, register, &(place as u32).to_le_bytes());
            if bar.wide {
                self.write_config(address, register + 4, &((place >> 32) as u32).to_le_bytes());
            }
            bar.address = place;
        }
        self.write_config(address, scan::COMMAND, &command);
    }
}

/// The offset of a register in ECAM.
fn ecam(address: Address, register: u16) -> u64 {
    u64::from(address.bits()) << 12 | u64::from(register)
}
