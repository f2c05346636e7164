// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine's own devices: those that KVM does not emulate.
//!
//! A device is one file with a `plan` function, and one line in `REGISTRY`. Its plan says which addresses and which
//! interrupt it has and what ACPI says of it, and how it is made; from then on it is a [`Device`] like any other.
//! It reports how the run ends through an [`OutcomeLatch`](crate::outcome::OutcomeLatch).
//!
//! Devices are called on vCPU threads and never wait: they take their own lock, write an eventfd,
//! or append to a bounded queue. What is no register of theirs, nobody claims: it reads all ones.

mod acpi_pm;
mod cf9;
mod debug_exit;
mod device;
mod events;
mod i8042;
mod irq;
pub mod pic;
mod pm1;
mod port;
mod pvpanic;
mod rtc;
mod serial;
mod set;

use crate::config::VmSpec;

pub use device::{Device, Offers, PowerButton, RestoreError, Saved, Slot, Window};
pub use irq::IrqLine;
pub use serial::SerialDevice;
pub use set::{DeviceSet, Error};

/// Every device that a machine may have: what each one's plan is, if the description has it.
const REGISTRY: &[fn(&VmSpec) -> Option<Slot>] = &[
    acpi_pm::plan,
    cf9::plan,
    debug_exit::plan,
    i8042::plan,
    pm1::plan,
    pvpanic::plan,
    rtc::plan,
    serial::plan,
];

/// The devices of the machine that `spec` describes.
pub(crate) fn plan(spec: &VmSpec) -> Vec<Slot> {
    REGISTRY.iter().filter_map(|plan| plan(spec)).collect()
}
