// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices on PCI (`--virtio pci`): the root, and a function for each device.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use acpi_tables::Aml;
use pci_root::acpi::{EcamReservation, HostBridge};
use pci_root::hotplug::{HOTPLUG_SIZE, HotplugRegisters, HotplugState, Written};
use pci_root::{
    Bar, Capability, Class, Function, FunctionBuilder, Ids, Message, MsiSink, Msix, MsixPlace,
    PciDevice, PciRoot, Reply, RootBuilder, RootState, Span, Windows,
};
use serde::{Deserialize, Serialize};
use vcpu_loop::Next;
use vcpu_loop::bus::{BusDevice, Place};
use virtio_transport::pci::{
    self as virtio_pci, BAR_SIZE, MSIX_PBA, MSIX_TABLE, NOTIFY, NOTIFY_STEP, PciState,
    PciTransport, Vectors,
};

use super::doorbells::Doorbells;
use super::io_thread::DRAIN;
use super::port::PortState;
use super::{Memory, Model, Port};
use crate::config::VmSpec;
use crate::devices::device::Parts;
use crate::devices::{Device, RestoreError, Saved, Slot, SuspendError, Window};
use crate::irq::{Doorbell, MsiSender};
use crate::layout;

/// The root's name in snapshots.
const ID: &str = "pci";
/// The version of its state.
const VERSION: u32 = 1;
/// The ID of virtio's capabilities (`PCI_CAP_ID_VNDR`).
const VENDOR_SPECIFIC: u8 = 9;

/// The number of the window with the registers for hotplug. It comes after the root's own.
const HOTPLUG: usize = pci_root::Window::ALL.len();

/// The slot of the root.
pub(super) fn plan(spec: &VmSpec, models: Vec<Model>) -> Slot {
    let windows = windows(spec.memory);
    let spans = pci_root::Window::ALL.map(|window| windows.span(window));
    let mut ranges: Vec<_> = spans
        .map(|span| Window::memory(span.base, span.size))
        .into();
    ranges.push(Window::memory(layout::PCI_HOTPLUG, HOTPLUG_SIZE));
    let mut slot = Slot::new(ID, &ranges, move |parts| {
        Ok(Arc::new(Root::new(windows, &models, parts)?))
    });
    HostBridge::new(&windows).to_aml_bytes(&mut slot.aml);
    // Slots for hotplug would cost each guest 31 devices. The registers only have their address yet.
    EcamReservation::new(&windows)
        .with_hotplug(layout::PCI_HOTPLUG)
        .to_aml_bytes(&mut slot.aml);
    slot.pci = Some(windows);
    slot
}

/// The root's windows in a machine with `memory` bytes of RAM.
fn windows(memory: u64) -> Windows {
    Windows {
        ecam: layout::PCI_ECAM,
        buses: layout::PCI_BUSES,
        low: Span::new(layout::PCI_LOW, layout::PCI_LOW_SIZE),
        high: Span::new(layout::pci_high(memory), layout::PCI_HIGH_SIZE),
    }
}

/// The notification address of a queue. The value written doesn't matter.
fn doorbell(base: u64, queue: u16) -> Doorbell {
    Doorbell {
        address: base + NOTIFY + u64::from(queue) * u64::from(NOTIFY_STEP),
        data: None,
    }
}

/// Sends messages to the guest's local APICs.
struct Apics(MsiSender);

impl MsiSink for Apics {
    fn send(&self, message: Message) {
        // Fails if no local APIC has the address that the guest chose.
        let _ = self.0.signal(message.address, message.data);
    }
}

struct MsixVectors(Arc<Msix>);

impl Vectors for MsixVectors {
    fn count(&self) -> u16 {
        self.0.vectors()
    }

    fn fire(&self, vector: u16) {
        let _ = self.0.fire(vector);
    }
}

/// A device behind BAR 0 of a function.
struct Behind(Arc<Port<PciTransport>>);

impl PciDevice for Behind {
    fn read_bar(&self, _: u8, offset: u64, data: &mut [u8]) -> Reply {
        self.0.registers().read_bar(offset, data);
        Reply::Done
    }

    fn write_bar(&self, _: u8, offset: u64, data: &[u8]) -> Reply {
        self.0.access(|transport| transport.write_bar(offset, data));
        Reply::Done
    }

    fn read_capability(&self, _: usize, offset: u8, data: &mut [u8]) {
        self.0.registers().read_window(offset, data);
    }

    fn write_capability(&self, _: usize, offset: u8, data: &[u8]) {
        self.0
            .access(|transport| transport.write_window(offset, data));
    }

    fn moved(&self, function: &Function) {
        self.0.doorbells().moved(|| function.decoded(0));
    }
}

/// The function of a device, and its port.
fn function(
    model: &Model,
    memory: &Memory,
    parts: &mut Parts<'_>,
) -> io::Result<(Function, Arc<Port<PciTransport>>)> {
    let device = (model.make)(parts)?;
    let layout = device.layout();
    let sink = Arc::new(Apics(parts.irqs.msi()));
    let msix = Msix::new(PciTransport::vectors(&layout), sink).map_err(io::Error::other)?;
    let msix = Arc::new(msix);
    let vectors = Arc::new(MsixVectors(Arc::clone(&msix)));
    let doorbells = Doorbells::new(parts.irqs, layout.queues.len(), None, doorbell);
    let transport =
        PciTransport::new(layout, device.config(), vectors).map_err(io::Error::other)?;
    let builder = outside(&transport, msix).map_err(io::Error::other)?;
    let interrupt = transport.interrupt();
    let port = Port::new(
        &model.id,
        device,
        (transport, interrupt),
        doorbells,
        memory,
        &parts.io.get(model.thread.as_ref()),
    )?;
    let function = builder.build(Arc::new(Behind(Arc::clone(&port))));
    Ok((function, port))
}

/// A function without its device: the configuration space that a guest reads before it starts a driver.
fn outside(
    transport: &PciTransport,
    msix: Arc<Msix>,
) -> Result<FunctionBuilder, pci_root::function::FunctionError> {
    let identity = transport.identity();
    let [base, sub, interface] = identity.class;
    let class = Class {
        base,
        sub,
        interface,
    };
    let ids = Ids {
        revision: identity.revision,
        subsystem_vendor: identity.subsystem_vendor,
        subsystem: identity.subsystem,
        ..Ids::new(identity.vendor, identity.device, class)
    };
    let place = MsixPlace {
        table: (0, MSIX_TABLE),
        pba: (0, MSIX_PBA),
    };
    let mut builder = FunctionBuilder::new(ids)?
        .bar(0, Bar::memory64(BAR_SIZE))?
        .msix(msix, place)?;
    for capability in transport.capabilities() {
        builder = builder.capability(&match capability {
            virtio_pci::Capability::Fixed(body) => Capability::fixed(VENDOR_SPECIFIC, body),
            virtio_pci::Capability::Live(len) => Capability::live(VENDOR_SPECIFIC, len),
        })?;
    }
    Ok(builder)
}

/// The root, with all devices.
struct Root {
    root: PciRoot,
    /// They never have news: no device comes or goes.
    hotplug: HotplugRegisters,
    ports: Vec<Arc<Port<PciTransport>>>,
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
    fn new(windows: Windows, models: &[Model], parts: &mut Parts<'_>) -> io::Result<Self> {
        let mut builder = RootBuilder::new(windows).map_err(io::Error::other)?;
        let memory = Arc::new(parts.memory.clone());
        let mut ports = Vec::with_capacity(models.len());
        for model in models {
            let (function, port) = function(model, &memory, parts)?;
            builder.push(function).map_err(io::Error::other)?;
            ports.push(port);
        }
        let root = builder.build().map_err(io::Error::other)?;
        Ok(Root {
            root,
            hotplug: HotplugRegisters::default(),
            ports,
        })
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
                // Nobody asked the guest to give up a device, so there is nothing to do.
                Written::Done | Written::Eject(_) => Next::Continue,
                Written::Unclaimed => Next::Unclaimed,
            },
            None => Next::Unclaimed,
        }
    }
}

impl Root {
    fn state(&self, by: Instant) -> Result<State, SuspendError> {
        let devices = self.ports.iter().map(|port| port.save(by));
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
        self.hotplug.restore(&state.hotplug);
        let mut pairs = self.ports.iter().zip(state.devices);
        pairs.try_for_each(|(port, state)| port.restore(state))
    }
}

impl Device for Root {
    fn save(&self, by: Instant) -> Result<Option<Saved>, SuspendError> {
        Saved::new(ID, VERSION, &self.state(by)?)
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: State = saved.read_as(ID, VERSION)?;
        if state.devices.len() != self.ports.len() {
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
            .finish()
    }
}
