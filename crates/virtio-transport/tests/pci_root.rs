// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The PCI transport behind a real root: `pci-root` provides the function, its configuration space and its vectors.
//! [`Glue`] is the code that a VMM writes to combine the two.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use pci_root::testing::{FoundFunction, Guest, Mechanism};
use pci_root::{
    Bar, Class, FunctionBuilder, Ids, Message, MsiSink, Msix, MsixPlace, PciDevice, PciRoot, Reply,
    RootBuilder, Span, Window, Windows,
};
use virtio_transport::device::{Interrupt, RestoreError};
use virtio_transport::layout::Layout;
use virtio_transport::message::{Activation, Answer};
use virtio_transport::pci::{self, Capability, PciState, PciTransport, Vectors};
use virtio_transport::queue::{Position, QueueState};
use virtio_transport::registers::{Effect, Notice, Registers};
use virtio_transport::testing::suite;
use virtio_transport::testing::{
    Driver, Echo, MEMORY, Machine, Memory, PciPort, Port, Reply as Answered, Request, Seen,
    Subject, memory,
};

/// A function's vectors are those of its MSI-X table.
struct Table(Arc<Msix>);

impl Vectors for Table {
    fn count(&self) -> u16 {
        self.0.vectors()
    }

    fn fire(&self, vector: u16) {
        let _ = self.0.fire(vector);
    }
}

/// The transport as a device of the root, in one lock, with the effects of accesses.
struct Glue {
    transport: Mutex<PciTransport>,
    effects: Mutex<VecDeque<Effect>>,
}

impl PciDevice for Glue {
    fn read_bar(&self, _: u8, offset: u64, data: &mut [u8]) -> Reply {
        self.transport.lock().unwrap().read_bar(offset, data);
        Reply::Done
    }

    fn write_bar(&self, _: u8, offset: u64, data: &[u8]) -> Reply {
        let effect = self.transport.lock().unwrap().write_bar(offset, data);
        self.effects.lock().unwrap().push_back(effect);
        Reply::Done
    }

    fn read_capability(&self, _: usize, offset: u8, data: &mut [u8]) {
        self.transport.lock().unwrap().read_window(offset, data);
    }

    fn write_capability(&self, _: usize, offset: u8, data: &[u8]) {
        let effect = self.transport.lock().unwrap().write_window(offset, data);
        self.effects.lock().unwrap().push_back(effect);
    }
}

/// Adds a transport to a function, and says which capabilities belong to it.
fn function(transport: PciTransport, msix: &Arc<Msix>) -> (FunctionBuilder, Arc<Glue>) {
    let pci::Identity {
        vendor,
        device,
        revision,
        subsystem_vendor,
        subsystem,
        class: [base, sub, _],
    } = transport.identity();
    let ids = Ids {
        revision,
        subsystem_vendor,
        subsystem,
        ..Ids::new(vendor, device, Class::new(base, sub))
    };
    let place = MsixPlace {
        table: (0, pci::MSIX_TABLE),
        pba: (0, pci::MSIX_PBA),
    };
    let mut function = FunctionBuilder::new(ids)
        .unwrap()
        .bar(0, Bar::memory64(pci::BAR_SIZE))
        .unwrap()
        .msix(Arc::clone(msix), place)
        .unwrap();
    for capability in transport.capabilities() {
        let capability = match capability {
            Capability::Fixed(body) => pci_root::Capability::fixed(9, body),
            Capability::Live(len) => pci_root::Capability::live(9, len),
        };
        function = function.capability(&capability).unwrap();
    }
    let glue = Glue {
        transport: Mutex::new(transport),
        effects: Mutex::default(),
    };
    (function, Arc::new(glue))
}

/// The data of the received messages.
#[derive(Default)]
struct Messages(Mutex<Vec<u32>>);

impl MsiSink for Messages {
    fn send(&self, message: Message) {
        self.0.lock().unwrap().push(message.data);
    }
}

/// A transport that is accessed as a guest does: at its BAR's address, through the root.
struct RootPort {
    root: PciRoot,
    found: FoundFunction,
    glue: Arc<Glue>,
    /// A copy of the transport's registers, to return a reference.
    registers: Registers,
    messages: Arc<Messages>,
}

impl RootPort {
    fn place(&self, offset: u64) -> u64 {
        let base = self.root.windows().span(Window::High).base;
        self.found.address_in((0, offset)) - base
    }

    fn refresh(&mut self) {
        let transport = self.glue.transport.lock().unwrap();
        self.registers = transport.registers().clone();
    }

    fn write_16(&mut self, at: u64, value: u16) {
        let effect = self.write(pci::COMMON + at, &value.to_le_bytes());
        assert_eq!(effect, Effect::None);
    }

    fn read_16(&mut self, at: u64) -> u16 {
        let mut data = [0; 2];
        self.read(pci::COMMON + at, &mut data);
        u16::from_le_bytes(data)
    }

    fn write_32(&mut self, at: u64, value: u32) {
        let effect = self.write(pci::COMMON + at, &value.to_le_bytes());
        assert_eq!(effect, Effect::None);
    }
}

impl Port for RootPort {
    type State = PciState;

    const SPAN: u64 = PciPort::SPAN;
    const STATUS: (u64, usize) = PciPort::STATUS;
    const CONFIG: u64 = PciPort::CONFIG;

    fn new(layout: Layout, config: Vec<u8>) -> Self {
        let messages = Arc::<Messages>::default();
        let vectors = PciTransport::vectors(&layout);
        let msix = Arc::new(Msix::new(vectors, Arc::clone(&messages) as _).unwrap());
        let table = Arc::new(Table(Arc::clone(&msix)));
        let transport = PciTransport::new(layout, config, table).unwrap();
        let registers = transport.registers().clone();
        let (function, glue) = function(transport, &msix);
        let mut builder = RootBuilder::new(Windows {
            ecam: 0xe000_0000,
            buses: 1,
            low: Span::new(0xd000_0000, 0x1000_0000),
            high: Span::new(1 << 39, 1 << 39),
        })
        .unwrap();
        let address = builder
            .push(function.build(Arc::clone(&glue) as _))
            .unwrap();
        let root = builder.build().unwrap();
        let mut guest = Guest::new(&root, Mechanism::Ecam);
        let found = guest
            .scan()
            .into_iter()
            .find(|found| found.address == address);
        let found = found.unwrap();
        guest.enable(&found);
        let message = |data| Message {
            address: 0xfee0_0000,
            data,
        };
        let set: Vec<_> = (0..u32::from(vectors)).map(message).collect();
        guest.set_up_msix(&found, &set);
        RootPort {
            root,
            found,
            glue,
            registers,
            messages,
        }
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let reply = self.root.read(Window::High, self.place(offset), data);
        let is_virtios = offset >= pci::COMMON;
        assert!(reply == Reply::Done || !is_virtios, "{offset:#x}");
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let place = self.place(offset);
        let reply = self.root.write(Window::High, place, data);
        let is_virtios = offset >= pci::COMMON;
        assert!(reply == Reply::Done || !is_virtios, "{offset:#x}");
        self.refresh();
        let mut effects = self.glue.effects.lock().unwrap();
        let mut asked = effects.drain(..).filter(|effect| *effect != Effect::None);
        let effect = asked.next().unwrap_or(Effect::None);
        assert_eq!(asked.next(), None, "one access asks for one thing");
        effect
    }

    fn answer(&mut self, answer: &Answer) -> Notice {
        let notice = self.glue.transport.lock().unwrap().answer(answer);
        self.refresh();
        notice
    }

    fn registers(&self) -> &Registers {
        &self.registers
    }

    fn interrupt(&self) -> Arc<dyn Interrupt> {
        self.glue.transport.lock().unwrap().interrupt()
    }

    fn save(&self) -> Option<PciState> {
        self.glue.transport.lock().unwrap().save()
    }

    fn restore(
        &mut self,
        state: &PciState,
        positions: Option<&[Option<Position>]>,
    ) -> Result<Option<Activation>, RestoreError> {
        let restored = self
            .glue
            .transport
            .lock()
            .unwrap()
            .restore(state, positions);
        self.refresh();
        restored
    }

    fn take_interrupts(&mut self) -> Seen {
        let messages = std::mem::take(&mut *self.messages.0.lock().unwrap());
        Seen {
            queue: messages.iter().any(|data| *data != 0),
            config: messages.contains(&0),
        }
    }

    fn device_features(&mut self, select: u32) -> u32 {
        self.write_32(0x00, select);
        let mut data = [0; 4];
        self.read(pci::COMMON + 0x04, &mut data);
        u32::from_le_bytes(data)
    }

    fn set_driver_features(&mut self, select: u32, value: u32) {
        self.write_32(0x08, select);
        self.write_32(0x0c, value);
    }

    fn max_queue_size(&mut self, queue: u16) -> u16 {
        self.write_16(0x16, queue);
        self.read_16(0x18)
    }

    fn set_up_queue(&mut self, queue: u16, state: &QueueState) {
        self.write_16(0x10, 0);
        self.write_16(0x16, queue);
        self.write_16(0x18, state.size);
        self.write_16(0x1a, queue + 1);
        let addresses = [state.descriptors, state.available, state.used];
        for (at, address) in [0x20, 0x28, 0x30].into_iter().zip(addresses) {
            let effect = self.write(pci::COMMON + at, &address.to_le_bytes());
            assert_eq!(effect, Effect::None);
        }
        self.write_16(0x1c, 1);
    }

    fn is_queue_ready(&mut self, queue: u16) -> bool {
        self.write_16(0x16, queue);
        self.read_16(0x1c) == 1
    }

    fn kick(&mut self, queue: u16) -> Effect {
        let at = u64::from(queue) * u64::from(pci::NOTIFY_STEP);
        if at >= pci::BAR_SIZE - pci::NOTIFY {
            return Effect::None;
        }
        self.write(pci::NOTIFY + at, &queue.to_le_bytes())
    }

    fn generation(&mut self) -> u32 {
        let mut data = [0];
        self.read(pci::COMMON + 0x15, &mut data);
        data[0].into()
    }
}

struct Echoes;

impl Subject for Echoes {
    type Device = Echo<Memory>;

    fn device(&self) -> Self::Device {
        Echo::new()
    }

    fn request(&self, n: u32) -> Request {
        Request {
            queue: (n % 2) as u16,
            readable: vec![0; 3],
            writable: 3,
        }
    }

    fn check(&self, _: u32, features: u64, reply: &Answered) {
        let byte = if features & 1 != 0 { 0xff } else { 0 };
        assert_eq!(reply.bytes, [byte; 3]);
    }
}

#[test]
fn requests_are_answered_by_way_of_a_root() {
    suite::requests::<RootPort, _>(&Echoes);
}

#[test]
fn a_device_behind_a_root_goes_on_after_a_stop() {
    suite::stop_and_start::<RootPort, _>(&Echoes);
}

#[test]
fn a_device_behind_a_root_is_reset_and_hostile_rings_break_it() {
    suite::reset_at_every_step::<RootPort, _>(&Echoes);
    suite::hostile_rings::<RootPort, _>(&Echoes);
}

#[test]
fn every_register_of_the_bar_is_accessed_by_way_of_a_root() {
    suite::every_register_at_every_width::<RootPort, _>(&Echoes);
}

#[test]
fn a_guest_finds_the_function() {
    let machine = Machine::<RootPort>::new(Box::new(Echo::new()), &memory(MEMORY));
    let found = &machine.port.found;
    assert_eq!(
        (found.vendor, found.device, found.subsystem),
        (0x1af4, 0x106a, (0x1af4, 0x6a))
    );
    assert_eq!(found.class, 0xff00_0001);
    assert_eq!((found.interrupt_pin, found.bars.len()), (0, 1));
    assert_eq!(found.bars[0].size, pci::BAR_SIZE);
    assert_eq!(found.msix.unwrap().vectors, 3);
    let ids: Vec<_> = found.capabilities.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids.iter().filter(|id| **id == 9).count(), 5);
    // The kinds in order: common, notify, ISR, device, window.
    let mut guest = Guest::new(&machine.port.root, Mechanism::Ecam);
    let ours = found.capabilities.iter().filter(|(id, _)| *id == 9);
    let kinds: Vec<u8> = ours
        .map(|(_, at)| guest.read_config::<1>(found.address, at + 3)[0])
        .collect();
    assert_eq!(kinds, [1, 2, 3, 4, 5]);
}

#[test]
fn a_driver_without_the_bar_uses_the_window() {
    let mut machine = Machine::<RootPort>::new(Box::new(Echo::new()), &memory(MEMORY));
    let found = machine.port.found.clone();
    let (_, window) = *found.capabilities.iter().rfind(|(id, _)| *id == 9).unwrap();
    let mut guest = Guest::new(&machine.port.root, Mechanism::Ecam);
    guest.write_config(found.address, window + 4, &[0]);
    let status = (pci::COMMON as u32 + 0x14).to_le_bytes();
    guest.write_config(found.address, window + 8, &status);
    guest.write_config(found.address, window + 12, &[1, 0, 0, 0]);
    guest.write_config(found.address, window + 16, &[1]);
    let [read] = guest.read_config(found.address, window + 16);
    assert_eq!(read, 1);
    assert_eq!(machine.port.status(), 1);
    machine.port.refresh();
    let mut driver = Driver::start(&mut machine, u64::MAX);
    let request = Echoes.request(0);
    driver.send(&machine, &request);
    machine.kick(0);
    machine.pump();
    assert!(driver.receive(&machine, 0).is_some());
}
