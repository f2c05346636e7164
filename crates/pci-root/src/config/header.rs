// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The registers of a type 0 header (PCI Local Bus Specification 3.0, section 6.1).

/// Vendor ID and Device ID.
pub(super) const VENDOR: usize = 0x00;
/// Command, two bytes.
pub(super) const COMMAND: usize = 0x04;
/// Status, two bytes.
pub(super) const STATUS: usize = 0x06;
/// Revision ID, followed by the class code.
const REVISION: usize = 0x08;
const CACHE_LINE_SIZE: usize = 0x0c;
pub(super) const HEADER_TYPE: usize = 0x0e;
/// The first of six BARs.
pub(super) const BAR0: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
/// The pointer to the first capability.
pub(super) const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// Where capabilities start, after the header.
pub(super) const FIRST_CAPABILITY: usize = 0x40;

/// Command: the function answers at its memory BARs.
pub(super) const COMMAND_MEMORY: u8 = 1 << 1;
/// Command: the function may write memory.
const COMMAND_BUS_MASTER: u8 = 1 << 2;
/// Command, upper byte: no INTx.
const COMMAND_INTX_DISABLE: u8 = 1 << 2;
/// Status: there is a list of capabilities.
pub(super) const STATUS_CAPABILITIES: u8 = 1 << 4;
/// Header Type: the device has more functions than this one.
pub(super) const MULTI_FUNCTION: u8 = 1 << 7;

/// The bits of the header that a guest may write, except for BARs. Cache Line Size and Interrupt Line only store what a
/// guest writes.
pub(super) const WRITABLE: [(usize, u8); 4] = [
    (COMMAND, COMMAND_MEMORY | COMMAND_BUS_MASTER),
    (COMMAND + 1, COMMAND_INTX_DISABLE),
    (CACHE_LINE_SIZE, 0xff),
    (INTERRUPT_LINE, 0xff),
];

/// The class of a function: base class, subclass, programming interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Class {
    /// The base class.
    pub base: u8,
    /// The subclass.
    pub sub: u8,
    /// The programming interface.
    pub interface: u8,
}

impl Class {
    /// A host bridge.
    pub const HOST_BRIDGE: Class = Class::new(0x06, 0x00);
    /// A mass storage controller of no other kind.
    pub const STORAGE: Class = Class::new(0x01, 0x80);
    /// An Ethernet controller.
    pub const ETHERNET: Class = Class::new(0x02, 0x00);
    /// A device of no other kind.
    pub const OTHER: Class = Class::new(0xff, 0x00);

    /// A class without programming interfaces.
    pub const fn new(base: u8, sub: u8) -> Self {
        Class {
            base,
            sub,
            interface: 0,
        }
    }
}

/// The IDs of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ids {
    /// Vendor ID. 0xffff means that there is no function.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code.
    pub class: Class,
    /// Subsystem Vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

impl Ids {
    /// A device of revision 0 without subsystem.
    pub const fn new(vendor: u16, device: u16, class: Class) -> Self {
        Ids {
            vendor,
            device,
            revision: 0,
            class,
            subsystem_vendor: 0,
            subsystem: 0,
        }
    }

    /// The bytes of the header with these IDs, and their offsets.
    pub(super) fn bytes(&self) -> [(usize, [u8; 4]); 3] {
        let pair = |low: u16, high: u16| (u32::from(low) | u32::from(high) << 16).to_le_bytes();
        let Class {
            base,
            sub,
            interface,
        } = self.class;
        [
            (VENDOR, pair(self.vendor, self.device)),
            (REVISION, [self.revision, interface, sub, base]),
            (SUBSYSTEM, pair(self.subsystem_vendor, self.subsystem)),
        ]
    }
}
