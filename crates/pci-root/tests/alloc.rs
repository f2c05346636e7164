// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest's accesses and a device's interrupts don't allocate: the allocator counts.
// Implementing an allocator is unsafe; this one counts and forwards.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use pci_root::{
    Bar, Class, Fired, FunctionBuilder, Ids, Message, MsiSink, Msix, MsixPlace, NoDevice,
    RootBuilder, Span, Window, Windows,
};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is forwarded unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct NoSink;

impl MsiSink for NoSink {
    fn send(&self, _: Message) {}
}

#[test]
fn accesses_moves_and_interrupts_allocate_nothing() {
    let windows = Windows {
        ecam: 0xe000_0000,
        buses: 1,
        low: Span::new(0xd000_0000, 0x1000_0000),
        high: Span::default(),
    };
    let msix = Arc::new(Msix::new(70, Arc::new(NoSink)).unwrap());
    let place = MsixPlace {
        table: (0, 0),
        pba: (0, 0x800),
    };
    let mut function = FunctionBuilder::new(Ids::new(1, 2, Class::OTHER)).unwrap();
    // As many BARs as possible.
    for bar in 0..6 {
        function = function.bar(bar, Bar::memory32(0x1000)).unwrap();
    }
    let function = function.msix(Arc::clone(&msix), place).unwrap();
    let mut builder = RootBuilder::new(windows).unwrap();
    builder.push(function.build(Arc::new(NoDevice))).unwrap();
    let root = builder.build().unwrap();

    let before = ALLOCATIONS.get();
    let config = 1 << 15;
    for round in 0..10_000u32 {
        let mut data = [0; 8];
        let _ = root.read(Window::Ecam, config + u64::from(round % 0x100), &mut data);
        let _ = root.write(Window::Ecam, config + 4, &[round as u8 & 6, 0]);
        let place = 0xd000_0000 + round % 16 * 0x1000;
        let _ = root.write(Window::Ecam, config + 0x10, &place.to_le_bytes());
        let _ = root.read(Window::Low, (round % 16 * 0x1000).into(), &mut data);
        let _ = root.write(Window::Ecam, config + 0x42, &[0, round as u8]);
        let _ = root.write(Window::Low, (round % 0x600).into(), &data);
        assert!(matches!(
            msix.fire(round as u16 % 70),
            Fired::Sent | Fired::Pending | Fired::Dropped
        ));
    }
    assert_eq!(ALLOCATIONS.get(), before);
}
