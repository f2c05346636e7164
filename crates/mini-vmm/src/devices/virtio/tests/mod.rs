// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices with their transports, on their threads, driven through the bus. No KVM is needed.

mod driven;
mod hooked;
mod pausing;
mod pci;
mod planned;
mod plugged;
mod saved;
mod threads;

use std::sync::Arc;

use vcpu_loop::bus::{Bus, BusBuilder};
use virtio_transport::testing::{self, Buffers, DriverRing, Echo, Used};
use vm_memory::{Bytes, GuestAddress};

use super::mmio::{self, Announced};
use super::{Memory, Model};
use crate::config::VmSpec;
use crate::devices::{Backends, Connections, DeviceSet, Slot};
use crate::irq::{Irqs, Pins};
use crate::layout::VIRTIO_MMIO;
use crate::outcome::OutcomeLatch;

const MEMORY: usize = 1 << 20;
/// The address of a driver's buffers.
const READABLE: u64 = 0x8_0000;
const WRITABLE: u64 = 0x9_0000;
/// What it sends, and what the echo device returns.
const SENT: [u8; 4] = [1, 2, 3, 4];

fn echo() -> Model {
    Model::new("echo", |_| Ok(Box::new(Echo::new())))
}
/// Devices on a bus, with guest memory.
struct Rig {
    /// Where the registers of the device are that is driven by MMIO.
    base: u64,
    bases: Vec<u64>,
    set: DeviceSet,
    latch: OutcomeLatch,
    bus: Arc<Bus>,
    memory: Memory,
}

impl Rig {
    fn new(slots: &[Slot]) -> Self {
        let memory = testing::memory(MEMORY);
        let (latch, irqs) = (OutcomeLatch::new().unwrap(), Irqs::unconnected());
        let mut bus = BusBuilder::new();
        let spec = VmSpec::new("vmlinux");
        let connections = Connections {
            spec: &spec,
            output: None,
            backends: &Backends::default(),
            outcome: &latch,
            irqs: &irqs,
            memory: &memory,
        };
        let set = DeviceSet::build(slots, &connections, &mut bus).unwrap();
        Rig {
            base: VIRTIO_MMIO,
            bases: slots.iter().map(|slot| slot.windows[0].base).collect(),
            set,
            latch,
            bus: bus.build(),
            memory,
        }
    }

    fn mmio(model: Model) -> Self {
        Rig::several(vec![model])
    }

    fn several(models: Vec<Model>) -> Self {
        Rig::new(&mmio::plan(models, &mut Pins::new(), Announced::InDsdt).unwrap())
    }

    /// Selects the device to drive.
    fn select(&mut self, number: usize) {
        self.base = self.bases[number];
    }

    /// Starts all devices, each with its first queue at an address of its own. The last one stays selected.
    fn start_each(&mut self) -> Vec<DriverRing> {
        let numbers = 0..self.bases.len();
        let start = |number| {
            self.select(number);
            self.start_at(0x4000 * number as u64, 1).remove(0)
        };
        numbers.map(start).collect()
    }

    fn write(&self, offset: u64, value: u32) {
        let _ = self
            .bus
            .mmio_write(self.base + offset, &value.to_le_bytes());
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        let _ = self.bus.mmio_read(self.base + offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Resets a device and accepts only the mandatory feature.
    fn negotiate(&self) {
        for (offset, value) in [(0x70, 0), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)] {
            self.write(offset, value);
        }
    }

    /// Starts a device through MMIO, with its first `queues` queues.
    fn start(&self, queues: u32) -> Vec<DriverRing> {
        self.start_at(0, queues)
    }

    /// Does that with the queues at `at`.
    fn start_at(&self, at: u64, queues: u32) -> Vec<DriverRing> {
        self.negotiate();
        let rings = (0..queues).map(|queue| {
            self.write(0x30, queue);
            let size = 32;
            let ring = DriverRing::new(&self.memory, at + u64::from(queue) * 0x1000, size);
            let at = ring.state();
            for (offset, value) in [
                (0x38, u64::from(size)),
                (0x80, at.descriptors),
                (0x90, at.available),
                (0xa0, at.used),
                (0x44, 1),
            ] {
                self.write(offset, value as u32);
            }
            ring
        });
        let rings = rings.collect();
        self.write(0x70, 15);
        rings
    }

    fn has_thread(&self) -> bool {
        format!("{:?}", self.set).contains("is_running: true")
    }
}

/// Makes a request available.
fn send(memory: &Memory, ring: &mut DriverRing) {
    memory.write_slice(&SENT, GuestAddress(READABLE)).unwrap();
    ring.send(&Buffers {
        readable: vec![(READABLE, 4)],
        writable: vec![(WRITABLE, 4)],
    });
}

/// Waits for the next answer.
fn answer(ring: &mut DriverRing) -> Used {
    loop {
        match ring.take() {
            Some(used) => return used,
            None => std::thread::yield_now(),
        }
    }
}
/// Copies guest memory to another machine.
fn copy(from: &Rig, to: &Rig) {
    let mut image = vec![0; MEMORY];
    from.memory.read_slice(&mut image, GuestAddress(0)).unwrap();
    to.memory.write_slice(&image, GuestAddress(0)).unwrap();
}
