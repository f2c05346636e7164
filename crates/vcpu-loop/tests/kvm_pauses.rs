// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kicks and pauses on real KVM, also of guests that exit all the time, and what guests are told of them. Without a usable
//! /dev/kvm each test prints SKIP.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{ENTRY, Machine, SOON, STORM, is_long, kvm, set};
use vcpu_loop::kvm::KvmVcpu;
use vcpu_loop::{Exit, Flow, Next, Unclaimed, Vcpu, VcpuId, VcpuIo, dispatch};
use vm_memory::{Bytes, GuestAddress};

/// The address of the guest's kvmclock.
const CLOCK: u64 = 0x5000;

#[derive(Default)]
struct Counter(Arc<AtomicU64>);

impl VcpuIo for Counter {
    fn pio_write(&mut self, _: u16, _: &[u8]) -> Next {
        self.0.fetch_add(1, Ordering::Relaxed);
        Next::Continue
    }
}

#[test]
fn a_restored_guest_is_told_that_it_was_stopped() {
    let Some(kvm) = kvm("a_restored_guest_is_told_that_it_was_stopped") else {
        return;
    };
    let machine = Machine::new(&kvm, STORM);
    let Some(vcpu) = with_kvmclock("a_restored_guest_is_told_that_it_was_stopped", &machine) else {
        return;
    };
    let (mut vcpus, _events) = set();
    vcpus.spawn(0, vcpu, Counter::default()).unwrap();
    vcpus.resume(SOON).unwrap();
    vcpus.pause(SOON).unwrap();
    let states = vcpus.save(SOON).unwrap();

    let other = Machine::new(&kvm, STORM);
    let (mut vcpus, _events) = set();
    let io = Counter::default();
    let exits = Arc::clone(&io.0);
    vcpus.spawn(0, other.vcpu(0), io).unwrap();
    vcpus.restore(states, SOON).unwrap();
    vcpus.resume(SOON).unwrap();
    let start = Instant::now();
    while exits.load(Ordering::Relaxed) == 0 && start.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(1));
    }
    vcpus.pause(SOON).unwrap();
    assert!(was_told_of_a_stop(&other));
}

#[test]
fn a_guest_is_told_of_noticeable_pauses_only() {
    let Some(kvm) = kvm("a_guest_is_told_of_noticeable_pauses_only") else {
        return;
    };
    for (noticeable, told) in [(Duration::MAX, false), (Duration::ZERO, true)] {
        let machine = Machine::new(&kvm, STORM);
        let Some(vcpu) = with_kvmclock("a_guest_is_told_of_noticeable_pauses_only", &machine)
        else {
            return;
        };
        let io = Counter::default();
        let exits = Arc::clone(&io.0);
        let (mut vcpus, _events) = set();
        let vcpu = vcpu.with_noticeable_pause(noticeable);
        vcpus.spawn(0, vcpu, io).unwrap();
        for pause in 0..3 {
            let before = exits.load(Ordering::Relaxed);
            vcpus.resume(SOON).unwrap();
            let start = Instant::now();
            while exits.load(Ordering::Relaxed) == before && start.elapsed() < SOON {
                std::thread::sleep(Duration::from_millis(1));
            }
            vcpus.pause(SOON).unwrap();
            assert_eq!(was_told_of_a_stop(&machine), told && pause > 0, "{pause}");
        }
    }
}

/// A vCPU whose guest has enabled kvmclock.
fn with_kvmclock(test: &str, machine: &Machine) -> Option<KvmVcpu> {
    const SYSTEM_TIME: u32 = 0x4b56_4d01;
    let vcpu = machine.vcpu(0);
    let enable = kvm_bindings::kvm_msr_entry {
        index: SYSTEM_TIME,
        data: CLOCK | 1,
        reserved: 0,
    };
    let block = kvm_bindings::Msrs::from_entries(&[enable]).unwrap();
    if vcpu.fd().set_msrs(&block).unwrap() == 1 {
        return Some(vcpu);
    }
    eprintln!("SKIP: {test}: KVM has no kvmclock");
    None
}

/// PVCLOCK_GUEST_STOPPED in the flags of `struct pvclock_vcpu_time_info`.
fn was_told_of_a_stop(machine: &Machine) -> bool {
    let flags: u8 = machine.memory.read_obj(GuestAddress(CLOCK + 29)).unwrap();
    flags & 2 != 0
}

/// The guest exits all the time, and only a kick interrupts it, so a lost kick is a missed deadline.
///
/// A million kicks in the long variant. On an emulated KVM, a kick takes a millisecond.
#[test]
fn of_many_kicks_against_an_exit_storm_none_is_lost() {
    let test = "of_many_kicks_against_an_exit_storm_none_is_lost";
    let Some(kvm) = kvm(test) else {
        return;
    };
    let kicks = if is_long(test) { 1_000_000 } else { 20_000 };
    let machine = Machine::new(&kvm, STORM);
    let io = Counter::default();
    let exits = Arc::clone(&io.0);
    let (mut vcpus, _events) = set();
    vcpus.spawn(0, machine.vcpu(0), io).unwrap();
    vcpus.resume(SOON).unwrap();
    for kick in 0..kicks {
        vcpus
            .wake(0, SOON)
            .unwrap_or_else(|error| panic!("kick {kick}: {error}"));
    }
    let exits = exits.load(Ordering::Relaxed);
    eprintln!("{kicks} kicks, {exits} exits meanwhile, none lost");
    vcpus.stop(SOON).unwrap();
}

#[test]
fn sixty_four_pauses_of_four_vcpus() {
    let Some(kvm) = kvm("sixty_four_pauses_of_four_vcpus") else {
        return;
    };
    let machine = Machine::new(&kvm, STORM);
    let (mut vcpus, _events) = set();
    let counters: Vec<Arc<AtomicU64>> = (0..4).map(|_| Arc::default()).collect();
    for (id, counter) in (0..).zip(&counters) {
        vcpus
            .spawn(id, machine.vcpu(id.into()), Counter(Arc::clone(counter)))
            .unwrap();
    }
    let counts = || {
        counters
            .iter()
            .map(|n| n.load(Ordering::Relaxed))
            .collect::<Vec<_>>()
    };
    for round in 0..64 {
        vcpus.resume(SOON).unwrap();
        vcpus.pause(SOON).unwrap();
        let before = counts();
        let states = vcpus.save(SOON).unwrap();
        // Between two instructions: before the `out` or the jump.
        assert!(
            states
                .iter()
                .all(|s| s.regs.rip == ENTRY || s.regs.rip == ENTRY + 2),
            "round {round}"
        );
        assert_eq!(counts(), before, "round {round}");
    }
    vcpus.stop(SOON).unwrap();
}

#[test]
fn a_vcpu_that_halts_in_the_kernel_or_waits_for_sipi_is_kicked_out() {
    let Some(kvm) = kvm("a_vcpu_that_halts_in_the_kernel_or_waits_for_sipi_is_kicked_out") else {
        return;
    };
    let machine = Machine::new(&kvm, &[0xf4, 0xeb, 0xfd]);
    machine.vm.create_irq_chip().unwrap();
    let (mut vcpus, events) = set();
    for id in 0..3 {
        vcpus
            .spawn(id, machine.vcpu(id.into()), Counter::default())
            .unwrap();
    }
    for _ in 0..20 {
        vcpus.resume(SOON).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        vcpus.pause(SOON).unwrap();
    }
    let states = vcpus.save(SOON).unwrap();
    assert!(states.iter().all(|state| state.lapic.is_some()));
    vcpus.restore(states, SOON).unwrap();
    vcpus.resume(SOON).unwrap();
    vcpus.stop(SOON).unwrap();
    assert!(events.try_recv().is_none());
}

#[test]
fn completing_runs_no_guest_instruction() {
    let Some(kvm) = kvm("completing_runs_no_guest_instruction") else {
        return;
    };
    let machine = Machine::new(&kvm, STORM);
    let mut vcpu = machine.vcpu(0);
    for _ in 0..1000 {
        let unclaimed = Unclaimed::default();
        let flow = dispatch(
            vcpu.run().unwrap(),
            &mut Counter::default(),
            VcpuId(0),
            &unclaimed,
        );
        if flow == Flow::Continue {
            while !matches!(vcpu.complete().unwrap(), Exit::Interrupted) {}
            assert_eq!(vcpu.fd().get_regs().unwrap().rip, ENTRY + 2);
        }
    }
}
