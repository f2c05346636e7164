// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Virtio devices: on PCI, or as memory-mapped devices (`--virtio`).
//!
//! A device type is one file with a `models` function, and one line in `KINDS`. It is independent of the transport. A
//! device has two parts: a [`Port`] with the registers, used by vCPUs, and a [`Seat`] with the device itself, on an
//! [I/O thread](IoThreads). Requests to the device go through the thread's mailbox. A vCPU waits for an answer only after
//! a write to a configuration, or a reset through MMIO.

mod balloon;
mod block;
mod console;
mod doorbells;
mod entropy;
mod io_thread;
mod mmio;
mod net;
mod pci;
mod poller;
mod port;
mod root;
mod seat;
mod slots;
#[cfg(test)]
mod tests;
mod threads;
mod vhost_user;
mod vsock;

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::sync::Arc;

use virtio_transport::AnyDevice;
use vm_memory::GuestMemoryMmap;

use super::Slot;
use super::device::Parts;
use crate::config::{IoThreadName, VirtioSpec, VmSpec};
use crate::irq::{NoPin, Pins};

use port::Port;
use seat::Seat;
pub use slots::SlotError;
pub(in crate::devices) use slots::Slots;
pub use threads::IoThreads;

/// Guest memory for the devices.
type Memory = Arc<GuestMemoryMmap>;

/// Returns the devices of one type in a description.
type Kind = fn(&VmSpec) -> Vec<Model>;

/// All types of virtio devices, in the order in which a guest finds them.
const KINDS: &[Kind] = &[
    entropy::models,
    block::models,
    net::models,
    vsock::models,
    vhost_user::models,
    console::models,
    balloon::models,
];

/// A virtio device in the plan of a machine, whatever its transport.
#[derive(Clone)]
pub(in crate::devices) struct Model {
    /// Its name, the same in every snapshot.
    id: Cow<'static, str>,
    /// The name of its I/O thread; `None` for the shared one.
    thread: Option<IoThreadName>,
    /// Its slot for hotplug, if it has one: a PCI device number.
    slot: Option<u8>,
    make: Arc<Make>,
}

type Make = dyn Fn(&mut Parts<'_>) -> io::Result<Box<dyn AnyDevice<Memory>>> + Send + Sync;

impl Model {
    /// A device created by `make`.
    fn new(
        id: impl Into<Cow<'static, str>>,
        make: impl Fn(&mut Parts<'_>) -> io::Result<Box<dyn AnyDevice<Memory>>> + Send + Sync + 'static,
    ) -> Self {
        Model {
            id: id.into(),
            thread: None,
            slot: None,
            make: Arc::new(make),
        }
    }

    /// The same device on the I/O thread `name`; `None` for the shared one.
    fn on_thread(mut self, name: Option<IoThreadName>) -> Self {
        self.thread = name;
        self
    }

    /// The same device in a slot for hotplug, if there is one.
    fn in_slot(mut self, slot: Option<u8>) -> Self {
        self.slot = slot;
        self
    }
}

/// Names devices of a kind. A name stays as long as the device does, whatever others come and go: those without a slot are
/// counted, and the others have the name of their slot.
struct Names {
    kind: &'static str,
    without_slot: usize,
}

impl Names {
    fn of(kind: &'static str) -> Self {
        let without_slot = 0;
        Names { kind, without_slot }
    }

    fn next(&mut self, slot: Option<u8>) -> String {
        let kind = self.kind;
        if let Some(slot) = slot {
            return format!("{kind}-slot{slot}");
        }
        self.without_slot += 1;
        format!("{kind}{}", self.without_slot - 1)
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Model").field(&self.id).finish()
    }
}

/// The slots of the virtio devices that `spec` describes: one each, or one for the PCI root with all of them.
pub(super) fn plan(spec: &VmSpec, pins: &mut Pins) -> Result<Vec<Slot>, NoPin> {
    let models: Vec<_> = models(spec).collect();
    match spec.virtio {
        _ if models.is_empty() && spec.hotplug.0 == 0 => Ok(Vec::new()),
        VirtioSpec::Pci => Ok(vec![pci::plan(spec, models)]),
        VirtioSpec::Mmio => mmio::plan(models, pins, mmio::Announced::InDsdt),
        VirtioSpec::MmioCmdline => mmio::plan(models, pins, mmio::Announced::OnCmdline),
        VirtioSpec::MmioBoth => mmio::plan(models, pins, mmio::Announced::Twice),
    }
}

fn models(spec: &VmSpec) -> impl Iterator<Item = Model> {
    KINDS.iter().flat_map(|kind| kind(spec))
}

/// Creates the device that `spec` describes in a slot.
///
/// # Errors
/// [`SlotError`]; nothing has changed then.
pub(super) fn plug(
    spec: &VmSpec,
    slot: u8,
    slots: &dyn Slots,
    parts: &mut Parts<'_>,
) -> Result<(), SlotError> {
    let model = models(spec).find(|model| model.slot == Some(slot));
    let error = SlotError::Slot(pci_root::PlugError::NoSlot { slot });
    slots.plug(&model.ok_or(error)?, parts)
}
