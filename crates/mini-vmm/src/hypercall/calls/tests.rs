// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The handlers of a whole machine, with fakes for what needs KVM.

use std::sync::Mutex;

use para_abi::vmm::{VMM_HC_BASE, VMM_HC_CONSOLE_WRITE, VMM_HC_EXIT, VMM_HC_NOP, VMM_HC_SNAPSHOT};
use proptest::prelude::*;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::console::CONSOLE_WRITE_MAX;
use super::*;
use crate::irq::MsiSender;
use crate::outcome::{Outcome, OutcomeLatch};

type Memory = GuestMemoryMmap<AtomicBitmap>;

/// RAM of the fake machine: two regions with a hole between them.
const RAM: [(GuestAddress, usize); 2] =
    [(GuestAddress(0), 0x4000), (GuestAddress(0x1_0000), 0x4000)];
const CPUS: u8 = 3;

fn clock(vcpu: u32) -> Option<Pair> {
    assert!(vcpu < u32::from(CPUS));
    Some(Pair {
        realtime_ns: u64::MAX,
        guest_tsc: u64::MAX,
    })
}

#[derive(Debug)]
struct Machine {
    calls: Arc<Hypercalls>,
    memory: Memory,
    sink: Arc<Mutex<Vec<u8>>>,
    outcome: OutcomeLatch,
}

/// Sends interrupts to existing vCPUs only.
fn msi() -> MsiSender {
    MsiSender::new(|msi| {
        assert!(msi.address >> 12 & 0xff < CPUS.into());
        Ok(true)
    })
}

/// With or without a console, and snapshots that the guest may ask for.
fn machine(console: bool) -> Machine {
    let memory = Memory::from_ranges(&RAM).unwrap();
    let sink = Arc::default();
    let seen: Arc<Mutex<Vec<u8>>> = Arc::clone(&sink);
    let put = move |bytes: &[u8]| seen.lock().unwrap().extend_from_slice(bytes);
    let outcome = OutcomeLatch::new().unwrap();
    let services = Services {
        memory: memory.clone(),
        cpus: CPUS,
        msi: msi(),
        clock: Box::new(clock),
        snapshots: console.then(Arc::default),
        console: console.then(|| Box::new(put) as ConsoleSink),
        outcome: outcome.clone(),
    };
    Machine {
        calls: services.build(),
        memory,
        sink,
        outcome,
    }
}

const KERNEL: Caller = Caller {
    vcpu: 0,
    cpl: 0,
    long_mode: true,
};

fn call(machine: &Machine, nr: u64, args: &[u64]) -> i64 {
    let mut all = [0x5a5a; 6];
    all[..args.len()].copy_from_slice(args);
    machine.calls.call(&KERNEL, &Call { nr, args: all }) as i64
}

#[test]
fn numbers_lead_to_their_handlers() {
    let machine = machine(true);
    machine
        .memory
        .write_slice(b"hello", GuestAddress(0x3ffb))
        .unwrap();
    assert_eq!(call(&machine, 1, &[]), 0);
    assert_eq!(call(&machine, 5, &[0, 1]), 0);
    assert_eq!(call(&machine, 9, &[0x1000, 0]), 0);
    assert_eq!(call(&machine, 9, &[0x3fff, 0]), -14);
    assert_eq!(call(&machine, 9, &[0x1000, 1]), -95);
    assert_eq!(call(&machine, 10, &[0b111, 0, 0, 0x4040]), 3);
    assert_eq!(call(&machine, 11, &[1]), 0);
    assert_eq!(call(&machine, 12, &[0x1_0000, 4, 0]), 0);
    assert_eq!(call(&machine, 12, &[0x1_0001, 4, 0]), -22);
    assert_eq!(call(&machine, VMM_HC_NOP, &[]), 0);
    assert_eq!(call(&machine, VMM_HC_BASE + 1, &[7]), 0);
    assert_eq!(call(&machine, VMM_HC_CONSOLE_WRITE, &[0x3ffb, 5]), 5);
    assert_eq!(*machine.sink.lock().unwrap(), b"hello");
    assert_eq!(call(&machine, VMM_HC_EXIT, &[256]), -22);
    assert_eq!(machine.outcome.get(), None);
    call(&machine, VMM_HC_EXIT, &[42]);
    assert_eq!(machine.outcome.get(), Some(Outcome::GuestExit(42)));
}

#[test]
fn unknown_numbers_are_minus_1000() {
    let machine = machine(true);
    for nr in [
        0,
        2,
        3,
        4,
        6,
        13,
        VMM_HC_BASE - 1,
        VMM_HC_BASE + 5,
        VMM_HC_NOP | 1 << 32,
        1 << 32 | 1,
        u64::MAX,
    ] {
        assert_eq!(call(&machine, nr, &[]), -1000, "{nr:#x}");
    }
    assert_eq!(machine.calls.counters().unknown, 11);
    let without = super::tests::machine(false);
    for nr in [VMM_HC_CONSOLE_WRITE, VMM_HC_SNAPSHOT] {
        assert_eq!(call(&without, nr, &[0, 1]), -1000, "{nr:#x}");
    }
}

#[test]
fn h16_only_cpl_0_may_call() {
    let machine = machine(true);
    for cpl in [1, 2, 3, 0xff] {
        for nr in [1, VMM_HC_EXIT, VMM_HC_CONSOLE_WRITE, 77] {
            let caller = Caller { cpl, ..KERNEL };
            let call = Call { nr, args: [0; 6] };
            assert_eq!(machine.calls.call(&caller, &call) as i64, -1);
        }
    }
    assert_eq!(machine.outcome.get(), None);
    let counters = machine.calls.counters();
    assert_eq!((counters.unprivileged, counters.unknown), (16, 0));
    assert!(counters.calls.iter().all(|(.., calls)| *calls == 0));
}

#[test]
fn calls_are_counted_by_number() {
    let machine = machine(true);
    for _ in 0..3 {
        call(&machine, VMM_HC_NOP, &[]);
    }
    call(&machine, 12, &[1, 1, 1]);
    let counters = machine.calls.counters();
    assert!(counters.calls.is_sorted());
    let used: Vec<_> = counters.calls.iter().filter(|(.., n)| *n > 0).collect();
    assert_eq!(used, [&(12, "MAP_GPA_RANGE", 1), &(VMM_HC_NOP, "NOP", 3)]);
    call(&machine, 99, &[]);
    let counters = machine.calls.counters();
    assert_eq!(counters.total(), 5);
    assert_eq!(counters.to_string(), "MAP_GPA_RANGE 1, NOP 3, unknown 1");
}

/// Numbers of this VMM, and others.
#[test]
fn calls_of_all_vcpus_are_counted_together() {
    let handler = |_: &Caller, call: &Call| match call.nr {
        number @ 0..40 => Ok(number),
        _ => Err(KvmErrno::KVM_ENOSYS),
    };
    let calls = Hypercalls::new(handler, 3);
    let call = |vcpu, cpl, nr| {
        let caller = Caller {
            vcpu,
            cpl,
            ..KERNEL
        };
        calls.call(&caller, &Call { nr, args: [0; 6] })
    };
    for vcpu in 0..3 {
        for nr in 0..40 {
            for _ in 0..=nr {
                assert_eq!(call(vcpu, 0, nr), nr);
            }
        }
        call(vcpu, 0, 40);
        call(vcpu, 3, 0);
    }
    let counters = calls.counters();
    let mut named = 0;
    for (number, _, count) in &counters.calls {
        let expected = if *number < 40 { 3 * (number + 1) } else { 0 };
        assert_eq!(*count, expected);
        named += count;
    }
    assert!(named > 0);
    assert_eq!(counters.other, 3 * (1..=40).sum::<u64>() - named);
    assert_eq!((counters.unknown, counters.unprivileged), (3, 3));
    // A vCPU beyond the announced number is answered.
    assert_eq!(call(3, 0, 7), 7);
    assert_eq!(calls.counters(), counters);
}

#[test]
fn every_number_with_a_name_is_answered() {
    let machine = machine(true);
    for (at, (nr, name)) in NUMBERS.into_iter().enumerate() {
        call(&machine, nr, &[]);
        let counters = machine.calls.counters();
        assert_eq!((counters.unknown, counters.calls[at]), (0, (nr, name, 1)));
    }
}

#[test]
fn a_handler_passes_on_what_it_does_not_know() {
    let services = Services {
        snapshots: None,
        memory: Memory::from_ranges(&RAM).unwrap(),
        cpus: CPUS,
        msi: msi(),
        clock: Box::new(clock),
        console: None,
        outcome: OutcomeLatch::new().unwrap(),
    };
    let machine = services.handler();
    let own = move |caller: &Caller, call: &Call| match call.nr {
        77 => Ok(call.args[1]),
        _ => machine.call(caller, call),
    };
    let calls = Hypercalls::new(own, CPUS);
    let call = |nr| {
        calls.call(
            &KERNEL,
            &Call {
                nr,
                args: [0, 9, 0, 0, 0, 0],
            },
        ) as i64
    };
    assert_eq!([77, VMM_HC_NOP, 78].map(call), [9, 0, -1000]);
    assert_eq!(calls.counters().to_string(), "NOP 1, other 1, unknown 1");
}

/// Known and unknown numbers.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..16u64, VMM_HC_BASE..VMM_HC_BASE + 6, any::<u64>()]
}

/// Addresses and lengths at the edges of RAM, and arbitrary ones.
fn argument() -> impl Strategy<Value = u64> {
    let edges = [
        0u64,
        0x1000,
        0x4000,
        0x1_0000,
        0x1_4000,
        1 << 32,
        1 << 52,
        0,
    ];
    let near = (0..edges.len(), -70i64..70)
        .prop_map(move |(edge, by)| edges[edge].wrapping_add_signed(by));
    prop_oneof![near, any::<u64>()]
}

proptest! {
    #[test]
    fn no_call_panics_or_leaves_ram(
        calls in prop::collection::vec((number(), prop::array::uniform6(argument()), 0..CPUS, any::<bool>(), 0u8..4), 1..20)
    ) {
        let machine = machine(true);
        for (nr, args, vcpu, long_mode, cpl) in calls {
            let caller = Caller { vcpu: vcpu.into(), cpl, long_mode };
            let before = machine.sink.lock().unwrap().len();
            let answer = machine.calls.call(&caller, &Call { nr, args });
            let errno = KvmErrno::from_ret(answer);
            prop_assert!(errno.is_some() || answer <= CONSOLE_WRITE_MAX, "{answer:#x}");
            prop_assert_eq!(errno == Some(KvmErrno::KVM_EPERM), cpl != 0);
            let written = machine.sink.lock().unwrap().len() - before;
            let is_write = nr == VMM_HC_CONSOLE_WRITE && errno.is_none();
            prop_assert_eq!(written as u64, if is_write { answer } else { 0 });
        }
    }
}
