// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which MSRs a guest may use under `--msr-policy`, and what is logged about the others.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::fs;

use bare::Vm;
use bare::lab::{FAULTS, Lab};

/// An MSR that no CPU and no KVM has.
const UNKNOWN: u32 = 0x1234;
/// `MSR_IA32_TSC`.
const TSC: u32 = 0x10;
/// `IA32_EFER`. All bits set is an invalid value.
const EFER: u32 = 0xc000_0080;
/// `MSR_EBC_FREQUENCY_ID` of the Pentium 4. KVM emulates it for all vendors' guests, and no 64-bit Linux needs it.
const FREQUENCY_ID: u32 = 0x2c;

/// Whether the host's KVM ignores accesses to unknown MSRs.
fn ignores_unknown() -> bool {
    let parameter = fs::read_to_string("/sys/module/kvm/parameters/ignore_msrs");
    parameter.is_ok_and(|value| value.trim() == "Y" || value.trim() == "1")
}

/// Reads three MSRs and writes an invalid value to one. Returns the number of faults of each, and the output of `-v`.
fn accesses(test: &str, policy: &str) -> Option<([u8; 4], String)> {
    let mut lab = Lab::default();
    lab.count_faults();
    for index in [UNKNOWN, TSC, FREQUENCY_ID] {
        lab.clear_faults();
        // Twice, but it is logged once.
        lab.asm.rdmsr(index).rdmsr(index).show(FAULTS, 1);
    }
    lab.clear_faults();
    lab.asm.wrmsr(EFER, u64::MAX).show(FAULTS, 1);
    lab.asm.power_off();
    let mut vm = Vm::new(test, &lab.asm)?;
    let ended = vm.args(["-v", "--msr-policy", policy]).run();
    let faults = ended.expect(0).stdout.as_slice().try_into().unwrap();
    Some((faults, ended.stderr))
}

/// How often `log` names an MSR.
fn named(log: &str, access: &str, index: u32) -> usize {
    let line = format!("vCPU 0: {access} of MSR {index:#x} is #GP");
    log.lines().filter(|l| l.ends_with(&line)).count()
}

#[test]
fn allow_leaves_all_to_kvm_and_says_nothing() {
    let test = "allow_leaves_all_to_kvm_and_says_nothing";
    let Some((faults, log)) = accesses(test, "allow") else {
        return;
    };
    assert_eq!(faults[0], if ignores_unknown() { 0 } else { 2 });
    assert_eq!([faults[1], faults[2], faults[3]], [0, 0, 1], "{log}");
    assert!(!log.contains("of MSR"), "{log}");
}

#[test]
fn deny_unknown_is_a_list_of_what_there_is() {
    let test = "deny_unknown_is_a_list_of_what_there_is";
    let Some((faults, log)) = accesses(test, "deny-unknown") else {
        return;
    };
    // Denied even if KVM has the MSR, or would have ignored the access.
    assert_eq!(faults, [2, 0, 2, 1], "{log}");
    assert_eq!(named(&log, "RDMSR", UNKNOWN), 1, "{log}");
    assert_eq!(named(&log, "RDMSR", FREQUENCY_ID), 1, "{log}");
    assert_eq!(named(&log, "RDMSR", TSC), 0, "{log}");
    assert_eq!(named(&log, "WRMSR", EFER), 0, "KVM's own refusal: {log}");
}

#[test]
fn log_names_what_kvm_refuses() {
    let test = "log_names_what_kvm_refuses";
    let Some((faults, log)) = accesses(test, "log") else {
        return;
    };
    assert_eq!([faults[1], faults[2], faults[3]], [0, 0, 1], "{log}");
    assert_eq!(named(&log, "WRMSR", EFER), 1, "{log}");
    if ignores_unknown() {
        eprintln!("SKIP: {test}: part: kvm.ignore_msrs=1 hides unknown MSRs from this policy");
        return;
    }
    assert_eq!((faults[0], named(&log, "RDMSR", UNKNOWN)), (2, 1), "{log}");
}
