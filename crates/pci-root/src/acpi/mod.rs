// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! ACPI tables for a root, with the `acpi_tables` crate: parts of the DSDT, and the MCFG. Section numbers are those of
//! the ACPI specification 6.5; "firmware specification" is the PCI Firmware Specification 3.3.
//!
//! Linux takes ECAM's address from the MCFG. On a machine without configuration ports, Linux 6.1 accepts it only if a
//! PNP0C02 device reserves the range. For Linux 6.12 a reserved range in the memory map suffices. So give a guest
//! [`HostBridge`], [`EcamReservation`] and [`mcfg`], and also reserve the range in the memory map.
//!
//! ```
//! use acpi_tables::Aml;
//! use pci_root::acpi::{EcamReservation, HostBridge, mcfg};
//! use pci_root::{Span, Windows};
//!
//! let low = Span::new(0xd000_0000, 0x1000_0000);
//! let windows = Windows { ecam: 0xe000_0000, buses: 1, low, high: Span::new(1 << 39, 1 << 39) };
//! let mut dsdt_body = Vec::new();
//! HostBridge::new(&windows).to_aml_bytes(&mut dsdt_body);
//! EcamReservation::new(&windows).to_aml_bytes(&mut dsdt_body);
//! let table = mcfg(&windows, *b"OEM_ID", *b"OEMTABLE", 1);
//! assert_eq!(&table[..4], b"MCFG");
//! ```

mod bridge;
mod hotplug;
mod reserved;

pub use bridge::HostBridge;
pub use hotplug::{HotplugController, ScanSlots};
pub use reserved::{EcamReservation, mcfg};

#[cfg(test)]
mod tests;
