// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The PCI root with all devices, of which some come and go.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use pci_root::hotplug::{HotplugRegisters, HotplugState, Written};
use pci_root::{Address, PciRoot, Reply, RootBuilder, RootState, Windows};
use serde::{Deserialize, Serialize};
use vcpu_loop::Next;
use vcpu_loop::bus::{BusDevice, Place};
use virtio_transport::pci::{PciState, PciTransport};
use vmm_sys_util::eventfd::EventFd;

use super::io_thread::DRAIN;
use super::port::PortState;
use super::slots::{SlotError, Slots};
use super::{Memory, Model, Port, pci};
use crate::devices::device::Parts;
use crate::devices::{Device, RestoreError, Saved, SuspendError};
use crate::sync::lock;

/// The root's name in snapshots.
pub(super) const ID: &str = "pci";
/// The version of its state.
const VERSION: u32 = 1;

/// The number of the window with the registers for hotplug. It comes after the root's own.
const HOTPLUG: usize = pci_root::Window::ALL.len();

/// A device's registers.
type Registers = Arc<Port<PciTransport>>;

/// The root, with all devices.
pub(super) struct Root {
    root: PciRoot,
    hotplug: HotplugRegisters,
    /// Slots whose device the guest was asked to give up. It can give up no others.
    asked: AtomicU32,
    /// Wakes whoever waits for that.
    waker: OnceLock<Arc<EventFd>>,
    /// Ascending by [`order`] of their addresses.
    ports: Mutex<Vec<(Address, Registers)>>,
    memory: Memory,
}

/// The order of devices in a saved state: as they were pushed, first all device numbers, then further functions.
fn order(address: Address) -> (bool, u16) {
    (address.function() != 0, address.bits())
}

/// The saved state of the root and its devices.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    root: RootState,
    hotplug: HotplugState,
    devices: Vec<PortState<PciState>>,
}

impl Root {
    pub fn new(
        windows: Windows,
        slots: u8,
        models: &[Model],
        parts: &mut Parts<'_>,
    ) -> io::Result<Self> {
        let mut builder = RootBuilder::new(windows).map_err(io::Error::other)?;
        builder.hotplug(slots);
        let memory = Arc::new(parts.memory.clone());
        let mut ports = Vec::with_capacity(models.len());
        for model in models {
            let (function, port) = pci::function(model, &memory, parts)?;
            let address = match model.slot.and_then(|slot| Address::new(0, slot, 0)) {
                Some(address) => builder.insert(address, function).map(|()| address),
                None => builder.push(function),
            };
            ports.push((address.map_err(io::Error::other)?, port));
        }
        ports.sort_by_key(|(address, _)| order(*address));
        Ok(Root {
            root: builder.build().map_err(io::Error::other)?,
            hotplug: HotplugRegisters::default(),
            asked: AtomicU32::new(0),
            waker: OnceLock::new(),
            ports: Mutex::new(ports),
            memory,
        })
    }

    /// The guest gives up the devices in these slots. It may, where it was asked to. Whoever asked does the rest.
    fn eject(&self, slots: u32) {
        let gone = self.asked.fetch_and(!slots, Ordering::AcqRel) & slots;
        for slot in (0..u32::BITS as u8).filter(|slot| gone & bit(*slot) != 0) {
            let _ = self.root.unplug(slot);
        }
        if gone != 0
            && let Some(waker) = self.waker.get()
        {
            // Fails only if the counter is full, and then it is awake anyway.
            let _ = waker.write(1);
        }
    }
}

fn bit(slot: u8) -> u32 {
    1u32.checked_shl(slot.into()).unwrap_or(0)
}

impl Slots for Root {
    fn wake_by(&self, waker: Arc<EventFd>) {
        let _ = self.waker.set(waker);
    }

    fn plug(&self, model: &Model, parts: &mut Parts<'_>) -> Result<(), SlotError> {
        let host = |reason| SlotError::Host {
            device: model.id.to_string(),
            reason,
        };
        let slot = model.slot.unwrap_or(0);
        let (function, port) = pci::function(model, &self.memory, parts).map_err(host)?;
        let address = match self.root.plug(slot, function) {
            Ok(address) => address,
            Err(error) => {
                // It has never run.
                port.remove(Instant::now());
                return Err(SlotError::Slot(error));
            }
        };
        let mut ports = lock(&self.ports);
        let at = ports.partition_point(|(other, _)| order(*other) < order(address));
        ports.insert(at, (address, port));
        drop(ports);
        self.hotplug.announce_up(slot);
        Ok(())
    }

    fn ask(&self, slot: u8) {
        self.asked.fetch_or(bit(slot), Ordering::AcqRel);
        self.hotplug.ask_down(slot);
    }

    fn withdraw(&self, slot: u8) -> bool {
        self.asked.fetch_and(!bit(slot), Ordering::AcqRel) & bit(slot) != 0
    }

    fn has_device(&self, slot: u8) -> bool {
        let address = Address::new(0, slot, 0);
        address.is_some_and(|address| self.root.function(address).is_some())
    }

    fn remove(&self, slot: u8, by: Instant) -> bool {
        self.withdraw(slot);
        if self.root.unplug(slot).is_some() {
            // The guest has not given it up, and looks after it.
            self.hotplug.announce_up(slot);
        }
        let Some(address) = Address::new(0, slot, 0) else {
            return true;
        };
        let mut ports = lock(&self.ports);
        let Some(at) = ports.iter().position(|(other, _)| *other == address) else {
            return true;
        };
        let (_, port) = ports.remove(at);
        drop(ports);
        let has_ended = port.remove(by);
        if !has_ended {
            log::warn!(
                "requests of device {} don't end in time; it keeps what it uses on the host until the machine ends",
                port.id()
            );
        }
        has_ended
    }
}

/// Converts a reply for the bus.
fn next(reply: Reply) -> Next {
    match reply {
        Reply::Done => Next::Continue,
        Reply::Unclaimed => Next::Unclaimed,
    }
}

impl BusDevice for Root {
    fn read(&self, place: Place, data: &mut [u8]) -> Next {
        match pci_root::Window::ALL.get(place.window) {
            Some(window) => next(self.root.read(*window, place.offset, data)),
            None if place.window == HOTPLUG => next(self.hotplug.read(place.offset, data)),
            None => Next::Unclaimed,
        }
    }

    fn write(&self, place: Place, data: &[u8]) -> Next {
        match pci_root::Window::ALL.get(place.window) {
            Some(window) => next(self.root.write(*window, place.offset, data)),
            None if place.window == HOTPLUG => match self.hotplug.write(place.offset, data) {
                Written::Done => Next::Continue,
                Written::Eject(slots) => {
                    self.eject(slots);
                    Next::Continue
                }
                Written::Unclaimed => Next::Unclaimed,
            },
            None => Next::Unclaimed,
        }
    }
}

impl Root {
    fn state(&self, by: Instant) -> Result<State, SuspendError> {
        let ports = lock(&self.ports);
        let devices = ports.iter().map(|(_, port)| port.save(by));
        Ok(State {
            root: self.root.save(),
            hotplug: self.hotplug.save(),
            devices: devices.collect::<Result<_, _>>()?,
        })
    }

    /// Restores a state with the right number of devices. After an error, some may have theirs.
    fn set_state(&self, state: State) -> Result<(), RestoreError> {
        let misfit = |reason| RestoreError::Virtio {
            device: ID.to_owned(),
            reason: Box::new(reason),
        };
        self.root.restore(&state.root).map_err(misfit)?;
        // Whoever asked the guest to give up a device waits for it no more.
        let hotplug = HotplugState {
            down: 0,
            ..state.hotplug
        };
        self.hotplug.restore(&hotplug);
        let ports = lock(&self.ports);
        let mut pairs = ports.iter().zip(state.devices);
        pairs.try_for_each(|((_, port), state)| port.restore(state))
    }
}

impl Device for Root {
    fn save(&self, by: Instant) -> Result<Option<Saved>, SuspendError> {
        Saved::new(ID, VERSION, &self.state(by)?)
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: State = saved.read_as(ID, VERSION)?;
        if state.devices.len() != lock(&self.ports).len() {
            return Err(RestoreError::Devices { id: ID.to_owned() });
        }
        let before = self.state(Instant::now() + DRAIN)?;
        self.set_state(state).inspect_err(|_| {
            // They had these states before.
            let _ = self.set_state(before);
        })
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Root")
            .field("root", &self.root)
            .field("hotplug", &self.hotplug)
            .field("ports", &self.ports)
            .finish_non_exhaustive()
    }
}
