// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The register conventions: checked against independent tables, and for consistency.

use para_abi::{Call, Convention, KvmErrno, ParaErrno, Register, Registers, Width};
use proptest::prelude::*;

const WIDTHS: [Width; 2] = [Width::Long, Width::Legacy];

/// A different value in each register, with both halves in use.
fn distinct() -> Registers {
    let mut registers = Registers::default();
    for (at, register) in Register::ALL.into_iter().enumerate() {
        registers.set(register, 0xaaaa_0000_bbbb_0000 + at as u64 * 0x1_0000_0001);
    }
    registers
}

fn arguments(values: &[u64]) -> [u64; 6] {
    let mut args = [0; 6];
    args[..values.len()].copy_from_slice(values);
    args
}

#[test]
fn every_register_has_a_place_of_its_own() {
    let registers = distinct();
    for (at, register) in Register::ALL.into_iter().enumerate() {
        let mut changed = registers;
        changed.set(register, 7);
        assert_eq!(changed.get(register), 7, "{register:?}");
        for other in Register::ALL.into_iter().filter(|other| *other != register) {
            assert_eq!(
                changed.get(other),
                registers.get(other),
                "{register:?} and {other:?}"
            );
        }
        assert_eq!(
            registers.get(register),
            0xaaaa_0000_bbbb_0000 + at as u64 * 0x1_0000_0001
        );
    }
}

#[test]
fn merged_2007_long_is_rax_and_the_c_abi_with_rcx() {
    let r = distinct();
    let expected = Call {
        nr: r.rax,
        args: [r.rdi, r.rsi, r.rdx, r.rcx, r.r8, r.r9],
    };
    assert_eq!(Convention::Para2007.call(Width::Long, &r), expected);
    assert_eq!(Convention::Para2007Draft.call(Width::Long, &r), expected);
}

#[test]
fn merged_2007_legacy_has_its_number_in_ebx() {
    let r = distinct();
    let args = [r.rax, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp].map(|value| u64::from(value as u32));
    let expected = Call {
        nr: u64::from(r.rbx as u32),
        args,
    };
    assert_eq!(Convention::Para2007.call(Width::Legacy, &r), expected);
}

#[test]
fn draft_2007_legacy_has_its_number_in_eax() {
    let r = distinct();
    let args = [r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp].map(|value| u64::from(value as u32));
    let expected = Call {
        nr: u64::from(r.rax as u32),
        args,
    };
    assert_eq!(Convention::Para2007Draft.call(Width::Legacy, &r), expected);
}

#[test]
fn todays_convention_has_four_arguments_in_both_widths() {
    let r = distinct();
    let values = [r.rbx, r.rcx, r.rdx, r.rsi];
    let long = Call {
        nr: r.rax,
        args: arguments(&values),
    };
    assert_eq!(Convention::Kvm.call(Width::Long, &r), long);
    let legacy = Call {
        nr: u64::from(r.rax as u32),
        args: arguments(&values.map(|value| u64::from(value as u32))),
    };
    assert_eq!(Convention::Kvm.call(Width::Legacy, &r), legacy);
}

#[test]
fn xen_long_has_its_fourth_argument_in_r10() {
    let r = distinct();
    let long = Call {
        nr: r.rax,
        args: [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9],
    };
    assert_eq!(Convention::Xen.call(Width::Long, &r), long);
    let draft = Convention::Para2007Draft.call(Width::Legacy, &r);
    assert_eq!(Convention::Xen.call(Width::Legacy, &r), draft);
}

#[test]
fn layouts_name_each_register_once() {
    for convention in Convention::ALL {
        for width in WIDTHS {
            let layout = convention.layout(width);
            let mut inputs = layout.arguments.to_vec();
            inputs.push(layout.number);
            assert_eq!(layout.result, Register::Rax);
            assert_eq!(
                layout.arguments.len(),
                if convention == Convention::Kvm { 4 } else { 6 }
            );
            for (at, register) in inputs.iter().enumerate() {
                assert!(
                    !inputs[..at].contains(register),
                    "{convention} {width:?}: {register:?} twice"
                );
            }
        }
    }
}

#[test]
fn results_of_legacy_calls_are_cut_and_zero_extended() {
    for convention in Convention::ALL {
        let mut registers = distinct();
        convention.set_result(Width::Legacy, &mut registers, KvmErrno::KVM_ENOSYS.as_ret());
        assert_eq!(registers.rax, 0xffff_fc18, "{convention}");
        convention.set_result(Width::Long, &mut registers, KvmErrno::KVM_ENOSYS.as_ret());
        assert_eq!(registers.rax as i64, -1000, "{convention}");
    }
}

#[test]
fn h12_eperm_of_a_call_is_not_einval_of_the_registration() {
    // Both are 1. A caller sees -1 in 64 bits, the page holds it in 32.
    let mut registers = Registers::default();
    Convention::Kvm.set_result(Width::Long, &mut registers, KvmErrno::KVM_EPERM.as_ret());
    assert_eq!(registers.rax, u64::MAX);
    assert_eq!(ParaErrno::KVM_EINVAL.as_ret(), u32::MAX);
    assert_ne!(KvmErrno::KVM_EINVAL.code(), ParaErrno::KVM_EINVAL.code());
}

#[test]
fn the_width_is_64_bits_only_in_64_bit_mode() {
    assert_eq!(Width::of_caller(true, true), Width::Long);
    assert_eq!(Width::of_caller(true, false), Width::Legacy);
    assert_eq!(Width::of_caller(false, false), Width::Legacy);
    assert_eq!(Width::of_caller(false, true), Width::Legacy);
}

#[test]
fn names_come_back() {
    for convention in Convention::ALL {
        assert_eq!(Convention::from_name(convention.name()), Some(convention));
        assert_eq!(convention.to_string(), convention.name());
    }
    assert_eq!(Convention::from_name(""), None);
    assert_eq!(Convention::from_name("KVM"), None);
}

fn any_registers() -> impl Strategy<Value = Registers> {
    any::<[u64; 10]>().prop_map(|values| {
        let mut registers = Registers::default();
        for (register, value) in Register::ALL.into_iter().zip(values) {
            registers.set(register, value);
        }
        registers
    })
}

fn any_convention() -> impl Strategy<Value = (Convention, Width)> {
    (
        prop::sample::select(&Convention::ALL[..]),
        prop::sample::select(&WIDTHS[..]),
    )
}

proptest! {
    /// The host reads the call that the caller wrote, up to the convention's width and arguments.
    #[test]
    fn a_call_survives_the_registers(
        (convention, width) in any_convention(),
        mut registers in any_registers(),
        nr: u64,
        args: [u64; 6],
    ) {
        convention.set_call(width, &mut registers, &Call { nr, args });
        let layout = convention.layout(width);
        let mut kept = args.map(|value| value & layout.mask);
        kept[layout.arguments.len()..].fill(0);
        prop_assert_eq!(convention.call(width, &registers), Call { nr: nr & layout.mask, args: kept });
    }

    /// Decoding a call and writing it back changes nothing that counts.
    #[test]
    fn registers_survive_the_call((convention, width) in any_convention(), before in any_registers()) {
        let mut after = before;
        convention.set_call(width, &mut after, &convention.call(width, &before));
        for register in Register::ALL {
            let layout = convention.layout(width);
            let named = register == layout.number || layout.arguments.contains(&register);
            let mask = if named { layout.mask } else { u64::MAX };
            prop_assert_eq!(after.get(register), before.get(register) & mask, "{:?}", register);
        }
    }

    /// "No registers are clobbered except RAX."
    #[test]
    fn a_result_changes_rax_alone(
        (convention, width) in any_convention(),
        before in any_registers(),
        result: u64,
    ) {
        let mut after = before;
        convention.set_result(width, &mut after, result);
        prop_assert_eq!(after.rax, result & width.mask());
        prop_assert_eq!(convention.result(width, &after), after.rax);
        prop_assert_eq!(Registers { rax: before.rax, ..after }, before);
    }

    /// The high halves of a 32-bit caller's registers mean nothing.
    #[test]
    fn legacy_calls_ignore_high_halves(
        (convention, _) in any_convention(),
        before in any_registers(),
        high: [u32; 10],
    ) {
        let mut after = before;
        for (register, high) in Register::ALL.into_iter().zip(high) {
            let low = before.get(register) as u32;
            after.set(register, u64::from(high) << 32 | u64::from(low));
        }
        let width = Width::Legacy;
        prop_assert_eq!(convention.call(width, &before), convention.call(width, &after));
        let call = convention.call(width, &before);
        prop_assert!(call.args.into_iter().chain([call.nr]).all(|value| value <= u64::from(u32::MAX)));
    }
}
