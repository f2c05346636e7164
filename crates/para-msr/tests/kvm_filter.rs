// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Filters on real KVM, with a tiny real-mode guest. Without a usable /dev/kvm each test prints SKIP.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../examples/filter_and_dispatch.rs"]
mod example;

use common::{Do, Exit, Gp, Machine, Stopped, Value, Written, filtered, kvm, nobody};
use kvm_ioctls::{
    MsrExitReason, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuExit,
};
use para_msr::filter::{Access, FilterDefault, MsrFilter, MsrFilterBuilder};
use para_msr::handlers::{Constant, Shadow, WriteIgnore};
use para_msr::kvm::{ExitReasons, KvmMsrs};
use para_msr::saved::{MsrAccess, MsrValue};
use para_msr::{MsrDispatchBuilder, MsrHandler, MsrRange, Outcome, profile};

/// The 2007 API's MSR, which no KVM knows.
const MSR_KVM_API_MAGIC: u32 = 0x8765_5678;
const MSR_TSC: u32 = 0x10;
const MSR_STAR: u32 = 0xc000_0081;
const EINTR: i32 = 4;
const EINVAL: i32 = 22;

fn builder(default: FilterDefault) -> MsrFilterBuilder {
    MsrFilterBuilder::new(default)
}

#[test]
fn h15_the_magic_msr_exits_by_the_filter_and_its_value_round_trips() {
    let Some(kvm) = kvm("h15_the_magic_msr_exits_by_the_filter_and_its_value_round_trips") else {
        return;
    };
    let machine = Machine::new(&kvm);
    let filter = builder(FilterDefault::Allow).deny(MSR_KVM_API_MAGIC, Access::Both);
    filter.compile().unwrap().install(&machine.vm).unwrap();
    let mut vcpu = machine.vcpu(0);
    let shadow = Shadow::<1>::new(MSR_KVM_API_MAGIC, 0)
        .unwrap()
        .reserved(0xfff);
    let mut msrs = MsrDispatchBuilder::new()
        .insert(MSR_KVM_API_MAGIC, shadow)
        .unwrap()
        .build();
    let value = 0xfedc_ba98_7654_3000;
    let steps = [
        Do::Write(MSR_KVM_API_MAGIC, value),
        Do::Read(MSR_KVM_API_MAGIC),
        Do::Write(MSR_KVM_API_MAGIC, 1),
        Do::Read(MSR_KVM_API_MAGIC),
    ];
    let seen = machine.run(&mut vcpu, &mut msrs, &steps);
    let exit = filtered(MSR_KVM_API_MAGIC);
    assert_eq!(
        seen,
        [
            exit,
            Written,
            exit,
            Value(value),
            exit,
            Gp,
            exit,
            Value(value)
        ]
    );
    // Without a handler: #GP in both directions, and counted.
    let mut msrs = nobody();
    let seen = machine.run(&mut vcpu, &mut msrs, &steps[..2]);
    assert_eq!(seen, [exit, Gp, exit, Gp]);
    assert_eq!(msrs.counters().not_handled(), 2);
}

#[test]
fn one_direction_exits_and_the_other_is_kvms() {
    let Some(kvm) = kvm("one_direction_exits_and_the_other_is_kvms") else {
        return;
    };
    let machine = Machine::new(&kvm);
    let filter = builder(FilterDefault::Allow)
        .deny(MSR_STAR, Access::Read)
        .deny(0x8b, Access::Both);
    filter.compile().unwrap().install(&machine.vm).unwrap();
    let mut vcpu = machine.vcpu(0);
    let mut msrs = MsrDispatchBuilder::new()
        .insert(MSR_STAR, Constant::new(0x1234))
        .unwrap()
        .insert(0x8b, WriteIgnore(Constant::new(7 << 32)))
        .unwrap()
        .build();
    let steps = [
        Do::Write(MSR_STAR, 99),
        Do::Read(MSR_STAR),
        Do::Write(0x8b, 0),
        Do::Read(0x8b),
    ];
    let seen = machine.run(&mut vcpu, &mut msrs, &steps);
    let expected = [
        Written,
        filtered(MSR_STAR),
        Value(0x1234),
        filtered(0x8b),
        Written,
        filtered(0x8b),
        Value(7 << 32),
    ];
    assert_eq!(seen, expected);
    // A filter doesn't apply to the host.
    let mut star = [MsrValue {
        index: MSR_STAR,
        value: 0,
    }];
    assert_eq!(KvmMsrs(&vcpu).get(&mut star), Ok(1));
    assert_eq!(star[0].value, 99);
    // The filter can be replaced between runs.
    let open = builder(FilterDefault::Allow).compile().unwrap();
    open.replace(&machine.vm).unwrap();
    let seen = machine.run(&mut vcpu, &mut msrs, &[Do::Read(MSR_STAR)]);
    assert_eq!(seen, [Value(99)]);
}

#[test]
fn with_the_linux_profile_all_else_is_denied() {
    let Some(kvm) = kvm("with_the_linux_profile_all_else_is_denied") else {
        return;
    };
    let machine = Machine::new(&kvm);
    let filter = builder(FilterDefault::Deny)
        .allow_profile(profile::LINUX)
        .deny(MSR_KVM_API_MAGIC, Access::Both)
        .compile()
        .unwrap();
    filter.install(&machine.vm).unwrap();
    let mut vcpu = machine.vcpu(0);
    let denied = [
        0x9e,
        0x4000_0000,
        0x474f_4f00,
        0xc001_0111,
        MSR_KVM_API_MAGIC,
    ];
    for index in denied {
        for step in [Do::Read(index), Do::Write(index, 0)] {
            let seen = machine.run(&mut vcpu, &mut nobody(), &[step]);
            assert_eq!(seen, [filtered(index), Gp], "{index:#x}");
        }
    }
    let steps = [
        Do::Read(MSR_TSC),
        Do::Write(MSR_STAR, 5),
        Do::Read(MSR_STAR),
        Do::Read(0x277),
    ];
    let seen = machine.run(&mut vcpu, &mut nobody(), &steps);
    assert!(
        matches!(seen[..], [Value(_), Written, Value(5), Value(_)]),
        "{seen:x?}"
    );
    // KVM answers every MSR of the profile in the allowed direction: with a value or #GP, but no exit. Only
    // reads, because writes would change the vCPU under test.
    let reads: Vec<Do> = profile::LINUX
        .iter()
        .filter(|entry| entry.access.reads())
        .map(|entry| Do::Read(entry.range.last()))
        .collect();
    for step in &reads {
        let seen = machine.run(&mut vcpu, &mut nobody(), &[*step]);
        assert!(
            matches!(seen[..], [Value(_)] | [Gp]),
            "{step:x?}: {seen:x?}"
        );
    }
}

#[test]
fn no_filter_holds_for_x2apic_and_the_last_msr() {
    let Some(kvm) = kvm("no_filter_holds_for_x2apic_and_the_last_msr") else {
        return;
    };
    let machine = Machine::new(&kvm);
    let last = MsrRange::new(0xffff_fff0, u32::MAX).unwrap();
    let filter = builder(FilterDefault::Allow)
        .deny(0x802, Access::Both)
        .deny(last, Access::Both)
        .compile_lenient()
        .unwrap();
    assert_eq!(filter.uncovered().len(), 2);
    filter.install(&machine.vm).unwrap();
    let mut vcpu = machine.vcpu(0);
    let before = 0xffff_fffe;
    let steps = [Do::Read(before), Do::Read(u32::MAX), Do::Read(0x802)];
    let seen = machine.run(&mut vcpu, &mut nobody(), &steps);
    // The x2APIC is off, and KVM knows no MSR 0xffffffff: #GP (0, if it ignores unknown MSRs), but no exit.
    assert_eq!(seen[..2], [filtered(before), Gp]);
    assert!(matches!(seen[2..], [Gp | Value(0), Gp]), "{seen:x?}");
    // A range passed directly to KVM that contains it doesn't match either: its end is 0 in 32 bits.
    let wraps = MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base: 0xffff_fff0,
        msr_count: 16,
        bitmap: &[0; 8],
    };
    machine
        .vm
        .set_msr_filter(MsrFilterDefaultAction::ALLOW, &[wraps])
        .unwrap();
    let seen = machine.run(&mut vcpu, &mut nobody(), &[Do::Read(before)]);
    assert!(!seen.contains(&filtered(before)), "{seen:x?}");
}

#[test]
fn kvm_refuses_what_the_types_refuse() {
    let Some(kvm) = kvm("kvm_refuses_what_the_types_refuse") else {
        return;
    };
    let machine = Machine::new(&kvm);
    let set = |default, count: u32| {
        let bitmap = vec![0xff; (count as usize).div_ceil(64) * 8];
        let range = MsrFilterRange {
            flags: MsrFilterRangeFlags::READ,
            base: 0,
            msr_count: count,
            bitmap: &bitmap,
        };
        machine
            .vm
            .set_msr_filter(default, &[range])
            .map_err(|error| error.errno())
    };
    let allow = MsrFilterDefaultAction::ALLOW;
    assert_eq!(set(allow, 0x3000), Ok(()));
    assert_eq!(set(allow, 0x3001), Err(EINVAL));
    let nothing = machine.vm.set_msr_filter(MsrFilterDefaultAction::DENY, &[]);
    assert_eq!(nothing.map_err(|error| error.errno()), Err(EINVAL));
    // This crate's replacement is accepted, and denies.
    builder(FilterDefault::Deny)
        .compile_lenient()
        .unwrap()
        .install(&machine.vm)
        .unwrap();
    let mut vcpu = machine.vcpu(0);
    let seen = machine.run(&mut vcpu, &mut nobody(), &[Do::Read(MSR_TSC), Do::Read(0)]);
    assert_eq!(seen, [filtered(MSR_TSC), Gp, filtered(0), Gp]);
}

/// Handles writes of STAR with the given outcome.
struct Star(Outcome<()>);

impl MsrHandler for Star {
    fn read(&mut self, _: u32) -> Outcome<u64> {
        Outcome::NotHandled
    }
    fn write(&mut self, _: u32, _: u64) -> Outcome<()> {
        self.0
    }
}

#[test]
fn a_handler_has_kvm_take_a_value() {
    let Some(kvm) = kvm("a_handler_has_kvm_take_a_value") else {
        return;
    };
    let machine = Machine::new(&kvm);
    let filter = builder(FilterDefault::Allow).deny(MSR_STAR, Access::Write);
    filter.compile().unwrap().install(&machine.vm).unwrap();
    let mut vcpu = machine.vcpu(0);
    let mut run = |index, value| {
        let handler = Star(Outcome::SetInKvm(MsrValue { index, value }));
        let mut msrs = MsrDispatchBuilder::new()
            .insert(MSR_STAR, handler)
            .unwrap()
            .build();
        let steps = [Do::Write(MSR_STAR, 5), Do::Read(MSR_STAR)];
        machine.run(&mut vcpu, &mut msrs, &steps)
    };
    let exit = filtered(MSR_STAR);
    assert_eq!(run(MSR_STAR, 7), [exit, Written, Value(7)]);
    // EFER with a bit that doesn't exist: KVM refuses that from the host too.
    assert_eq!(run(0xc000_0080, 1 << 63), [exit, Gp, Value(7)]);
}

#[test]
fn a_vcpu_stops_behind_the_write_that_asked_for_it() {
    let Some(kvm) = kvm("a_vcpu_stops_behind_the_write_that_asked_for_it") else {
        return;
    };
    let machine = Machine::new(&kvm);
    let filter = builder(FilterDefault::Allow).deny(MSR_STAR, Access::Write);
    filter.compile().unwrap().install(&machine.vm).unwrap();
    let mut vcpu = machine.vcpu(0);
    let mut msrs = MsrDispatchBuilder::new()
        .insert(MSR_STAR, Star(Outcome::Stop(())))
        .unwrap()
        .build();
    let steps = [Do::Write(MSR_STAR, 5), Do::Read(MSR_STAR)];
    let seen = machine.run(&mut vcpu, &mut msrs, &steps);
    assert_eq!(seen, [filtered(MSR_STAR), Stopped]);
    // Once KVM has completed the instruction, RIP is after it.
    let wrmsr = vcpu.get_regs().unwrap().rip;
    vcpu.set_kvm_immediate_exit(1);
    assert_eq!(vcpu.run().map(|_| ()).unwrap_err().errno(), EINTR);
    assert_eq!(vcpu.get_regs().unwrap().rip, wrmsr + 2);
}

#[test]
fn the_example_stops_its_guest() {
    let Some(kvm) = kvm("the_example_stops_its_guest") else {
        return;
    };
    assert_eq!(example::run(&kvm).unwrap(), (0x1234, true));
}

#[test]
fn an_exit_for_something_else_is_given_back() {
    let mut msrs = nobody();
    assert!(matches!(msrs.answer(VcpuExit::Hlt), Err(VcpuExit::Hlt)));
    assert_eq!(msrs.counters().not_handled(), 0);
}

/// Why `install` enables the capability first.
#[test]
fn a_filter_without_the_capability_is_gp() {
    let Some(kvm) = kvm("a_filter_without_the_capability_is_gp") else {
        return;
    };
    let machine = Machine::new(&kvm);
    let filter = builder(FilterDefault::Allow)
        .deny(MSR_STAR, Access::Both)
        .compile()
        .unwrap();
    filter.replace(&machine.vm).unwrap();
    let mut vcpu = machine.vcpu(0);
    let seen = machine.run(&mut vcpu, &mut nobody(), &[Do::Read(MSR_STAR)]);
    assert_eq!(seen, [Gp]);
    filter.install(&machine.vm).unwrap();
    let seen = machine.run(&mut vcpu, &mut nobody(), &[Do::Read(MSR_STAR)]);
    assert_eq!(seen, [filtered(MSR_STAR), Gp]);
}

#[test]
fn unknown_msrs_exit_if_asked_for() {
    let Some(kvm) = kvm("unknown_msrs_exit_if_asked_for") else {
        return;
    };
    let machine = Machine::new(&kvm);
    let filter: MsrFilter = builder(FilterDefault::Allow).compile().unwrap();
    let reasons = ExitReasons::default().unknown(true).invalid(true);
    filter.install_with(&machine.vm, reasons).unwrap();
    let mut vcpu = machine.vcpu(0);
    let seen = machine.run(&mut vcpu, &mut nobody(), &[Do::Read(0x474f_4f00)]);
    // The second: kvm.ignore_msrs=1 on this host.
    let unknown = Exit(0x474f_4f00, MsrExitReason::Unknown);
    assert!(
        matches!(seen[..], [exit, Gp] if exit == unknown) || seen == [Value(0)],
        "{seen:x?}"
    );
}

/// Random rules for MSRs that KVM doesn't know: a denied access exits, an allowed one doesn't.
#[test]
fn kvm_does_what_compiled_filters_say() {
    let Some(kvm) = kvm("kvm_does_what_compiled_filters_say") else {
        return;
    };
    let machine = Machine::new(&kvm);
    builder(FilterDefault::Allow)
        .compile()
        .unwrap()
        .install(&machine.vm)
        .unwrap();
    let mut vcpu = machine.vcpu(0);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: u32| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32 % below
    };
    let base = 0x4750_0000;
    let (mut exits, mut others) = (0, 0);
    for round in 0..12 {
        let default = [FilterDefault::Allow, FilterDefault::Deny][round % 2];
        let mut rules = builder(default);
        let mut probes = Vec::new();
        for _ in 0..6 {
            let first = base + random(0x8000);
            let range = MsrRange::new(first, first + random(0x1000)).unwrap();
            let access = [Access::Read, Access::Write, Access::Both][random(3) as usize];
            rules = match random(2) {
                0 => rules.deny(range, access),
                _ => rules.allow(range, access),
            };
            probes.extend([first - 1, first, range.last(), range.last() + 1]);
        }
        let filter = rules.compile_lenient().unwrap();
        filter.replace(&machine.vm).unwrap();
        for index in probes {
            for (step, allowed) in [
                (Do::Read(index), filter.allows_read(index)),
                (Do::Write(index, 0), filter.allows_write(index)),
            ] {
                let seen = machine.run(&mut vcpu, &mut nobody(), &[step]);
                assert_eq!(
                    seen.contains(&filtered(index)),
                    !allowed,
                    "{step:x?}: {seen:x?}"
                );
                *if allowed { &mut others } else { &mut exits } += 1;
            }
        }
    }
    assert!(exits > 50 && others > 50, "{exits} exits, {others} others");
}
