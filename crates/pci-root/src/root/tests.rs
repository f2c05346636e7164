// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::{Arc, Mutex};

use super::*;
use crate::bar::Bar;
use crate::config::{Class, ConfigStateError, Ids};
use crate::function::{FunctionBuilder, FunctionStateError, NoDevice, PciDevice};
use crate::msix::{Message, MsiSink, Msix};
use crate::sync::lock;
use crate::window::{Span, WindowError};

mod bars;
mod model;
mod plug;

const LOW: Span = Span::new(0xc000_0000, 0x1000_0000);
const HIGH: Span = Span::new(1 << 39, 1 << 39);

fn windows() -> Windows {
    Windows {
        ecam: 0xe000_0000,
        buses: 2,
        low: LOW,
        high: HIGH,
    }
}

struct NoSink;

impl MsiSink for NoSink {
    fn send(&self, _: Message) {}
}

/// Returns its own number, and records the moves that it was told of.
struct Device {
    number: u8,
    places: Mutex<Vec<Option<u64>>>,
}

impl PciDevice for Device {
    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) -> Reply {
        assert_eq!(data, vec![0; data.len()]);
        let mut bytes = [self.number, bar, offset as u8].into_iter().cycle();
        data.fill_with(|| bytes.next().unwrap());
        if offset == 0x80 {
            Reply::Unclaimed
        } else {
            Reply::Done
        }
    }

    fn write_bar(&self, _: u8, offset: u64, _: &[u8]) -> Reply {
        if offset == 0x80 {
            Reply::Unclaimed
        } else {
            Reply::Done
        }
    }

    fn moved(&self, function: &Function) {
        lock(&self.places).push(function.decoded(0));
    }
}

fn function(number: u8, bars: &[(u8, Bar)]) -> (Arc<Device>, Function) {
    let device = Arc::new(Device {
        number,
        places: Mutex::default(),
    });
    let mut builder =
        FunctionBuilder::new(Ids::new(0x1af4, 0x1040 + u16::from(number), Class::OTHER)).unwrap();
    for (register, bar) in bars {
        builder = builder.bar(*register, *bar).unwrap();
    }
    (Arc::clone(&device), builder.build(device))
}

/// Functions 1, 2, ... with one BAR each, enabled at their boot addresses.
fn root(bars: &[Bar]) -> (Vec<Arc<Device>>, PciRoot) {
    let mut builder = RootBuilder::new(windows()).unwrap();
    let mut devices = Vec::new();
    for (number, bar) in (1..).zip(bars) {
        let (device, function) = function(number, &[(0, *bar)]);
        devices.push(device);
        builder.push(function).unwrap();
    }
    builder.memory_enabled(true);
    (devices, builder.build().unwrap())
}

fn plain() -> Function {
    FunctionBuilder::new(Ids::new(1, 2, Class::OTHER))
        .unwrap()
        .build(Arc::new(NoDevice))
}

fn at(device: u8, function: u8) -> Address {
    Address::new(0, device, function).unwrap()
}

fn header_type(root: &PciRoot, address: Address) -> u8 {
    let mut data = [0];
    root.read_config(address, 0xe, &mut data);
    data[0]
}

fn set_bar0(root: &PciRoot, address: Address, value: u64) {
    root.write_config(address, 0x10, &(value as u32).to_le_bytes());
    if root.function(address).unwrap().save().config[0x10] & 4 != 0 {
        root.write_config(address, 0x14, &((value >> 32) as u32).to_le_bytes());
    }
}

fn enable(root: &PciRoot, address: Address, enabled: bool) {
    root.write_config(address, 4, &[u8::from(enabled) << 1, 0]);
}

/// What answers at a guest-physical address: number, BAR, lowest byte of the offset.
fn who(root: &PciRoot, place: u64, len: usize) -> Option<[u8; 3]> {
    let window = [Window::Low, Window::High].into_iter().find(|window| {
        let span = root.windows().span(*window);
        span.contains(place, place)
    })?;
    let offset = place - root.windows().span(window).base;
    let mut data = vec![0xee; len];
    let reply = root.read(window, offset, &mut data);
    assert_eq!(root.write(window, offset, &data), reply);
    if reply == Reply::Unclaimed {
        assert_eq!(data, vec![0xff; len]);
        return None;
    }
    Some([data[0], data[1], data[2]])
}

#[test]
fn functions_are_packed_where_guests_find_them() {
    let mut builder = RootBuilder::new(windows()).unwrap();
    let mut pushed = Vec::new();
    for _ in 0..31 * 8 {
        pushed.push(builder.push(plain()).unwrap());
    }
    assert_eq!(builder.push(plain()), Err(RootError::Full));
    let singles = (1..32).map(|device| at(device, 0));
    let others = (1..32).flat_map(|device| (1..8).map(move |number| at(device, number)));
    assert_eq!(pushed, singles.chain(others).collect::<Vec<_>>());
    let root = builder.build().unwrap();
    for (address, _) in root.functions() {
        let many = address.function() == 0 && address != Address::HOST_BRIDGE;
        assert_eq!(header_type(&root, address), u8::from(many) << 7);
    }

    // 39 of them: device 1 has eight functions, device 2 has two.
    let mut builder = RootBuilder::new(windows()).unwrap();
    for _ in 0..39 {
        builder.push(plain()).unwrap();
    }
    let root = builder.build().unwrap();
    let many = (0..32).filter(|device| header_type(&root, at(*device, 0)) & 0x80 != 0);
    assert_eq!(many.collect::<Vec<_>>(), [1, 2]);
    assert_eq!(root.functions().count(), 40);
}

#[test]
fn the_host_bridge_is_the_one_that_firmware_knows() {
    let root = RootBuilder::new(windows()).unwrap().build().unwrap();
    let mut header = [0; 0x40];
    root.read_config(Address::HOST_BRIDGE, 0, &mut header);
    let mut expected = [0; 0x40];
    expected[..4].copy_from_slice(&[0x86, 0x80, 0x57, 0x0d]);
    expected[0xb] = 6;
    assert_eq!(header, expected);
}

#[test]
fn roots_that_can_not_be_are_refused() {
    let mut builder = RootBuilder::new(windows()).unwrap();
    let (one, bus2) = (at(1, 0), Address::new(2, 0, 0).unwrap());
    assert_eq!(builder.insert(one, plain()), Ok(()));
    assert_eq!(
        builder.insert(one, plain()),
        Err(RootError::Taken { address: one })
    );
    let bridge = Address::HOST_BRIDGE;
    assert_eq!(
        builder.insert(bridge, plain()),
        Err(RootError::Taken { address: bridge })
    );
    let error = RootError::NoBus {
        address: bus2,
        buses: 2,
    };
    assert_eq!(builder.insert(bus2, plain()), Err(error));
    assert_eq!(
        builder.insert(Address::new(1, 31, 0).unwrap(), plain()),
        Ok(())
    );
    let alone = at(3, 1);
    assert_eq!(builder.insert(alone, plain()), Ok(()));
    let error = RootError::NoFunction0 { address: alone };
    assert_eq!(builder.build().err(), Some(error));

    let none = Windows {
        buses: 0,
        ..windows()
    };
    let error = RootError::Windows(WindowError::Buses { buses: 0 });
    assert_eq!(RootBuilder::new(none).err(), Some(error));
}

#[test]
fn bars_get_places_of_their_own() {
    let sizes = [0x1000, 16, 0x8000, 1 << 20, 0x100, 1 << 24];
    for high in [HIGH, Span::default(), Span::new(0x1_0000_4000, 1 << 30)] {
        let mut builder = RootBuilder::new(Windows { high, ..windows() }).unwrap();
        for (number, size) in (1..).zip(sizes) {
            let bars = [
                (0, Bar::memory64(size)),
                (2, Bar::memory32(size)),
                (4, Bar::memory32(16)),
            ];
            builder.push(function(number, &bars).1).unwrap();
        }
        builder.memory_enabled(true);
        let root = builder.build().unwrap();
        let mut taken = Vec::new();
        for (_, function) in root.functions().skip(1) {
            function.for_each_decoded(|decoded| {
                let wide = decoded.bar == 0 && high.size > 0;
                let window = if wide { high } else { LOW };
                assert!(window.contains(decoded.first, decoded.last));
                assert_eq!(decoded.first % (decoded.last - decoded.first + 1), 0);
                taken.push((decoded.first, decoded.last));
            });
        }
        taken.sort_unstable();
        assert_eq!(taken.len(), 3 * sizes.len());
        assert!(taken.is_sorted_by(|a, b| a.1 < b.0), "{taken:x?}");
    }
}

#[test]
fn windows_are_filled_to_the_last_byte_and_not_further() {
    let full = |low: Span, bars: &[Bar]| {
        let windows = Windows {
            low,
            high: Span::new(u64::MAX - 0xfff, 0x1000),
            ..windows()
        };
        let mut builder = RootBuilder::new(windows).unwrap();
        for bar in bars {
            builder.push(function(1, &[(0, *bar)]).1).unwrap();
        }
        builder.build().map(drop)
    };
    let error = |number, bar: Bar, window| {
        let size = bar.size();
        Err(RootError::WindowFull {
            address: at(number, 0),
            bar: 0,
            size,
            window,
        })
    };
    let [page, large] = [0x1000, 0x2000].map(Bar::memory32);
    let [page64, large64] = [0x1000, 0x2000].map(Bar::memory64);
    let low = Span::new(LOW.base, 0x3000);
    assert_eq!(full(low, &[page, large]), Ok(()));
    assert_eq!(
        full(low, &[page, large, Bar::memory32(16)]),
        error(3, Bar::memory32(16), Window::Low)
    );
    let shifted = Span::new(LOW.base + 0x1000, 0x3000);
    assert_eq!(full(shifted, &[page, large]), error(1, page, Window::Low));
    assert_eq!(full(low, &[page64]), Ok(()));
    assert_eq!(full(low, &[page64, page64]), error(2, page64, Window::High));
    assert_eq!(full(low, &[large64]), error(1, large64, Window::High));
    assert_eq!(
        full(low, &[Bar::memory64(1 << 63)]),
        error(1, Bar::memory64(1 << 63), Window::High)
    );
    assert_eq!(full(Span::default(), &[page]), error(1, page, Window::Low));
}

#[test]
fn ecam_has_every_function_at_every_width() {
    let mut builder = RootBuilder::new(windows()).unwrap();
    let last = Address::new(1, 31, 0).unwrap();
    builder.insert(last, plain()).unwrap();
    let root = builder.build().unwrap();
    let end = 2 << 20;
    for (address, present) in [
        (Address::HOST_BRIDGE, true),
        (at(1, 0), false),
        (last, true),
    ] {
        let base = u64::from(address.bits()) << 12;
        let mut config = vec![0xff; 0x1000];
        if present {
            root.function(address).unwrap().read_config(0, &mut config);
        }
        for len in [1, 2, 3, 4, 5, 8, 16] {
            for register in (0..0x110).chain(0xff0..0x1000) {
                let mut data = vec![0xee; len];
                let reply = root.read(Window::Ecam, base + register as u64, &mut data);
                let inside = register + len <= 0x1000;
                assert_eq!(reply == Reply::Done, inside);
                let expected = if inside {
                    &config[register..register + len]
                } else {
                    &vec![0xff; len]
                };
                assert_eq!(data, expected, "{len} at {register:#x}");
                let reply = root.write(Window::Ecam, base + register as u64, &data);
                assert_eq!(reply == Reply::Done, inside);
            }
        }
    }
    for offset in [end, 1 << 28, 1 << 40, u64::MAX - 3, u64::MAX] {
        let mut data = [0; 4];
        let _ = root.read(Window::Ecam, offset, &mut data);
        assert_eq!(data, [0xff; 4]);
        let _ = root.write(Window::Ecam, offset, &data);
    }
}

#[test]
fn a_state_comes_back() {
    let build = || {
        let mut builder = RootBuilder::new(windows()).unwrap();
        let (device, plain) = function(1, &[(0, Bar::memory32(0x1000))]);
        builder.push(plain).unwrap();
        let msix = Arc::new(Msix::new(2, Arc::new(NoSink)).unwrap());
        let place = crate::MsixPlace {
            table: (0, 0),
            pba: (0, 0x800),
        };
        let function = FunctionBuilder::new(Ids::new(3, 4, Class::OTHER)).unwrap();
        let function = function
            .bar(0, Bar::memory64(0x1000))
            .unwrap()
            .msix(msix, place)
            .unwrap();
        builder.push(function.build(Arc::new(NoDevice))).unwrap();
        (device, builder.build().unwrap())
    };
    let (_, saved) = build();
    set_bar0(&saved, at(1, 0), LOW.base + 0x5000);
    enable(&saved, at(1, 0), true);
    saved.write_config(at(2, 0), 0x43, &[0xc0]);
    let state = saved.save();
    let (device, fresh) = build();
    assert_ne!(fresh.save(), state);
    assert_eq!(fresh.restore(&state), Ok(()));
    assert_eq!(fresh.save(), state);
    assert_eq!(*lock(&device.places), [Some(LOW.base + 0x5000)]);
    assert_eq!(who(&fresh, LOW.base + 0x5000, 4), Some([1, 0, 0]));

    type Forge = fn(&mut RootState);
    let forged: &[(Forge, RootStateError)] = &[
        (|s| s.version = 2, RootStateError::Version { found: 2 }),
        (
            |s| s.functions.clear(),
            RootStateError::Functions { address: at(0, 0) },
        ),
        (
            |s| drop(s.functions.pop()),
            RootStateError::Functions { address: at(2, 0) },
        ),
        (
            |s| s.functions.swap(0, 1),
            RootStateError::Functions { address: at(0, 0) },
        ),
        (
            |s| s.functions[1].address = 0,
            RootStateError::Functions { address: at(0, 0) },
        ),
        (
            |s| s.functions.extend_from_within(2..),
            RootStateError::Functions { address: at(2, 0) },
        ),
        (
            |s| s.functions[2].state.config[1] ^= 1,
            RootStateError::Function {
                address: at(2, 0),
                error: FunctionStateError::Config(ConfigStateError::Register {
                    register: 1,
                    found: 1,
                    expected: 0,
                }),
            },
        ),
        (
            |s| s.functions[2].state.msix = None,
            RootStateError::Function {
                address: at(2, 0),
                error: FunctionStateError::HasMsix,
            },
        ),
    ];
    enable(&fresh, at(1, 0), false);
    let before = fresh.save();
    for (forge, error) in forged {
        let mut state = state.clone();
        forge(&mut state);
        assert_eq!(fresh.restore(&state), Err(*error));
        assert_eq!(fresh.save(), before);
    }
}

#[cfg(feature = "serde")]
#[test]
fn a_state_survives_json() {
    let (_, root) = root(&[Bar::memory32(0x1000)]);
    let state = root.save();
    let json = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<RootState>(&json).unwrap(), state);
}
