// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A registered vCPU's calls and MSR accesses allocate nothing. The global allocator counts.
// An allocator is an unsafe trait. This one counts, and forwards each call.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use hypercall_patch::{PioPort, Stub};
use mini_vmm::hypercall::calls::{Pair, Services};
use mini_vmm::hypercall::para::{CallRegisters, Gate, ParaHandler, RouteChoice, VcpuMsrs};
use mini_vmm::irq::MsiSender;
use mini_vmm::machine::MachineIo;
use mini_vmm::outcome::OutcomeLatch;
use para_abi::vmm::{VMM_HC_BOOT_MARK, VMM_HC_CONSOLE_WRITE, VMM_HC_NOP};
use para_abi::{Convention, MSR_KVM_API_MAGIC, ParaStatePayload, Registers};
use vcpu_loop::bus::BusBuilder;
use vcpu_loop::kvm::CpuMode;
use vcpu_loop::{Access, Exit, ExitHistory, ExitRecord, Flow, Unclaimed, VcpuId, dispatch};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

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

/// Fake registers of a vCPU. Their lock belongs to the test, not to the measured path.
#[derive(Clone, Default)]
struct FakeRegisters(Arc<Mutex<Registers>>);

impl FakeRegisters {
    fn set(&self, regs: &Registers) {
        *self.0.lock().unwrap() = *regs;
    }
}

impl CallRegisters for FakeRegisters {
    fn share(&self) {}

    fn are_filled(&self) -> bool {
        true
    }

    fn get(&self) -> Registers {
        *self.0.lock().unwrap()
    }

    fn set_rax(&self, rax: u64) {
        self.0.lock().unwrap().rax = rax;
    }

    fn mode(&self) -> CpuMode {
        CpuMode {
            cpl: 0,
            long_mode: true,
        }
    }
}

#[derive(Default)]
struct Counts {
    interrupts: AtomicU64,
    bytes: AtomicU64,
}

const PAGE: u64 = 0x1000;
const SITE: u64 = 0x2000;
const DATA: u64 = 0x3000;
const NOBODYS: u64 = 0x7fff;

fn machine(counts: &Arc<Counts>) -> (MachineIo<FakeRegisters>, FakeRegisters) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let page = ParaStatePayload::new(SITE).to_bytes();
    memory.write_slice(&page, GuestAddress(PAGE)).unwrap();
    let registers = FakeRegisters::default();
    let port = PioPort::DEFAULT;
    let gate = Gate::new(Some(port), Convention::Kvm, vec![registers.clone()]);
    let gate = Arc::new(gate);
    let latch = OutcomeLatch::new().unwrap();
    let sent = Arc::clone(counts);
    let msi = MsiSender::new(move |_| {
        sent.interrupts.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    });
    let written = Arc::clone(counts);
    let put = move |bytes: &[u8]| {
        let count = bytes.len() as u64;
        written.bytes.fetch_add(count, Ordering::Relaxed);
    };
    let pair = Pair {
        realtime_ns: 1,
        guest_tsc: 2,
    };
    let services = Services {
        snapshots: None,
        memory: memory.clone(),
        cpus: 1,
        msi,
        clock: Box::new(move |_| Some(pair)),
        console: Some(Box::new(put)),
        outcome: latch.clone(),
    };
    let route = Arc::new(RouteChoice::fixed(Stub::Pio(port)));
    let para = ParaHandler::new(0, Arc::new(memory), route, Arc::clone(&gate));
    let io = MachineIo {
        vcpu: 0,
        bus: BusBuilder::new().build(),
        msrs: VcpuMsrs::new(0, Some(para), true),
        gate,
        calls: services.build(),
        latch,
    };
    (io, registers)
}

/// A call's number, arguments and answer.
const CALLS: [(u64, [u64; 4], i64); 10] = [
    (1, [0; 4], 0),
    (5, [0; 4], 0),
    (9, [DATA, 0, 0, 0], 0),
    (10, [1, 0, 0, 0x40], 1),
    (11, [0; 4], 0),
    (12, [0x1000, 1, 0, 0], 0),
    (VMM_HC_NOP, [0; 4], 0),
    (VMM_HC_BOOT_MARK, [7; 4], 0),
    (VMM_HC_CONSOLE_WRITE, [DATA, 4096, 0, 0], 4096),
    (NOBODYS, [0; 4], -1000),
];

#[test]
fn a_registered_vcpus_calls_and_msr_accesses_allocate_nothing() {
    let counts = Arc::new(Counts::default());
    let (mut io, registers) = machine(&counts);
    let (unclaimed, mut history) = (Unclaimed::default(), ExitHistory::default());
    let (mut word, mut error) = (0, 0);
    let mut answer = |exit: Exit<'_>| {
        history.push(ExitRecord::from(&exit));
        let flow = dispatch(exit, &mut io, VcpuId(0), &unclaimed);
        assert_eq!(flow, Flow::Continue);
    };
    let mut before = None;
    // The first round registers, and does what happens only once.
    for round in 0..1000 {
        for (index, data) in [(MSR_KVM_API_MAGIC, PAGE), (MSR_KVM_API_MAGIC, 8), (0x35, 1)] {
            answer(Exit::Wrmsr {
                index,
                data,
                error: &mut error,
            });
            assert_eq!(error != 0, data != PAGE, "{index:#x}, {data:#x}");
            answer(Exit::Rdmsr {
                index,
                data: &mut word,
                error: &mut error,
            });
            assert_ne!(error, 0);
        }
        for (rax, [rbx, rcx, rdx, rsi], expected) in CALLS {
            registers.set(&Registers {
                rax,
                rbx,
                rcx,
                rdx,
                rsi,
                ..Default::default()
            });
            answer(Exit::PioOut {
                port: u16::from(PioPort::DEFAULT),
                size: 1,
                data: &[0],
            });
            assert_eq!(registers.get().rax as i64, expected, "{rax:#x}");
        }
        if round == 0 {
            before = Some(ALLOCATIONS.get());
        }
    }
    assert_eq!(ALLOCATIONS.get() - before.unwrap(), 0);
    assert_eq!(counts.interrupts.load(Ordering::Relaxed), 2000);
    assert_eq!(counts.bytes.load(Ordering::Relaxed), 4096 * 1000);
    assert_eq!(unclaimed.count(Access::PioWrite), 0);
    assert_eq!(unclaimed.count(Access::Wrmsr), 1000);
    // Check that the counter works.
    drop(std::hint::black_box(Box::new(1u8)));
    assert!(ALLOCATIONS.get() > before.unwrap());
}
