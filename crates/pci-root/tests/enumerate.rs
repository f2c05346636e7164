// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that behaves like Linux finds a root's functions, and receives their interrupts.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use pci_root::ports::ConfigPorts;
use pci_root::testing::{FoundFunction, Guest, Mechanism};
use pci_root::{
    Address, Bar, Capability, Class, Fired, Function, FunctionBuilder, Ids, Message, MsiSink, Msix,
    MsixPlace, PciDevice, PciRoot, Reply, RootBuilder, Span, Windows,
};

/// More than the number of device numbers.
const FUNCTIONS: u16 = 40;

#[derive(Default)]
struct Sink(Mutex<Vec<Message>>);

impl Sink {
    fn sent(&self) -> Vec<Message> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl MsiSink for Sink {
    fn send(&self, message: Message) {
        self.0.lock().unwrap().push(message);
    }
}

/// Reads return its number.
struct Device(u16);

impl PciDevice for Device {
    fn read_bar(&self, _: u8, _: u64, data: &mut [u8]) -> Reply {
        data.fill(self.0 as u8);
        Reply::Done
    }

    fn write_bar(&self, _: u8, _: u64, _: &[u8]) -> Reply {
        Reply::Done
    }
}

struct Machine {
    root: PciRoot,
    sink: Arc<Sink>,
    /// Each function's address and vectors.
    functions: Vec<(Address, Arc<Msix>)>,
}

/// Like virtio's: a 64-bit BAR with the table in its first page and the pending bits in the second, and capabilities
/// after MSI-X. Every third one has another BAR.
fn function(number: u16, sink: &Arc<Sink>) -> (Arc<Msix>, Function) {
    let msix = Msix::new(number % 5 + 1, Arc::clone(sink) as Arc<dyn MsiSink>).unwrap();
    let msix = Arc::new(msix);
    let ids = Ids {
        revision: 1,
        subsystem_vendor: 0x1af4,
        subsystem: number,
        ..Ids::new(0x1af4, 0x1040 + number, Class::STORAGE)
    };
    let place = MsixPlace {
        table: (0, 0),
        pba: (0, 0x1000),
    };
    let mut builder = FunctionBuilder::new(ids).unwrap();
    builder = builder.bar(0, Bar::memory64(0x8000)).unwrap();
    builder = builder.msix(Arc::clone(&msix), place).unwrap();
    for length in [14, 18, 14, 14] {
        builder = builder
            .capability(&Capability::fixed(9, vec![1; length]))
            .unwrap();
    }
    builder = builder.capability(&Capability::live(9, 18)).unwrap();
    if number.is_multiple_of(3) {
        builder = builder
            .bar(4, Bar::memory32(0x2000).prefetchable())
            .unwrap();
    }
    (msix, builder.build(Arc::new(Device(number))))
}

fn machine(high: Span, enabled: bool) -> Machine {
    let sink = Arc::new(Sink::default());
    let windows = Windows {
        ecam: 0xe000_0000,
        buses: 1,
        low: Span::new(0xd000_0000, 0x1000_0000),
        high,
    };
    let mut builder = RootBuilder::new(windows).unwrap();
    let mut functions = Vec::new();
    for number in 0..FUNCTIONS {
        let (msix, function) = function(number, &sink);
        functions.push((builder.push(function).unwrap(), msix));
    }
    builder.memory_enabled(enabled);
    let root = builder.build().unwrap();
    Machine {
        root,
        sink,
        functions,
    }
}

fn check_found(machine: &Machine, found: &[FoundFunction]) {
    let (bridge, found) = found.split_first().unwrap();
    assert_eq!(
        (bridge.vendor, bridge.device, bridge.class),
        (0x8086, 0x0d57, 0x0600_0000)
    );
    assert_eq!((&*bridge.bars, &*bridge.capabilities), (&[][..], &[][..]));
    let mut addresses: Vec<_> = machine
        .functions
        .iter()
        .map(|(address, _)| *address)
        .collect();
    addresses.sort();
    let seen: Vec<_> = found.iter().map(|function| function.address).collect();
    assert_eq!(seen, addresses);
    for function in found {
        let number = function.device - 0x1040;
        assert_eq!(machine.functions[usize::from(number)].0, function.address);
        assert_eq!(function.subsystem, (0x1af4, number));
        assert_eq!((function.class, function.interrupt_pin), (0x0180_0001, 0));
        let sizes = function
            .bars
            .iter()
            .map(|bar| (bar.number, bar.size, bar.wide, bar.prefetchable));
        let expected = [(0, 0x8000, true, false), (4, 0x2000, false, true)];
        let count = if number.is_multiple_of(3) { 2 } else { 1 };
        assert_eq!(sizes.collect::<Vec<_>>(), expected[..count]);
        let capabilities = [
            (0x11, 0x40),
            (9, 0x4c),
            (9, 0x5c),
            (9, 0x70),
            (9, 0x80),
            (9, 0x90),
        ];
        assert_eq!(function.capabilities, capabilities);
        let msix = function.msix.unwrap();
        assert_eq!(
            (msix.vectors, msix.table, msix.pba),
            (number % 5 + 1, (0, 0), (0, 0x1000))
        );
    }
}

fn message(number: u16, vector: u16) -> Message {
    Message {
        address: 0xfee0_0000 | u64::from(number) << 12,
        data: 0x4000 | u32::from(vector),
    }
}

/// Every function answers at its own BARs, and its vectors reach the guest, masked or not.
fn check_works(machine: &Machine, guest: &mut Guest<'_>, found: &[FoundFunction]) {
    for function in found {
        guest.enable(function);
        let number = function.device - 0x1040;
        let msix = &machine.functions[usize::from(number)].1;
        let vectors = 0..msix.vectors();
        let messages: Vec<_> = vectors
            .clone()
            .map(|vector| message(number, vector))
            .collect();
        guest.set_up_msix(function, &messages);
        for bar in &function.bars {
            let mut data = [0; 4];
            assert_eq!(
                guest.read_memory(bar.address + 0x1800, &mut data),
                Reply::Done
            );
            assert_eq!(data, [number as u8; 4]);
        }
        for vector in vectors {
            assert_eq!(msix.fire(vector), Fired::Sent);
            guest.mask(function, vector, true);
            assert_eq!(msix.fire(vector), Fired::Pending);
            assert_eq!(machine.sink.sent(), [message(number, vector)]);
            guest.mask(function, vector, false);
            assert_eq!(machine.sink.sent(), [message(number, vector)]);
        }
    }
}

#[test]
fn forty_functions_are_found_and_work() {
    for high in [Span::default(), Span::new(1 << 39, 1 << 39)] {
        for enabled in [false, true] {
            let ports = ConfigPorts::default();
            for mechanism in [Mechanism::Ecam, Mechanism::Ports(&ports)] {
                let machine = machine(high, enabled);
                let before = machine.root.save();
                let mut guest = Guest::new(&machine.root, mechanism);
                let found = guest.scan();
                assert_eq!(machine.root.save(), before, "a scan leaves nothing changed");
                check_found(&machine, &found);
                check_works(&machine, &mut guest, &found[1..]);
            }
        }
    }
}

#[test]
fn functions_that_a_guest_moves_work() {
    let machine = machine(Span::new(1 << 39, 1 << 39), false);
    let mut guest = Guest::new(&machine.root, Mechanism::Ecam);
    let mut found = guest.scan();
    // In the opposite order, from the windows' ends downwards.
    let (mut low, mut high) = (0xe000_0000, 1 << 40);
    for function in &mut found[1..] {
        for bar in function.bars.clone() {
            let end = if bar.wide { &mut high } else { &mut low };
            *end -= bar.size;
            guest.move_bar(function, bar.number, *end);
        }
    }
    let again = guest.scan();
    assert_eq!(again, found);
    check_works(&machine, &mut guest, &found[1..]);
}

#[test]
fn a_saved_machine_goes_on() {
    let high = Span::new(1 << 39, 1 << 39);
    let saved = machine(high, false);
    let mut guest = Guest::new(&saved.root, Mechanism::Ecam);
    let found = guest.scan();
    check_works(&saved, &mut guest, &found[1..]);
    guest.mask(&found[3], 0, true);
    let number = found[3].device - 0x1040;
    assert_eq!(
        saved.functions[usize::from(number)].1.fire(0),
        Fired::Pending
    );

    let fresh = machine(high, false);
    assert_eq!(fresh.root.restore(&saved.root.save()), Ok(()));
    assert_eq!(fresh.root.save(), saved.root.save());
    let mut guest = Guest::new(&fresh.root, Mechanism::Ecam);
    guest.mask(&found[3], 0, false);
    assert_eq!(fresh.sink.sent(), [message(number, 0)]);
    check_works(&fresh, &mut guest, &found[1..]);
}

/// The cost of a scan, which the root's defaults are chosen for.
#[test]
fn a_scan_has_few_exits() {
    let scan = |enabled, mechanism| {
        let machine = machine(Span::default(), enabled);
        let mut guest = Guest::new(&machine.root, mechanism);
        guest.scan();
        guest.accesses()
    };
    let ports = ConfigPorts::default();
    let ecam = scan(false, Mechanism::Ecam);
    assert_eq!(scan(false, Mechanism::Ports(&ports)), 2 * ecam);
    // Each function is disabled and enabled, including the host bridge.
    assert_eq!(
        scan(true, Mechanism::Ecam),
        ecam + 2 * u64::from(FUNCTIONS + 1)
    );
}
