// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices as memory-mapped registers, with an interrupt line each (`--virtio mmio`).

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use acpi_tables::Aml;
use acpi_tables::aml::{Device as AmlDevice, Interrupt, Memory32Fixed, Name, ResourceTemplate};
use vcpu_loop::Next;
use vcpu_loop::bus::{BusDevice, Place};
use virtio_transport::mmio::{Line, MmioTransport, QUEUE_NOTIFY, SIZE};

use super::doorbells::Doorbells;
use super::{Model, Port};
use crate::devices::device::Parts;
use crate::devices::{Device, RestoreError, Saved, Slot, SuspendError, Window};
use crate::irq::{Doorbell, IrqLine, NoPin, Pins};
use crate::layout::{VIRTIO_MMIO, VIRTIO_MMIO_SIZE};

/// The version of its state.
const VERSION: u32 = 1;
/// The vendor ID "mini". No driver uses it.
const VENDOR: u32 = 0x696e_696d;

/// How the guest finds the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Announced {
    /// In the DSDT.
    InDsdt,
    /// On the kernel's command line, for kernels that read no ACPI tables.
    OnCmdline,
    /// In both, as Firecracker does. Linux takes the device that it finds first. It refuses the second one, whose
    /// memory is taken, with a line in its log.
    Twice,
}

/// A slot for each device.
pub(super) fn plan(
    models: Vec<Model>,
    pins: &mut Pins,
    announced: Announced,
) -> Result<Vec<Slot>, NoPin> {
    // There are fewer pins than windows.
    const _: () = assert!(VIRTIO_MMIO_SIZE / SIZE > crate::layout::IOAPIC_PINS as u64);
    let numbered = (0..).zip(models);
    let slot = |(number, model): (u8, Model)| {
        let base = VIRTIO_MMIO + u64::from(number) * SIZE;
        // Kernels without ACPI know only the ISA pins.
        let gsi = match announced {
            Announced::InDsdt => pins.take(),
            Announced::OnCmdline | Announced::Twice => pins.take_isa(),
        }?;
        let id = model.id.clone();
        let mut slot = Slot::new(id, &[Window::memory(base, SIZE)], move |parts| {
            Ok(Arc::new(MmioDevice::new(&model, base, parts)?))
        });
        slot.gsi = Some(gsi);
        if announced != Announced::OnCmdline {
            describe(number, base, gsi, &mut slot.aml);
        }
        if announced != Announced::InDsdt {
            slot.cmdline = Some(format!("virtio_mmio.device={SIZE:#x}@{base:#x}:{gsi}"));
        }
        Ok(slot)
    };
    numbered.map(slot).collect()
}

/// Its description in the DSDT, where Linux finds it as `LNRO0005`.
fn describe(number: u8, base: u64, gsi: u32, aml: &mut Vec<u8>) {
    // Both fit: the window is below 4 GiB.
    let memory = Memory32Fixed::new(true, base as u32, SIZE as u32);
    let interrupt = Interrupt::new(true, true, false, false, gsi);
    let resources = ResourceTemplate::new(vec![&memory, &interrupt]);
    AmlDevice::new(
        format!("_SB_.VM{number:02X}").as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &number),
            &Name::new("_CRS".into(), &resources),
        ],
    )
    .to_aml_bytes(aml);
}

/// The notification address of a queue.
fn doorbell(base: u64, queue: u16) -> Doorbell {
    Doorbell {
        address: base + QUEUE_NOTIFY,
        data: Some(queue.into()),
    }
}

struct Edge(IrqLine);

impl Line for Edge {
    fn raise(&self) {
        if let Err(error) = self.0.raise() {
            log::error!(
                "can't interrupt the guest ({error}); raise the limit on open files (ulimit -n)"
            );
        }
    }
}

struct MmioDevice {
    id: String,
    port: Arc<Port<MmioTransport>>,
}

impl MmioDevice {
    fn new(model: &Model, base: u64, parts: &mut Parts<'_>) -> io::Result<Self> {
        let device = (model.make)(parts)?;
        let layout = device.layout();
        let doorbells = Doorbells::new(parts.irqs, layout.queues.len(), Some(base), doorbell);
        let line = Arc::new(Edge(parts.edge()));
        let transport =
            MmioTransport::new(layout, device.config(), VENDOR, line).map_err(io::Error::other)?;
        let interrupt = transport.interrupt();
        let memory = Arc::new(parts.memory.clone());
        let port = Port::new(
            &model.id,
            device,
            (transport, interrupt),
            doorbells,
            &memory,
            &parts.io.get(model.thread.as_ref()),
        )?;
        Ok(MmioDevice {
            id: model.id.to_string(),
            port,
        })
    }
}

impl BusDevice for MmioDevice {
    fn read(&self, place: Place, data: &mut [u8]) -> Next {
        self.port.registers().read(place.offset, data);
        Next::Continue
    }

    fn write(&self, place: Place, data: &[u8]) -> Next {
        self.port
            .access(|transport| transport.write(place.offset, data));
        Next::Continue
    }
}

impl Device for MmioDevice {
    fn save(&self, by: Instant) -> Result<Option<Saved>, SuspendError> {
        Saved::new(&self.id, VERSION, &self.port.save(by)?)
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        self.port.restore(saved.read_as(&self.id, VERSION)?)
    }
}

impl fmt::Debug for MmioDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.port.fmt(f)
    }
}
