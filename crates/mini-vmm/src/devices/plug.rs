// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks and networks that come and go while the guest runs.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_models::block::Image;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::Backends;
use super::device::{Offers, Parts};
use super::network::{self, Network, NetworkError};
use super::set::{DRAIN, DeviceSet};
use super::virtio::{self, SlotError, Slots};
use crate::config::{DiskSpec, MaySlot, NetSpec, VmSpec};
use crate::irq::Irqs;
use crate::outcome::OutcomeLatch;

/// How long the host's network may take to be connected. Meanwhile the API waits.
const CONNECT: Duration = Duration::from_secs(5);

/// A device to add, with what it uses on the host. Its description names its slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewDevice {
    /// A disk and its image.
    Disk(DiskSpec, Image),
    /// A network and its link.
    Net(NetSpec, NewLink),
}

/// The open link of a new network. Clones are the same one.
#[derive(Clone, Debug)]
pub struct NewLink(Network);

impl NewLink {
    /// Opens the link of a network: a tap, or passt.
    ///
    /// # Errors
    /// [`NetworkError`] names what can't be used, and why.
    pub(crate) fn open(net: &NetSpec) -> Result<Self, NetworkError> {
        let by = Instant::now() + CONNECT;
        network::open_new(net, &|| Instant::now() < by).map(NewLink)
    }
}

impl PartialEq for NewLink {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0.control, &other.0.control)
    }
}

impl Eq for NewLink {}

impl NewDevice {
    /// The slot that its description names.
    pub fn slot(&self) -> Option<u8> {
        match self {
            NewDevice::Disk(disk, _) => disk.slot,
            NewDevice::Net(net, _) => net.slot,
        }
    }
}

/// Two devices with one hash may still differ.
impl Hash for NewDevice {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.slot().hash(state);
    }
}

impl Backends {
    /// Adds what a device uses, and its description to `spec`.
    pub(crate) fn add(&mut self, device: &NewDevice, spec: &mut VmSpec) {
        match device {
            NewDevice::Disk(disk, image) => {
                // The seed of cloud-init stays the last one.
                self.disks.insert(spec.disk.len(), image.clone());
                spec.disk.push(disk.clone());
            }
            NewDevice::Net(net, NewLink(network)) => {
                let mut net = net.clone();
                // As for other networks, a snapshot says it.
                net.mac = Some(network.config.mac);
                self.nets.push(network.clone());
                spec.net.push(net);
            }
        }
    }

    /// Removes what the device in a slot uses, and its description from `spec`.
    pub(crate) fn remove(&mut self, slot: u8, spec: &mut VmSpec) {
        if let Some(at) = index(&spec.disk, slot) {
            spec.disk.remove(at);
            self.disks.remove(at);
        }
        if let Some(at) = index(&spec.net, slot) {
            spec.net.remove(at);
            self.nets.remove(at);
        }
    }
}

fn index(devices: &[impl MaySlot], slot: u8) -> Option<usize> {
    devices
        .iter()
        .position(|device| device.slot() == Some(slot))
}

/// What new devices are created with. Only a machine with slots has it.
#[derive(Debug)]
pub(super) struct Later {
    pub outcome: OutcomeLatch,
    pub irqs: Irqs,
    pub memory: GuestMemoryMmap,
}

impl DeviceSet {
    /// Sets what is written when the guest gives up a device.
    pub(crate) fn wake_by(&self, waker: impl FnOnce() -> Arc<EventFd>) {
        if let Some(slots) = &self.offers.slots {
            slots.wake_by(waker());
        }
    }

    /// Creates the device that `spec` describes in `slot`, and tells the guest.
    ///
    /// # Errors
    /// [`SlotError`]; nothing has changed then.
    pub(crate) fn plug(
        &mut self,
        slot: u8,
        spec: &VmSpec,
        backends: &Backends,
    ) -> Result<(), SlotError> {
        let new = self.create(spec, backends, |slots, parts| {
            virtio::plug(spec, slot, slots, parts)
        })?;
        if let Some(at) = index(&spec.disk, slot) {
            insert(&mut self.offers.disks, at, new.disks);
            insert(&mut self.offers.disk_counters, at, new.disk_counters);
        }
        if let Some(at) = index(&spec.net, slot) {
            insert(&mut self.offers.nets, at, new.nets);
            insert(&mut self.offers.net_counters, at, new.net_counters);
        }
        self.tell();
        Ok(())
    }

    /// Lets `plug` create a device with the machine's parts. Returns what that provides to the process.
    pub(super) fn create(
        &self,
        spec: &VmSpec,
        backends: &Backends,
        plug: impl FnOnce(&dyn Slots, &mut Parts<'_>) -> Result<(), SlotError>,
    ) -> Result<Offers, SlotError> {
        let (Some(slots), Some(later)) = (self.slots(), &self.later) else {
            return Err(SlotError::None);
        };
        let mut offers = Offers::default();
        let mut parts = Parts {
            spec,
            outcome: &later.outcome,
            output: None,
            backends,
            gsi: None,
            irqs: &later.irqs,
            memory: &later.memory,
            io: &self.io,
            offers: &mut offers,
            events: &mut Vec::new(),
        };
        plug(slots, &mut parts)?;
        Ok(offers)
    }

    /// Asks the guest to give up the device in a slot.
    pub(crate) fn ask_for(&self, slot: u8) {
        if let Some(slots) = &self.offers.slots {
            slots.ask(slot);
            self.tell();
        }
    }

    /// Withdraws that. Returns `false` if the guest has given it up.
    pub(crate) fn withdraw(&self, slot: u8) -> bool {
        self.slots().is_none_or(|slots| slots.withdraw(slot))
    }

    /// Whether the guest has given up the device in a slot.
    pub(crate) fn is_given_up(&self, slot: u8) -> bool {
        self.slots().is_some_and(|slots| !slots.has_device(slot))
    }

    /// Removes the device that `spec` describes in `slot`, whether the guest has given it up or not.
    pub(crate) fn unplug(&mut self, slot: u8, spec: &VmSpec) {
        let Some(slots) = &self.offers.slots else {
            return;
        };
        let was_there = slots.has_device(slot);
        slots.remove(slot, Instant::now() + DRAIN);
        if was_there {
            self.tell();
        }
        if let Some(at) = index(&spec.disk, slot) {
            self.offers.disks.remove(at);
            self.offers.disk_counters.remove(at);
        }
        if let Some(at) = index(&spec.net, slot) {
            self.offers.nets.remove(at);
            self.offers.net_counters.remove(at);
        }
    }

    fn slots(&self) -> Option<&dyn Slots> {
        self.offers.slots.as_deref()
    }

    fn tell(&self) {
        let told = self.offers.plug_events.as_ref().map(|events| events.tell());
        if let Some(Err(error)) = told {
            log::warn!(
                "the guest is not told of a device that comes or goes: {error}; raise the limit on open files (ulimit -n)"
            );
        }
    }
}

fn insert<T>(list: &mut Vec<T>, at: usize, new: Vec<T>) {
    list.splice(at..at, new);
}
