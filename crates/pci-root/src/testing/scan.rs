// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The result of a guest's scan.

use super::Guest;
use crate::address::Address;

pub(super) const COMMAND: u16 = 0x04;
const STATUS: u16 = 0x06;
const CLASS: u16 = 0x08;
const HEADER_TYPE: u16 = 0x0e;
pub(super) const BAR0: u16 = 0x10;
const SUBSYSTEM: u16 = 0x2c;
const ROM: u16 = 0x30;
const CAPABILITIES: u16 = 0x34;
const INTERRUPT_PIN: u16 = 0x3d;

const MSIX: u8 = 0x11;
/// More capabilities than fit. Linux gives up there, too.
const MOST_CAPABILITIES: usize = 48;

/// A BAR, as a guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundBar {
    /// Its number.
    pub number: u8,
    /// Its address.
    pub address: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Whether it is 64 bits wide.
    pub wide: bool,
    /// Whether reads have no side effects.
    pub prefetchable: bool,
}

/// MSI-X, as a guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundMsix {
    /// The capability's offset.
    pub capability: u16,
    /// The number of vectors.
    pub vectors: u16,
    /// The table, as (BAR, offset).
    pub table: (u8, u64),
    /// The pending bits, as (BAR, offset).
    pub pba: (u8, u64),
}

/// A function, as a guest sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundFunction {
    /// Its address.
    pub address: Address,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID in the lowest byte, class code above it.
    pub class: u32,
    /// Subsystem Vendor ID and Subsystem ID.
    pub subsystem: (u16, u16),
    /// Interrupt Pin; 0 is none.
    pub interrupt_pin: u8,
    /// Its BARs.
    pub bars: Vec<FoundBar>,
    /// Its capabilities, as (ID, offset).
    pub capabilities: Vec<(u8, u16)>,
    /// MSI-X, if it has it.
    pub msix: Option<FoundMsix>,
}

impl FoundFunction {
    /// The guest-physical address of an offset in a BAR, as (BAR, offset).
    ///
    /// # Panics
    /// There is no such BAR.
    pub fn address_in(&self, (number, offset): (u8, u64)) -> u64 {
        let bar = self.bars.iter().find(|bar| bar.number == number);
        bar.expect("there is such a BAR").address + offset
    }
}

fn pair(bytes: [u8; 4]) -> (u16, u16) {
    let [a, b, c, d] = bytes;
    (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
}

impl Guest<'_> {
    /// Scans all device numbers of bus 0, and all functions of multi-function devices. It leaves nothing changed.
    ///
    /// # Panics
    /// A header or a list of capabilities is invalid.
    pub fn scan(&mut self) -> Vec<FoundFunction> {
        let mut found = Vec::new();
        for device in 0..Address::DEVICES {
            for number in 0..Address::FUNCTIONS {
                let Some(address) = Address::new(0, device, number) else {
                    continue;
                };
                let (vendor, id) = pair(self.read_config(address, 0));
                if vendor == u16::MAX || vendor == 0 {
                    if number == 0 {
                        break;
                    }
                    continue;
                }
                let [header] = self.read_config(address, HEADER_TYPE);
                assert_eq!(
                    header & 0x7f,
                    0,
                    "{address} has a header of type {header:#x}"
                );
                found.push(self.look(address, (vendor, id)));
                if number == 0 && header & 0x80 == 0 {
                    break;
                }
            }
        }
        found
    }

    fn look(&mut self, address: Address, (vendor, device): (u16, u16)) -> FoundFunction {
        let class = u32::from_le_bytes(self.read_config(address, CLASS));
        let bars = self.bars(address);
        let [interrupt_pin] = self.read_config(address, INTERRUPT_PIN);
        let capabilities = self.capabilities(address);
        let msix = capabilities.iter().find(|(id, _)| *id == MSIX);
        let msix = msix.map(|(_, at)| self.msix(address, *at));
        FoundFunction {
            address,
            vendor,
            device,
            class,
            subsystem: pair(self.read_config(address, SUBSYSTEM)),
            interrupt_pin,
            bars,
            capabilities,
            msix,
        }
    }

    /// Sizes the BARs with the function disabled, and then restores its Command register.
    fn bars(&mut self, address: Address) -> Vec<FoundBar> {
        let command = self.read_config::<2>(address, COMMAND);
        let was_on = command[0] & 0b11 != 0;
        if was_on {
            self.write_config(address, COMMAND, &[command[0] & !0b11, command[1]]);
        }
        let mut bars = Vec::new();
        let mut number = 0;
        while number < 6 {
            let register = BAR0 + u16::from(number) * 4;
            let (low, size) = self.size(address, register);
            let wide = size & 0b111 == 0b100;
            let (mut place, mut mask) = (u64::from(low & !0xf), u64::from(size & !0xf));
            if wide {
                let (high, size) = self.size(address, register + 4);
                place |= u64::from(high) << 32;
                mask |= u64::from(size) << 32;
            } else {
                mask |= u64::from(u32::MAX) << 32;
            }
            if size != 0 {
                assert_eq!(size & 1, 0, "{address} has an I/O BAR {number}");
                bars.push(FoundBar {
                    number,
                    address: place,
                    size: mask.wrapping_neg(),
                    wide,
                    prefetchable: size & 0b1000 != 0,
                });
            }
            number += if wide { 2 } else { 1 };
        }
        let (_, rom) = self.size(address, ROM);
        assert_eq!(rom, 0, "{address} has a ROM");
        if was_on {
            self.write_config(address, COMMAND, &command);
        }
        bars
    }

    /// The value of a BAR's register, and what it reads after writing all ones.
    fn size(&mut self, address: Address, register: u16) -> (u32, u32) {
        let value = self.read_config::<4>(address, register);
        self.write_config(address, register, &[0xff; 4]);
        let size = self.read_config::<4>(address, register);
        self.write_config(address, register, &value);
        (u32::from_le_bytes(value), u32::from_le_bytes(size))
    }

    fn capabilities(&mut self, address: Address) -> Vec<(u8, u16)> {
        let [status] = self.read_config(address, STATUS);
        if status & 0x10 == 0 {
            return Vec::new();
        }
        let [mut next] = self.read_config(address, CAPABILITIES);
        let mut found = Vec::new();
        while next != 0 {
            assert!(
                next >= 0x40 && next % 4 == 0,
                "{address} has a capability at {next:#x}"
            );
            assert!(
                found.len() < MOST_CAPABILITIES,
                "{address}'s capabilities have no end"
            );
            let id;
            let at = u16::from(next);
            [id, next] = self.read_config(address, at);
            found.push((id, at));
        }
        found
    }

    fn msix(&mut self, address: Address, capability: u16) -> FoundMsix {
        let control = u16::from_le_bytes(self.read_config(address, capability + 2));
        let mut place = |at| {
            let value = u32::from_le_bytes(self.read_config(address, capability + at));
            ((value & 7) as u8, u64::from(value & !7))
        };
        FoundMsix {
            capability,
            vectors: (control & 0x7ff) + 1,
            table: place(4),
            pba: place(8),
        }
    }
}
