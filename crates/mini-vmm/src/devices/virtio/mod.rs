// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Virtio devices: on PCI, or as memory-mapped devices (`--virtio`).
//!
//! A device type is one file with a `models` function, and one line in `KINDS`. It is independent of the transport. A
//! device has two parts: a [`Port`] with the registers, used by vCPUs, and a [`Seat`] with the device itself, on an
//! [I/O thread](IoThreads). Requests to the device go through the thread's mailbox. A vCPU waits for an answer only after
//! a write to a configuration, or a reset through MMIO.

mod block;
mod doorbells;
mod entropy;
mod io_thread;
mod mmio;
mod net;
mod pci;
mod poller;
mod port;
mod seat;
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
];

/// A virtio device in the plan of a machine, whatever its transport.
#[derive(Clone)]
struct Model {
    /// Its name, the same in every snapshot.
    id: Cow<'static, str>,
    /// The name of its I/O thread; `None` for the shared one.
    thread: Option<IoThreadName>,
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
            make: Arc::new(make),
        }
    }

    /// The same device on the I/O thread `name`; `None` for the shared one.
    fn on_thread(mut self, name: Option<IoThreadName>) -> Self {
        self.thread = name;
        self
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Model").field(&self.id).finish()
    }
}

/// The slots of the virtio devices that `spec` describes: one each, or one for the PCI root with all of them.
pub(super) fn plan(spec: &VmSpec, pins: &mut Pins) -> Result<Vec<Slot>, NoPin> {
    let models: Vec<_> = KINDS.iter().flat_map(|kind| kind(spec)).collect();
    match spec.virtio {
        _ if models.is_empty() => Ok(Vec::new()),
        VirtioSpec::Pci => Ok(vec![pci::plan(spec, models)]),
        VirtioSpec::Mmio => mmio::plan(models, pins, mmio::Announced::InDsdt),
        VirtioSpec::MmioCmdline => mmio::plan(models, pins, mmio::Announced::OnCmdline),
        VirtioSpec::MmioBoth => mmio::plan(models, pins, mmio::Announced::Twice),
    }
}
