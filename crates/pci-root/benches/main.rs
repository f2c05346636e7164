// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Times what a guest's exits and a device's interrupts cost here (`cargo bench -p pci-root`): an exit itself takes a
//! microsecond or more.
#![allow(clippy::unwrap_used)]
#![allow(missing_docs)] // `criterion_group!` makes a public function.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use pci_root::{
    Bar, Class, FunctionBuilder, Ids, Message, MsiSink, Msix, MsixPlace, PciDevice, PciRoot, Reply,
    RootBuilder, Span, Window, Windows,
};

struct Sink;

impl MsiSink for Sink {
    fn send(&self, message: Message) {
        black_box(message);
    }
}

struct Device;

impl PciDevice for Device {
    fn read_bar(&self, _: u8, _: u64, _: &mut [u8]) -> Reply {
        Reply::Done
    }

    fn write_bar(&self, _: u8, _: u64, _: &[u8]) -> Reply {
        Reply::Done
    }
}

const WINDOWS: Windows = Windows {
    ecam: 0xe000_0000,
    buses: 1,
    low: Span::new(0xd000_0000, 0x1000_0000),
    high: Span::new(1 << 39, 1 << 39),
};
const BAR: u64 = 0x8000;

/// A root with this many functions like virtio's, enabled.
fn root(functions: usize) -> (PciRoot, Arc<Msix>) {
    let msix = || Arc::new(Msix::new(4, Arc::new(Sink)).unwrap());
    let mut builder = RootBuilder::new(WINDOWS).unwrap();
    let mut last = msix();
    for _ in 0..functions {
        last = msix();
        let place = MsixPlace {
            table: (0, 0),
            pba: (0, 0x1000),
        };
        let function = FunctionBuilder::new(Ids::new(0x1af4, 0x1042, Class::STORAGE)).unwrap();
        let function = function.bar(0, Bar::memory64(BAR)).unwrap();
        let function = function.msix(Arc::clone(&last), place).unwrap();
        builder.push(function.build(Arc::new(Device))).unwrap();
    }
    builder.memory_enabled(true);
    (builder.build().unwrap(), last)
}

fn accesses(c: &mut Criterion) {
    for functions in [4, 32, 248] {
        let (root, msix) = root(functions);
        let mut group = c.benchmark_group(format!("{functions} functions"));
        let last = (functions as u64 - 1) * BAR;
        group.bench_function("write to the last function's BAR", |b| {
            b.iter(|| root.write(Window::High, black_box(last + 0x4000), &[1, 0]))
        });
        group.bench_function("read of a register by ECAM", |b| {
            b.iter(|| root.read(Window::Ecam, black_box(1 << 15), &mut [0; 4]))
        });
        group.bench_function("function off and on", |b| {
            b.iter(|| {
                let _ = root.write(Window::Ecam, black_box(1 << 15 | 4), &[0, 0]);
                root.write(Window::Ecam, black_box(1 << 15 | 4), &[2, 0])
            })
        });
        msix.write_control(0x80);
        msix.write_table(12, &[0]);
        group.bench_function("interrupt", |b| b.iter(|| msix.fire(black_box(0))));
        group.finish();
    }
}

criterion_group!(benches, accesses);
criterion_main!(benches);
