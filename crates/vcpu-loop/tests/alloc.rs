// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The exit path allocates nothing: a global allocator counts.
// `GlobalAlloc` is an unsafe trait; this one only counts and forwards.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::{Arc, Mutex};

use vcpu_loop::bus::{Bus, BusBuilder, BusDevice, Place};
use vcpu_loop::{
    Access, Exit, ExitHistory, ExitRecord, Flow, MsrReply, Next, Unclaimed, VcpuId, VcpuIo,
    dispatch,
};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is forwarded to the system's allocator unchanged.
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

struct Register(Mutex<u8>);

impl BusDevice for Register {
    fn read(&self, _: Place, data: &mut [u8]) -> Next {
        data.fill(*self.0.lock().unwrap());
        Next::Continue
    }
    fn write(&self, _: Place, data: &[u8]) -> Next {
        *self.0.lock().unwrap() = data[0];
        Next::Continue
    }
}

struct Io(Arc<Bus>);

impl VcpuIo for Io {
    fn pio_read(&mut self, port: u16, data: &mut [u8]) -> Next {
        self.0.pio_read(port, data)
    }
    fn pio_write(&mut self, port: u16, data: &[u8]) -> Next {
        self.0.pio_write(port, data)
    }
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) -> Next {
        self.0.mmio_read(addr, data)
    }
    fn mmio_write(&mut self, addr: u64, data: &[u8]) -> Next {
        self.0.mmio_write(addr, data)
    }
    fn rdmsr(&mut self, _: u32) -> MsrReply<u64> {
        MsrReply::Value(1)
    }
}

#[test]
fn sixty_thousand_exits_allocate_nothing() {
    let mut builder = BusBuilder::new();
    for base in 0..32 {
        builder
            .insert_pio(base * 16, 8, Arc::new(Register(Mutex::new(0))))
            .unwrap();
        builder
            .insert_mmio(
                u64::from(base) << 12,
                0x800,
                Arc::new(Register(Mutex::new(0))),
            )
            .unwrap();
    }
    let mut io = Io(builder.build());
    let (unclaimed, mut history) = (Unclaimed::default(), ExitHistory::default());
    let mut data = [0u8; 8];
    let (mut word, mut error) = (0, 0);
    let before = ALLOCATIONS.get();
    for round in 0..10_000u64 {
        let port = (round % 600) as u16;
        let addr = round * 8 % 0x2_2000;
        let mut answer = |exit: Exit<'_>| {
            history.push(ExitRecord::from(&exit));
            assert_eq!(
                dispatch(exit, &mut io, VcpuId(0), &unclaimed),
                Flow::Continue
            );
        };
        answer(Exit::PioOut {
            port,
            size: 1,
            data: &[1],
        });
        answer(Exit::PioIn {
            port,
            size: 2,
            data: &mut data[..2],
        });
        answer(Exit::MmioWrite {
            addr,
            data: &[1; 4],
        });
        answer(Exit::MmioRead {
            addr,
            data: &mut data,
        });
        answer(Exit::Rdmsr {
            index: 1,
            data: &mut word,
            error: &mut error,
        });
        answer(Exit::Wrmsr {
            index: 1,
            data: word,
            error: &mut error,
        });
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
    // Both outcomes occurred.
    assert!(unclaimed.count(Access::PioRead) > 0 && unclaimed.count(Access::PioRead) < 10_000);
    assert_eq!(unclaimed.count(Access::Wrmsr), 10_000);
    // The counter works.
    drop(std::hint::black_box(Box::new(1u8)));
    assert!(ALLOCATIONS.get() > before);
}
