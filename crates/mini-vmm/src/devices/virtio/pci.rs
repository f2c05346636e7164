// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices on PCI (`--virtio pci`): the plan of the root, and a function for each device.

use std::io;
use std::sync::Arc;

use acpi_tables::Aml;
use pci_root::acpi::{EcamReservation, HostBridge, HotplugController};
use pci_root::hotplug::HOTPLUG_SIZE;
use pci_root::{
    Bar, Capability, Class, Function, FunctionBuilder, Ids, Message, MsiSink, Msix, MsixPlace,
    PciDevice, Reply, Span, Windows,
};
use virtio_transport::pci::{
    self as virtio_pci, BAR_SIZE, MSIX_PBA, MSIX_TABLE, NOTIFY, NOTIFY_STEP, PciTransport, Vectors,
};

use super::doorbells::Doorbells;
use super::root::{ID, Root};
use super::{Memory, Model, Port, Slots};
use crate::config::VmSpec;
use crate::devices::device::Parts;
use crate::devices::{Slot, Window};
use crate::irq::{Doorbell, MsiSender};
use crate::layout;

/// The ID of virtio's capabilities (`PCI_CAP_ID_VNDR`).
const VENDOR_SPECIFIC: u8 = 9;

/// The slot of the root.
pub(super) fn plan(spec: &VmSpec, models: Vec<Model>) -> Slot {
    let windows = windows(spec.memory);
    let spans = pci_root::Window::ALL.map(|window| windows.span(window));
    let mut ranges: Vec<_> = spans
        .map(|span| Window::memory(span.base, span.size))
        .into();
    ranges.push(Window::memory(layout::PCI_HOTPLUG, HOTPLUG_SIZE));
    let slots = spec.hotplug.0;
    let mut slot = Slot::new(ID, &ranges, move |parts| {
        let root = Arc::new(Root::new(windows, slots, &models, parts)?);
        if slots > 0 {
            parts.offers.slots = Some(Arc::clone(&root) as Arc<dyn Slots>);
        }
        Ok(root)
    });
    let ecam = EcamReservation::new(&windows);
    HostBridge::new(&windows)
        .with_hotplug(slots)
        .to_aml_bytes(&mut slot.aml);
    match slots {
        // Slots cost each guest a device. Without them the registers only have their address.
        0 => ecam
            .with_hotplug(layout::PCI_HOTPLUG)
            .to_aml_bytes(&mut slot.aml),
        _ => {
            HotplugController::new(layout::PCI_HOTPLUG).to_aml_bytes(&mut slot.aml);
            ecam.to_aml_bytes(&mut slot.aml);
        }
    }
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
pub(super) fn function(
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
