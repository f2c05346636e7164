// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The parts of PCI functions for virtual machines, for any VMM.
//!
//! | type | is |
//! |---|---|
//! | [`Msix`], [`MsiSink`] | vectors, masks and pending bits; who delivers messages |
//! | [`ConfigSpace`], [`Bar`], [`Capability`] | configuration space |
//! | [`Address`] | bus, device, function |
//!
//! There is no `unsafe` in this crate.

#![forbid(unsafe_code)]

mod address;
pub mod bar;
pub mod config;
pub mod msix;
mod sync;

pub use address::Address;
pub use bar::Bar;
pub use config::{Capability, Class, ConfigSpace, Ids};
pub use msix::{Fired, Message, MsiSink, Msix, MsixState, VectorCountError};
