// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Any accesses to a PCI root. The functions' own registers tell which function must answer.
//!
//! Each 18 bytes of the input are a step: choices, place, value.

#![no_main]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use pci_root::{
    Address, Bar, Capability, Class, Fired, Function, FunctionBuilder, Ids, Message, MsiSink, Msix,
    MsixPlace, PciDevice, PciRoot, Reply, RootBuilder, Span, Window, Windows,
};

const WINDOWS: Windows = Windows {
    ecam: 0xe000_0000,
    buses: 1,
    low: Span::new(0xc000_0000, 0x1000_0000),
    high: Span::new(1 << 39, 1 << 39),
};

/// BAR 0 of the functions, which have MSI-X in it.
const BARS: [Bar; 4] = [
    Bar::memory32(0x1000),
    Bar::memory64(0x2000),
    Bar::memory32(0x4000),
    Bar::memory64(0x1000),
];
const TABLE: u64 = 0x800;
const PBA: u64 = 0xc00;
const VECTORS: u16 = 3;

/// Counts messages.
#[derive(Default)]
struct Sink(AtomicU64);

impl MsiSink for Sink {
    fn send(&self, _: Message) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Answers with its number, and records the address that it was told.
struct Device(u8, Mutex<Option<u64>>);

impl PciDevice for Device {
    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) -> Reply {
        let end = offset + data.len() as u64;
        assert!(bar == 0 && end <= BARS[usize::from(self.0)].size());
        let msix = [TABLE..TABLE + 16 * u64::from(VECTORS), PBA..PBA + 8];
        assert!(
            msix.iter()
                .all(|range| end <= range.start || range.end <= offset)
        );
        data.fill(self.0);
        Reply::Done
    }

    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) -> Reply {
        self.read_bar(bar, offset, &mut vec![0; data.len()])
    }

    fn read_capability(&self, capability: usize, offset: u8, data: &mut [u8]) {
        assert!(capability == 1 && offset >= 2 && usize::from(offset) + data.len() <= 8);
        data.fill(self.0);
    }

    fn moved(&self, function: &Function) {
        *self.1.lock().expect("nobody panics") = function.decoded(0);
    }
}

struct Machine {
    root: PciRoot,
    devices: Vec<Arc<Device>>,
    msix: Vec<Arc<Msix>>,
    sink: Arc<Sink>,
}

fn machine() -> Machine {
    let build = || -> Result<Machine, Box<dyn std::error::Error>> {
        let sink = Arc::new(Sink::default());
        let mut builder = RootBuilder::new(WINDOWS)?;
        let (mut devices, mut vectors) = (Vec::new(), Vec::new());
        for (number, bar) in (0..).zip(BARS) {
            let msix = Arc::new(Msix::new(VECTORS, Arc::clone(&sink) as Arc<dyn MsiSink>)?);
            let device = Arc::new(Device(number, Mutex::new(None)));
            let place = MsixPlace {
                table: (0, TABLE),
                pba: (0, PBA),
            };
            let function = FunctionBuilder::new(Ids::new(0x1af4, 0x1040, Class::OTHER))?
                .bar(0, bar)?
                .capability(&Capability::fixed(9, [4; 4]))?
                .msix(Arc::clone(&msix), place)?
                .capability(&Capability::live(9, 6))?
                .build(Arc::clone(&device) as Arc<dyn PciDevice>);
            builder.push(function)?;
            devices.push(device);
            vectors.push(msix);
        }
        let root = builder.build()?;
        Ok(Machine {
            root,
            devices,
            msix: vectors,
            sink,
        })
    };
    build().expect("this machine can be built")
}

impl Machine {
    fn function(&self, number: usize) -> Arc<Function> {
        let address = Address::new(0, number as u8 + 1, 0).and_then(|at| self.root.function(at));
        address.expect("the functions were pushed in order")
    }

    /// The function whose BAR has the first byte at a place, and whether the BAR has the other bytes too.
    fn owner(&self, place: u64, len: u64) -> Option<(usize, u64, bool)> {
        (0..BARS.len()).find_map(|number| {
            let offset = place.checked_sub(self.function(number).decoded(0)?)?;
            let size = BARS[number].size();
            (offset < size).then_some((number, offset, offset + len <= size))
        })
    }

    fn access(&self, window: Window, offset: u64, data: &mut [u8], write: bool) {
        let owner = match window {
            Window::Ecam => None,
            _ => {
                let place = WINDOWS.span(window).base.checked_add(offset);
                place.and_then(|place| self.owner(place, data.len() as u64))
            }
        };
        let reply = match write {
            true => self.root.write(window, offset, data),
            false => self.root.read(window, offset, data),
        };
        if write || window == Window::Ecam {
            return;
        }
        match owner {
            Some((number, at, true)) if at + data.len() as u64 <= TABLE => {
                assert_eq!(reply, Reply::Done);
                assert!(data.iter().all(|byte| usize::from(*byte) == number));
            }
            Some((.., true)) => {}
            _ => assert_eq!(reply, Reply::Unclaimed),
        }
        assert!(reply == Reply::Done || data.iter().all(|byte| *byte == 0xff));
    }

    fn check(&self) {
        for (number, device) in self.devices.iter().enumerate() {
            let told = *device.1.lock().expect("nobody panics");
            assert_eq!(told, self.function(number).decoded(0));
            let Some(base) = told else { continue };
            let inside = |span: Span| {
                span.base <= base && base + BARS[number].size() <= span.base + span.size
            };
            assert!(inside(WINDOWS.low) || inside(WINDOWS.high));
        }
    }

    /// A restored state is unchanged, and sends nothing. A forged one is refused, or restored as forged.
    fn save(&self, at: usize, value: u8) {
        let mut state = self.root.save();
        let fresh = machine();
        assert_eq!(fresh.root.restore(&state), Ok(()));
        assert_eq!(fresh.root.save(), state);
        let function = at % state.functions.len();
        let config = &mut state.functions[function].state.config;
        let byte = at % config.len();
        config[byte] ^= value;
        let before = fresh.root.save();
        match fresh.root.restore(&state) {
            Ok(()) => assert_eq!(fresh.root.save(), state),
            Err(_) => assert_eq!(fresh.root.save(), before),
        }
        fresh.check();
        assert_eq!(fresh.sink.0.load(Ordering::Relaxed), 0);
    }
}

fuzz_target!(|input: &[u8]| {
    let machine = machine();
    for step in input.chunks_exact(18).take(256) {
        let (choices, rest) = step.split_at(2);
        let (place, value) = rest.split_at(8);
        let place = u64::from_le_bytes(place.try_into().expect("eight bytes"));
        let mut data = value[..1 + usize::from(choices[1] & 7)].to_vec();
        let write = choices[1] & 8 != 0;
        let number = usize::from(choices[1] >> 4) % BARS.len();
        match choices[0] % 8 {
            0 => machine.access(Window::Ecam, place, &mut data, write),
            1 => machine.access(Window::Low, place % (1 << 29), &mut data, write),
            2 => machine.access(Window::High, place, &mut data, write),
            // Configuration space of a function.
            3 | 4 => {
                let offset = (number as u64 + 1) << 15 | place % 0x60;
                machine.access(Window::Ecam, offset, &mut data, write);
            }
            // Registers in its BAR.
            5 => {
                if let Some(base) = machine.function(number).decoded(0) {
                    let window = if base < 1 << 32 {
                        Window::Low
                    } else {
                        Window::High
                    };
                    let offset = base - WINDOWS.span(window).base + place % 0x1008;
                    machine.access(window, offset, &mut data, write);
                }
            }
            6 => {
                let before = machine.sink.0.load(Ordering::Relaxed);
                let fired = machine.msix[number].fire(place as u16 % (VECTORS + 1));
                let sent = machine.sink.0.load(Ordering::Relaxed) - before;
                assert_eq!(sent == 1, fired == Fired::Sent);
            }
            _ => machine.save(place as usize % 0x1_0000, value[0]),
        }
        machine.check();
    }
});
