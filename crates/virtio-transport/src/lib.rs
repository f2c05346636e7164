// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Virtio devices for VMMs: a device interface, checked queues, and transports.
//!
//! | module | is |
//! |---|---|
//! | [`device`] | the interface between a device and the code that runs it |
//! | [`layout`] | a device's ID, features and queues |
//! | [`queue`], [`chain`] | a running queue and a request, each checked as a whole |
//! | [`worker`] | the device's side: commands, events, pause, save |
//! | [`registers`] | the driver's side: status, features, queue parameters, configuration |
//! | [`message`] | the messages between the two sides |
//! | [`memory`] | a view of guest memory for short accesses |
//! | `mmio`, `pci` (features) | the two transports |
//! | `testing` (feature `test-utils`) | a driver for rings in guest memory, and a suite for devices |
//!
//! There is no `unsafe` in this crate.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::too_many_lines))]

mod broken;
pub mod chain;
pub mod device;
pub mod layout;
pub mod memory;
pub mod message;
#[cfg(feature = "mmio")]
pub mod mmio;
#[cfg(feature = "pci")]
pub mod pci;
pub mod queue;
pub mod registers;
#[cfg(feature = "test-utils")]
pub mod testing;
pub mod worker;

pub use broken::{Broken, IndirectFault};
pub use device::{AnyDevice, Device};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
