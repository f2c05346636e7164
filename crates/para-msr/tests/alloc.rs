// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! MSR accesses don't allocate: the allocator counts.
// Implementing an allocator is unsafe; this one counts and forwards.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use para_msr::handlers::{Constant, LogGp, OnWrite, PerVcpuValues, ReadOnly, Shadow, WriteIgnore};
use para_msr::{MsrDispatchBuilder, Outcome};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is forwarded unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_hundred_thousand_accesses_allocate_nothing() {
    let values = PerVcpuValues::new(1, |_| 1);
    let (sender, _receiver) = std::sync::mpsc::sync_channel::<()>(1);
    let tell = move |_, _| {
        let _ = sender.try_send(());
    };
    let mut msrs = MsrDispatchBuilder::new()
        .insert(0x10, Constant::new(1))
        .unwrap()
        .insert(0x20, ReadOnly(Constant::new(1)))
        .unwrap()
        .insert(0x30, WriteIgnore(Constant::new(1)))
        .unwrap()
        .insert(0x40, Shadow::<1>::new(0x40, 0).unwrap())
        .unwrap()
        .insert(0x50, values.writable_handler(0))
        .unwrap()
        .insert(0x60, OnWrite::new(Shadow::<1>::new(0x60, 0).unwrap(), tell))
        .unwrap()
        .insert(0x70, LogGp::new("nobody's"))
        .unwrap()
        .build();
    let counters = msrs.counters();
    let mut outcomes = [0u32; 3];
    let mut note = |outcome| {
        let kinds = [
            Outcome::Handled(()),
            Outcome::GpException,
            Outcome::NotHandled,
        ];
        outcomes[kinds.iter().position(|kind| *kind == outcome).unwrap()] += 1;
    };
    let before = ALLOCATIONS.get();
    for round in 0..6_250u32 {
        for index in (0x00..0x80).step_by(0x10) {
            note(match msrs.read(index) {
                Outcome::Handled(_) => Outcome::Handled(()),
                Outcome::GpException => Outcome::GpException,
                _ => Outcome::NotHandled,
            });
            note(msrs.write(index, round.into()));
        }
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
    assert_eq!(outcomes, [10 * 6_250, 4 * 6_250, 2 * 6_250]);
    assert_eq!(counters.not_handled(), 2 * 6_250);
    assert!(
        counters
            .iter()
            .all(|count| count.reads == 6_250 && count.writes == 6_250)
    );
    // The counter works.
    drop(std::hint::black_box(Box::new(1u8)));
    assert!(ALLOCATIONS.get() > before);
}
