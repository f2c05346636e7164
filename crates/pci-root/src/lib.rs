// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A PCI root for virtual machines: the guest's side of configuration space, BARs and MSI-X, for any VMM.
//!
//! A VMM builds functions, adds them to a root, and gives the root three address ranges on its bus. The root finds the
//! function of each access, even after the guest has moved its BARs. Interrupts are messages to a trait that the VMM
//! implements. The crate starts no threads, depends on no hypervisor and prints nothing.
//!
//! | module or type | is |
//! |---|---|
//! | [`PciRoot`], [`RootBuilder`], [`Windows`] | finds the function of an address; assigns the BARs' first addresses |
//! | [`Function`], [`FunctionBuilder`] | configuration space, BARs and vectors of one function, with a device behind them |
//! | [`PciDevice`] | the device behind a function |
//! | [`Msix`], [`MsiSink`] | vectors, masks and pending bits; delivery of messages |
//! | [`ConfigSpace`], [`Bar`], [`Capability`] | the parts of a function, also usable alone |
//! | [`ports`] | configuration space through the ports 0xcf8 to 0xcff, for guests without ECAM |
//! | [`hotplug`] | the guest's side of a hotplug controller |
//! | `acpi` (feature `acpi`) | the parts of DSDT and MCFG for a root |
//! | `testing` (feature `test-utils`) | the guest's side: a bus scan like Linux's |
//! | [`RootState`] | the saved state as plain data |
//!
//! Functions have a type 0 header with memory BARs and MSI-X. There are no I/O BARs, no INTx (Interrupt Pin is 0), no MSI,
//! no bridges and no extended capabilities. There is no `unsafe` in this crate.
//!
//! # Example
//!
//! A device that fires its vector when its only register is written:
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use pci_root::{
//!     Bar, Class, FunctionBuilder, Ids, Message, MsiSink, Msix, MsixPlace, PciDevice, Reply, RootBuilder, Span, Window,
//!     Windows,
//! };
//!
//! /// On KVM this is KVM_SIGNAL_MSI.
//! #[derive(Default)]
//! struct Interrupts(Mutex<Vec<Message>>);
//! impl MsiSink for Interrupts {
//!     fn send(&self, message: Message) {
//!         self.0.lock().unwrap().push(message);
//!     }
//! }
//!
//! struct Doorbell(Arc<Msix>);
//! impl PciDevice for Doorbell {
//!     fn read_bar(&self, _: u8, _: u64, _: &mut [u8]) -> Reply {
//!         Reply::Unclaimed
//!     }
//!     fn write_bar(&self, _: u8, _: u64, _: &[u8]) -> Reply {
//!         self.0.fire(0);
//!         Reply::Done
//!     }
//! }
//!
//! // The VMM builds a machine.
//! let interrupts = Arc::new(Interrupts::default());
//! let msix = Arc::new(Msix::new(1, interrupts.clone())?);
//! let doorbell = FunctionBuilder::new(Ids::new(0x1234, 0x5678, Class::OTHER))?
//!     .bar(0, Bar::memory32(0x4000))?
//!     .msix(msix.clone(), MsixPlace { table: (0, 0x1000), pba: (0, 0x2000) })?
//!     .build(Arc::new(Doorbell(msix)));
//! let mut builder = RootBuilder::new(Windows {
//!     ecam: 0xe000_0000,
//!     buses: 1,
//!     low: Span::new(0xd000_0000, 0x1000_0000),
//!     high: Span::default(),
//! })?;
//! let address = builder.push(doorbell)?;
//! let root = builder.build()?;
//!
//! // The guest switches the function and MSI-X on, sets up vector 0, and writes the register.
//! let config = u64::from(address.bits()) << 12;
//! let _ = root.write(Window::Ecam, config + 4, &[6, 0]);
//! let _ = root.write(Window::Ecam, config + 0x42, &[0, 0x80]);
//! let _ = root.write(Window::Low, 0x1000, &0xfee0_0000u64.to_le_bytes());
//! let _ = root.write(Window::Low, 0x1008, &0x31u64.to_le_bytes());
//! let _ = root.write(Window::Low, 0, &[1]);
//! assert_eq!(*interrupts.0.lock().unwrap(), [Message { address: 0xfee0_0000, data: 0x31 }]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Locks
//!
//! Each function has a lock for register arithmetic. Each MSI-X table has one, which is held while a message is delivered.
//! The root has one for its table of BARs. A thread that holds the root's lock takes functions' locks; otherwise a thread
//! holds only one of them. Devices are called without locks, sinks with their table's.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::too_many_lines))]

#[cfg(feature = "acpi")]
pub mod acpi;
mod address;
pub mod bar;
pub mod config;
pub mod function;
#[cfg(feature = "serde")]
mod hex;
pub mod hotplug;
pub mod msix;
pub mod ports;
pub mod root;
mod sync;
#[cfg(feature = "test-utils")]
pub mod testing;
pub mod window;

pub use address::Address;
pub use bar::Bar;
pub use config::{Capability, Class, ConfigSpace, Ids};
pub use function::{
    Function, FunctionBuilder, FunctionState, MsixPlace, NoDevice, PciDevice, Reply,
};
pub use msix::{Fired, Message, MsiSink, Msix, MsixState, VectorCountError};
pub use root::{PciRoot, PlugError, RootBuilder, RootState};
pub use window::{Span, Window, Windows};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
