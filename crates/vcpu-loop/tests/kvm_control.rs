// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Control of single vCPUs on real KVM: stepping, calls while they run, stop and spawn again, and a thread of the
//! caller. Without a usable /dev/kvm each test prints SKIP.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../examples/debugger.rs"]
mod debugger;
#[path = "../examples/own_thread.rs"]
mod own_thread;

use common::{ENTRY, Machine, SOON, STORM, kvm, set};
use vcpu_loop::kvm::KvmVcpu;
use vcpu_loop::{
    Error, ExitKind, KickSignal, Next, SpawnError, State, Stopped, VcpuBuilder, VcpuIo,
};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::signal::block_signal;

/// `jmp $`
const SPIN: &[u8] = b"\xeb\xfe";

struct Port;

impl VcpuIo for Port {
    fn pio_write(&mut self, _: u16, _: &[u8]) -> Next {
        Next::Continue
    }
}

#[test]
fn the_debugger_steps_one_vcpu_and_lets_it_go_on() {
    let Some(kvm) = kvm("the_debugger_steps_one_vcpu_and_lets_it_go_on") else {
        return;
    };
    let places = debugger::run(&kvm, 7).unwrap();
    // inc ax; out 0x80, al; jmp back
    let next = |place: u64| match place - ENTRY {
        0 => ENTRY + 1,
        1 => ENTRY + 3,
        3 => ENTRY,
        other => panic!("no instruction begins at {other:#x}"),
    };
    assert_eq!(places.len(), 7);
    for pair in places.windows(2) {
        // An emulated KVM doesn't report the step over `out`, only the next one.
        let over_out = pair[0] == ENTRY + 1 && pair[1] == next(next(pair[0]));
        assert!(pair[1] == next(pair[0]) || over_out, "{places:#x?}");
    }
    let lines = include_str!("../examples/debugger.rs").lines().count();
    assert!(lines <= 150, "{lines} lines");
}

#[test]
fn a_vcpu_runs_on_the_callers_thread() {
    let Some(kvm) = kvm("a_vcpu_runs_on_the_callers_thread") else {
        return;
    };
    assert_eq!(own_thread::run(&kvm).unwrap(), "hi");
}

/// Only a signal takes this guest out of KVM_RUN.
#[test]
fn a_hook_that_blocks_signals_delays_no_pause_of_a_guest_that_spins() {
    let Some(kvm) = kvm("a_hook_that_blocks_signals_delays_no_pause_of_a_guest_that_spins") else {
        return;
    };
    let machine = Machine::new(&kvm, SPIN);
    let (mut vcpus, _events) = set();
    let signal = KickSignal::default().number();
    let vcpu = VcpuBuilder::new(0, machine.vcpu(0), Port).on_start(move |_, _| {
        block_signal(signal).unwrap();
        Ok(())
    });
    vcpus.spawn_with(vcpu).unwrap();
    for _ in 0..20 {
        vcpus.resume(SOON).unwrap();
        vcpus.pause(SOON).unwrap();
    }
    vcpus.stop(SOON).unwrap();
}

#[test]
fn no_kick_is_lost_after_a_vcpu_was_replaced() {
    let Some(kvm) = kvm("no_kick_is_lost_after_a_vcpu_was_replaced") else {
        return;
    };
    let machine = Machine::new(&kvm, STORM);
    let (mut vcpus, _events) = set();
    vcpus.spawn(0, machine.vcpu(0), Port).unwrap();
    let mut spare = machine.vcpu(1);
    for _ in 0..50 {
        let swap = move |vcpu: &mut KvmVcpu| {
            std::mem::swap(vcpu, &mut spare);
            spare
        };
        spare = vcpus.with_vcpu(0, swap, SOON).unwrap();
        vcpus.resume(SOON).unwrap();
        vcpus.wake(0, SOON).unwrap();
        vcpus.pause(SOON).unwrap();
    }
    vcpus.stop(SOON).unwrap();
}

#[test]
fn an_nmi_is_injected_into_a_running_vcpu() {
    let Some(kvm) = kvm("an_nmi_is_injected_into_a_running_vcpu") else {
        return;
    };
    // The handler of vector 2: out 0x80, al; jmp $
    let machine = Machine::new(&kvm, SPIN);
    let handler = b"\xe6\x80\xeb\xfe";
    machine
        .memory
        .write_slice(handler, GuestAddress(0x3000))
        .unwrap();
    machine
        .memory
        .write_obj([0x3000u16, 0], GuestAddress(2 * 4))
        .unwrap();
    let (mut vcpus, _events) = set();
    vcpus.spawn(0, machine.vcpu(0), Port).unwrap();
    let exits = vcpus.exits(0).unwrap();
    vcpus.resume(SOON).unwrap();
    assert_eq!(exits.count(ExitKind::PioOut), 0);
    let inject = |vcpu: &mut KvmVcpu| vcpu.fd().nmi();
    vcpus.call(0, inject, SOON).unwrap().unwrap();
    while exits.count(ExitKind::PioOut) == 0 {
        std::thread::yield_now();
    }
    vcpus.stop(SOON).unwrap();
}

/// KVM doesn't create a second vCPU with the same id, so a stop returns the vCPU.
#[test]
fn a_stopped_vcpu_runs_on_in_another_set() {
    let Some(kvm) = kvm("a_stopped_vcpu_runs_on_in_another_set") else {
        return;
    };
    let machine = Machine::new(&kvm, STORM);
    let (mut vcpus, _events) = set();
    vcpus.spawn(0, machine.vcpu(0), Port).unwrap();
    vcpus.resume(SOON).unwrap();
    let stopped = vcpus.stop(SOON).unwrap().remove(0);
    assert!(machine.vm.create_vcpu(0).is_err());
    let stopped = stopped.downcast::<KvmVcpu, Port>().unwrap();
    let Stopped {
        id,
        state,
        vcpu,
        io,
        ..
    } = stopped;
    assert_eq!(state, State::Running);
    let (mut vcpus, _events) = set();
    // A spawn that can't start a thread returns it too.
    let greedy = VcpuBuilder::new(id, vcpu, io).stack_size(1 << 60);
    let SpawnError { error, vcpu, io } = vcpus.spawn_with(greedy).unwrap_err();
    assert!(matches!(error, Error::Thread { .. }));
    vcpus.spawn(id, vcpu, io).unwrap();
    let exits = vcpus.exits(id).unwrap();
    vcpus.resume(SOON).unwrap();
    while exits.count(ExitKind::PioOut) == 0 {
        std::thread::yield_now();
    }
    vcpus.pause(SOON).unwrap();
    vcpus.save(SOON).unwrap();
    vcpus.stop(SOON).unwrap();
}
