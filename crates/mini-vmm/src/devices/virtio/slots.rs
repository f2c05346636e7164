// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Slots for devices that come and go while the guest runs (`--hotplug`).

use std::io;
use std::sync::Arc;
use std::time::Instant;

use pci_root::PlugError;
use vmm_sys_util::eventfd::EventFd;

use super::Model;
use crate::devices::device::Parts;

/// Why a device can't be added.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The host lacks a resource for it.
    #[error("can't make device {device} ({reason}); raise the limit on open files (ulimit -n)")]
    Host {
        /// The device.
        device: String,
        /// The host's error.
        reason: io::Error,
    },
    /// Its slot has a device, or is none.
    #[error(transparent)]
    Slot(PlugError),
    /// The machine has no slots.
    #[error(
        "this machine has no slots for new devices; start it with --hotplug 4, and --virtio pci"
    )]
    None,
}

/// The slots of a machine: PCI device numbers. The control loop uses them. A guest only gives up what it was asked for.
pub(in crate::devices) trait Slots: Send + Sync {
    /// Sets what is written when the guest gives up a device.
    fn wake_by(&self, waker: Arc<EventFd>);

    /// Creates a device in its slot. The guest still has to be told.
    fn plug(&self, model: &Model, parts: &mut Parts<'_>) -> Result<(), SlotError>;

    /// Asks the guest to give up a device. It still has to be told.
    fn ask(&self, slot: u8);

    /// Withdraws that. Returns `false` if the guest has given up the device, or nobody asked.
    fn withdraw(&self, slot: u8) -> bool;

    /// Whether the guest sees a device in a slot.
    fn has_device(&self, slot: u8) -> bool;

    /// Removes a device, whether the guest has given it up or not, after its requests in flight. Returns `false` if they
    /// don't end until `by`.
    fn remove(&self, slot: u8, by: Instant) -> bool;
}
