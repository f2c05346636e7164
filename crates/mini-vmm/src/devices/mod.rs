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
mod pm1;
mod port;
mod pvpanic;
mod rtc;
mod serial;
mod set;
mod virtio;

use crate::config::VmSpec;
use crate::irq::{NoPin, Pins};

pub use device::{Device, Offers, PowerButton, RestoreError, Saved, Slot, SuspendError, Window};
pub use serial::SerialDevice;
pub use set::{DeviceSet, Error};

/// A device's plan, if the description has the device. One whose GSI is not fixed takes a free pin.
type Plan = fn(&VmSpec, &mut Pins) -> Result<Option<Slot>, NoPin>;

/// Every device that a machine may have, but those in [`virtio`].
const REGISTRY: &[Plan] = &[
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
///
/// # Errors
/// They need more interrupt lines than there are.
pub(crate) fn plan(spec: &VmSpec) -> Result<Vec<Slot>, NoPin> {
    let mut pins = Pins::new();
    let plans = REGISTRY.iter().map(|plan| plan(spec, &mut pins));
    let mut slots: Vec<_> = plans
        .filter_map(Result::transpose)
        .collect::<Result<_, _>>()?;
    slots.extend(virtio::plan(spec, &mut pins)?);
    Ok(slots)
}
