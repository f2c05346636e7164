// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine's own devices: those that KVM does not emulate.
//!
//! A device is one file with a `plan` function, and one line in `REGISTRY`. Its plan has its addresses, its interrupt,
//! its ACPI description, and the function that creates it. Then it is a [`Device`] like any other. It reports the end
//! of the run through an [`OutcomeLatch`](crate::outcome::OutcomeLatch).
//!
//! Devices are called on vCPU threads and never wait. They take their own lock, write an eventfd, or append to a
//! bounded queue. Accesses outside of their registers are unclaimed: reads return all ones.

mod acpi_pm;
mod backends;
mod boot_timer;
mod cf9;
mod console_ports;
mod debug_exit;
mod device;
mod events;
mod i8042;
mod network;
mod overlay;
mod plug;
mod pm1;
mod port;
mod pvpanic;
mod rtc;
mod serial;
mod set;
mod share;
mod vhost_user;
mod virtio;
mod vsock;

use crate::config::VmSpec;
use crate::irq::{NoPin, Pins};

pub(crate) use backends::open_disk;
pub use backends::{BackendError, Backends};
pub use console_ports::PortHostError;
pub use device::{
    Device, Generation, Offers, PlugEvents, PowerButton, RestoreError, Saved, Slot, SuspendError,
    Window,
};
pub use network::{NetworkError, PasstError};
pub use overlay::SavedOverlay;
pub(crate) use overlay::copy as copy_overlay;
pub use plug::{NewDevice, NewLink};
pub use serial::SerialDevice;
pub use set::{Connections, DeviceSet, Error};
pub use share::ShareError;
pub use vhost_user::VhostUserHostError;
pub use virtio::SlotError;

/// Plans a device if the description has it. A device without a fixed GSI takes a free pin.
type Plan = fn(&VmSpec, &mut Pins) -> Result<Option<Slot>, NoPin>;

/// Every device of a machine, except for those in [`virtio`].
const REGISTRY: &[Plan] = &[
    acpi_pm::plan,
    boot_timer::plan,
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
/// They need more interrupt lines than the machine has.
pub(crate) fn plan(spec: &VmSpec) -> Result<Vec<Slot>, NoPin> {
    let mut pins = Pins::new();
    let plans = REGISTRY.iter().map(|plan| plan(spec, &mut pins));
    let mut slots: Vec<_> = plans
        .filter_map(Result::transpose)
        .collect::<Result<_, _>>()?;
    slots.extend(virtio::plan(spec, &mut pins)?);
    Ok(slots)
}
