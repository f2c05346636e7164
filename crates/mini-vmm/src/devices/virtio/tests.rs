// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices with their transports, on their thread, driven through the bus. No KVM is needed.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use vcpu_loop::bus::{Bus, BusBuilder};
use virtio_transport::device::{
    Active, Device as VirtioDevice, Event, Io, RestoreError as Misfit, StartError,
};
use virtio_transport::layout::Layout;
use virtio_transport::queue::{NotDrained, QueueState};
use virtio_transport::testing::{Buffers, DriverRing, Echo, Used};
use virtio_transport::{Broken, testing};

use super::mmio::Announced;
use super::{Memory, Model, mmio, pci};
use crate::config::{VirtioSpec, VmSpec};
use crate::devices::{Backends, Connections, DeviceSet, RestoreError, Saved, Slot, SuspendError};
use crate::irq::{Irqs, NoPin, Pins};
use crate::layout::{MIB, PCI_ECAM, PCI_LOW, VIRTIO_MMIO};
use crate::outcome::OutcomeLatch;
use crate::plan::MachinePlan;
use crate::sync::lock;

const MEMORY: usize = 1 << 20;
/// The address of a driver's buffers.
const READABLE: u64 = 0x8_0000;
const WRITABLE: u64 = 0x9_0000;
/// What it sends, and what the echo device returns.
const SENT: [u8; 4] = [1, 2, 3, 4];

fn echo() -> Model {
    Model::new("echo", |_| Ok(Box::new(Echo::new())))
}

fn entropy() -> VmSpec {
    VmSpec {
        rng: true,
        virtio: VirtioSpec::Mmio,
        ..VmSpec::new("vmlinux")
    }
}

/// Devices on a bus, with guest memory.
struct Rig {
    /// Where the registers of the device are that is driven by MMIO.
    base: u64,
    set: DeviceSet,
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
            set,
            bus: bus.build(),
            memory,
        }
    }

    fn mmio(model: Model) -> Self {
        Rig::new(&mmio::plan(vec![model], &mut Pins::new(), Announced::InDsdt).unwrap())
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
        self.negotiate();
        let rings = (0..queues).map(|queue| {
            self.write(0x30, queue);
            let size = 32;
            let ring = DriverRing::new(&self.memory, u64::from(queue) * 0x1000, size);
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
    use vm_memory::{Bytes, GuestAddress};
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

#[test]
fn a_thread_is_made_by_the_first_driver() {
    let rig = Rig::mmio(echo());
    assert_eq!(rig.read(0), u32::from_le_bytes(*b"virt"));
    rig.set.pause().unwrap();
    rig.set.save().unwrap();
    rig.set.resume();
    assert!(!rig.has_thread());
    let mut rings = rig.start(1);
    assert!(rig.has_thread());
    send(&rig.memory, &mut rings[0]);
    rig.write(0x50, 0);
    assert_eq!(answer(&mut rings[0]).len, 4);
    while rig.read(0x60) & 1 == 0 {
        std::thread::yield_now();
    }
}

#[test]
fn a_device_that_pauses_between_requests_gets_its_turn_again() {
    let rig = Rig::mmio(echo());
    let mut rings = rig.start(1);
    let request = Buffers {
        readable: Vec::new(),
        writable: vec![(WRITABLE, 4)],
    };
    // The echo takes 16 at a time.
    for _ in 0..32 {
        rings[0].send(&request);
    }
    rig.write(0x50, 0);
    for _ in 0..32 {
        answer(&mut rings[0]);
    }
}

#[test]
fn a_reset_is_done_when_its_write_returns() {
    let rig = Rig::mmio(echo());
    for _ in 0..3 {
        let mut rings = rig.start(2);
        assert_eq!(rig.read(0x70), 15);
        send(&rig.memory, &mut rings[1]);
        rig.write(0x50, 1);
        rig.write(0x70, 0);
        assert_eq!((rig.read(0x70), rig.read(0x60)), (0, 0));
    }
}

#[test]
fn a_paused_device_touches_nothing_and_looks_at_its_queues_later() {
    let rig = Rig::mmio(echo());
    let mut rings = rig.start(2);
    for queue in [0, 1] {
        send(&rig.memory, &mut rings[queue]);
        rig.write(0x50, queue as u32);
        answer(&mut rings[queue]);
    }
    rig.set.pause().unwrap();
    for ring in &mut rings {
        send(&rig.memory, ring);
        rig.write(0x50, 0);
    }
    // Later requests to the thread are handled later.
    rig.set.save().unwrap();
    assert!(rings.iter_mut().all(|ring| ring.take().is_none()));
    rig.set.resume();
    for ring in &mut rings {
        answer(ring);
    }
}

#[test]
fn a_write_to_the_configuration_is_done_when_it_returns() {
    let rig = Rig::mmio(echo());
    rig.negotiate();
    assert_eq!(
        rig.bus.mmio_write(VIRTIO_MMIO + 0x104, &[9]),
        vcpu_loop::Next::Continue
    );
    assert_eq!(rig.read(0x104) & 0xff, 9);
    assert!(!rig.has_thread(), "an idle device needs none");
    let _rings = rig.start(1);
    let _ = rig.bus.mmio_write(VIRTIO_MMIO + 0x104, &[11]);
    assert_eq!(rig.read(0x104) & 0xff, 11);
}

#[test]
fn a_saved_device_goes_on_in_another_machine() {
    let first = Rig::mmio(echo());
    let mut rings = first.start(2);
    send(&first.memory, &mut rings[1]);
    first.write(0x50, 1);
    answer(&mut rings[1]);
    first.set.pause().unwrap();
    send(&first.memory, &mut rings[1]);
    let saved = first.set.save().unwrap();
    let text = serde_json::to_string(&saved).unwrap();

    let second = Rig::mmio(echo());
    let parsed: Vec<Saved> = serde_json::from_str(&text).unwrap();
    use vm_memory::{Bytes, GuestAddress};
    let mut image = vec![0; MEMORY];
    first
        .memory
        .read_slice(&mut image, GuestAddress(0))
        .unwrap();
    second.memory.write_slice(&image, GuestAddress(0)).unwrap();
    second.set.restore(&parsed).unwrap();
    assert_eq!(second.set.save().unwrap(), saved);
    rings[1].move_to(&second.memory);
    second.set.resume();
    answer(&mut rings[1]);
    send(&second.memory, &mut rings[1]);
    second.write(0x50, 1);
    answer(&mut rings[1]);
}

#[test]
fn a_state_that_does_not_fit_changes_nothing() {
    let first = Rig::mmio(echo());
    let _rings = first.start(2);
    first.set.pause().unwrap();
    let saved = first.set.save().unwrap();
    let fresh = Rig::mmio(echo());
    let before = fresh.set.save().unwrap();
    let edits: [(&str, serde_json::Value); 4] = [
        ("/transport/registers/status", 4.into()),
        ("/transport/interrupt_status", 8.into()),
        ("/device/positions", serde_json::Value::Null),
        ("/device/device/kind", "block".into()),
    ];
    for (field, value) in edits {
        let mut bad = saved.clone();
        *bad[0].state.pointer_mut(field).unwrap() = value;
        let error = fresh.set.restore(&bad).unwrap_err();
        assert!(
            matches!(error, RestoreError::Virtio { .. }),
            "{field}: {error}"
        );
        assert_eq!(fresh.set.save().unwrap(), before, "{field}");
    }
    let mut bad = saved.clone();
    bad[0].version = 2;
    fresh.set.restore(&bad).unwrap_err();
    fresh.set.restore(&saved).unwrap();
    assert_eq!(fresh.set.save().unwrap(), saved);
}

/// An echo that keeps the deadlines of its stops, and may have requests that never end.
struct Watched {
    echo: Echo<Memory>,
    deadlines: Deadlines,
    stops: bool,
}

type Deadlines = Arc<Mutex<Vec<Instant>>>;

impl Watched {
    fn model(deadlines: &Deadlines, stops: bool) -> Model {
        let deadlines = Arc::clone(deadlines);
        Model::new("watched", move |_| {
            Ok(Box::new(Watched {
                echo: Echo::new(),
                deadlines: Arc::clone(&deadlines),
                stops,
            }))
        })
    }
}

impl VirtioDevice<Memory> for Watched {
    type State = <Echo<Memory> as VirtioDevice<Memory>>::State;

    const KIND: &'static str = "watched";
    const VERSION: u32 = 1;

    fn layout(&self) -> Layout {
        VirtioDevice::layout(&self.echo)
    }
    fn config(&self, out: &mut Vec<u8>) {
        VirtioDevice::config(&self.echo, out);
    }
    fn start(&mut self, io: &mut Io<'_>, active: Active<Memory>) -> Result<(), StartError> {
        VirtioDevice::start(&mut self.echo, io, active)
    }
    fn process(&mut self, io: &mut Io<'_>, event: Event) -> Result<(), Broken> {
        VirtioDevice::process(&mut self.echo, io, event)
    }
    fn stop(
        &mut self,
        io: &mut Io<'_>,
        by: Instant,
    ) -> Result<Vec<Option<QueueState>>, NotDrained> {
        lock(&self.deadlines).push(by);
        match self.stops {
            true => VirtioDevice::stop(&mut self.echo, io, by),
            false => Err(NotDrained { in_flight: 1 }),
        }
    }
    fn reset(&mut self) {
        VirtioDevice::reset(&mut self.echo);
    }
    fn save(&self) -> Self::State {
        VirtioDevice::save(&self.echo)
    }
    fn restore(&mut self, version: u32, state: Self::State) -> Result<(), Misfit> {
        VirtioDevice::restore(&mut self.echo, version, state)
    }
}

#[test]
fn all_devices_have_one_deadline() {
    let deadlines = Deadlines::default();
    let models = vec![Watched::model(&deadlines, true); 2];
    let slots = mmio::plan(models, &mut Pins::new(), Announced::InDsdt).unwrap();
    let mut rig = Rig::new(&slots);
    for slot in &slots {
        rig.base = slot.windows[0].base;
        rig.start(1);
    }
    lock(&deadlines).clear();
    rig.set.pause().unwrap();
    let deadlines = lock(&deadlines);
    assert!(
        deadlines.len() == 2 && deadlines[0] == deadlines[1],
        "{deadlines:?}"
    );
}

#[test]
fn a_device_that_does_not_stop_fails_the_pause_and_goes_on() {
    let rig = Rig::mmio(Watched::model(&Deadlines::default(), false));
    let mut ring = rig.start(1).remove(0);
    let error = rig.set.pause().unwrap_err();
    assert!(
        matches!(&error, SuspendError::Busy { device } if device == "watched"),
        "{error}"
    );
    send(&rig.memory, &mut ring);
    rig.write(0x50, 0);
    assert_eq!(answer(&mut ring).len, 4);
    rig.set.save().unwrap_err();
}

#[test]
fn a_driver_that_breaks_a_rule_is_told_and_can_begin_anew() {
    let rig = Rig::mmio(echo());
    let mut ring = rig.start(1).remove(0);
    ring.set_available(100);
    rig.write(0x50, 0);
    while rig.read(0x70) & 64 == 0 {
        std::thread::yield_now();
    }
    let mut ring = rig.start(1).remove(0);
    assert_eq!(rig.read(0x70), 15);
    send(&rig.memory, &mut ring);
    rig.write(0x50, 0);
    answer(&mut ring);
}

#[test]
fn the_next_device_without_a_pin_is_refused_by_the_option_that_helps() {
    let plan = |count, announced| mmio::plan(vec![echo(); count], &mut Pins::new(), announced);
    let slots = plan(18, Announced::InDsdt).unwrap();
    let mut bases: Vec<_> = slots.iter().map(|slot| slot.windows[0].base).collect();
    bases.dedup();
    assert_eq!(bases.len(), 18);
    let refusal = plan(19, Announced::InDsdt).unwrap_err();
    assert_eq!(refusal, NoPin);
    assert!(refusal.to_string().contains("--virtio pci"));
    plan(10, Announced::OnCmdline).unwrap();
    plan(11, Announced::OnCmdline).unwrap_err();
}

#[test]
fn a_kernel_learns_of_devices_in_one_way() {
    let plan = |virtio| {
        MachinePlan::new(&VmSpec {
            virtio,
            ..entropy()
        })
        .unwrap()
    };
    let dsdt = |plan: &MachinePlan| {
        let aml: Vec<u8> = plan
            .devices
            .iter()
            .flat_map(|slot| slot.aml.clone())
            .collect();
        aml.windows(8).any(|bytes| bytes == b"LNRO0005")
    };
    let (by_dsdt, by_line) = (plan(VirtioSpec::Mmio), plan(VirtioSpec::MmioCmdline));
    assert!(dsdt(&by_dsdt) && !dsdt(&by_line));
    assert_eq!(by_dsdt.cmdline("quiet"), "quiet");
    assert_eq!(
        by_line.cmdline("quiet"),
        "quiet virtio_mmio.device=0x1000@0xd0000000:1"
    );
    let by_pci = plan(VirtioSpec::Pci);
    let root = by_pci.devices.iter().find(|slot| slot.id == "pci").unwrap();
    assert_eq!(
        (root.gsi, root.pci.is_some(), root.windows.len()),
        (None, true, 3)
    );
}

#[test]
fn a_machine_without_virtio_devices_has_no_root() {
    let without = VmSpec {
        rng: false,
        ..entropy()
    };
    for virtio in [VirtioSpec::Pci, VirtioSpec::Mmio, VirtioSpec::MmioCmdline] {
        let plan = MachinePlan::new(&VmSpec {
            virtio,
            ..without.clone()
        })
        .unwrap();
        let ids: Vec<_> = plan.devices.iter().map(|slot| slot.id.as_ref()).collect();
        assert!(!ids.contains(&"pci") && !ids.contains(&"rng"), "{ids:?}");
    }
}

/// Devices on PCI.
struct Pci(Rig);

impl Pci {
    fn new(count: usize) -> Self {
        let spec = VmSpec {
            memory: 64 * MIB,
            ..VmSpec::new("vmlinux")
        };
        Pci(Rig::new(&[pci::plan(&spec, vec![echo(); count])]))
    }

    fn write(&self, at: u64, data: &[u8]) {
        let _ = self.0.bus.mmio_write(at, data);
    }

    fn read(&self, at: u64) -> u32 {
        let mut data = [0; 4];
        let _ = self.0.bus.mmio_read(at, &mut data);
        u32::from_le_bytes(data)
    }

    /// Moves the first device's BAR to the 32-bit window, and starts the device.
    fn start(&self) -> DriverRing {
        let config = PCI_ECAM + (1 << 15);
        self.write(config + 0x10, &(PCI_LOW as u32).to_le_bytes());
        self.write(config + 0x14, &[0; 4]);
        self.write(config + 4, &[6, 0]);
        let ring = DriverRing::new(&self.0.memory, 0, 16);
        let (common, at) = (PCI_LOW + 0x2000, ring.state());
        self.write(common + 0x14, &[0]);
        self.write(common + 0x14, &[3]);
        self.write(common + 8, &1u32.to_le_bytes());
        self.write(common + 0xc, &1u32.to_le_bytes());
        self.write(common + 0x14, &[11]);
        self.write(common + 0x18, &16u16.to_le_bytes());
        for (offset, address) in [
            (0x20, at.descriptors),
            (0x28, at.available),
            (0x30, at.used),
        ] {
            self.write(common + offset, &address.to_le_bytes());
        }
        self.write(common + 0x1c, &1u16.to_le_bytes());
        self.write(common + 0x14, &[15]);
        ring
    }
}

#[test]
fn a_guest_finds_each_device_on_pci() {
    let pci = Pci::new(33);
    assert_eq!(pci.read(PCI_ECAM), 0x0d57_8086);
    for device in 1..32 {
        let id = pci.read(PCI_ECAM + (device << 15));
        assert_eq!(id, (0x1040 + 42) << 16 | 0x1af4);
    }
    // Two more as further functions of the first one.
    let further = |function: u64| pci.read(PCI_ECAM + (1 << 15) + (function << 12));
    assert_eq!(further(2), further(1));
    assert_eq!((further(1) as u16, further(3)), (0x1af4, u32::MAX));
}

#[test]
fn a_request_by_pci_is_answered_and_survives_a_save() {
    let first = Pci::new(2);
    let mut ring = first.start();
    send(&first.0.memory, &mut ring);
    first.write(PCI_LOW + 0x4000, &[0]);
    answer(&mut ring);
    first.0.set.pause().unwrap();
    let saved = first.0.set.save().unwrap();

    let second = Pci::new(2);
    second.0.set.restore(&saved).unwrap();
    assert_eq!(second.0.set.save().unwrap(), saved);
    use vm_memory::{Bytes, GuestAddress};
    let mut image = vec![0; MEMORY];
    first
        .0
        .memory
        .read_slice(&mut image, GuestAddress(0))
        .unwrap();
    second
        .0
        .memory
        .write_slice(&image, GuestAddress(0))
        .unwrap();
    ring.move_to(&second.0.memory);
    second.0.set.resume();
    send(&second.0.memory, &mut ring);
    // The BAR is where the guest had moved it.
    second.write(PCI_LOW + 0x4000, &[0]);
    answer(&mut ring);
    let one = Pci::new(1);
    let error = one.0.set.restore(&saved).unwrap_err();
    assert!(error.to_string().contains("\"pci\""), "{error}");
}
