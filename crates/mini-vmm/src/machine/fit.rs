// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether a saved machine can go on on this host.
//!
//! Of MSRs, only those matter that the guest set for itself and can't do without. What else KVM rejects is skipped and
//! logged: counters, machine check, and what describes the host's CPU.

use std::ops::RangeInclusive;

use kvm_bindings::kvm_cpuid_entry2;

use super::MachineState;
use crate::cpu;

/// Why a saved machine can't go on here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// Its CPUs are another vendor's.
    #[error(
        "the saved machine has CPUs of {saved:?} and this host has CPUs of {here:?}; restore it on a host with those of \
         {saved:?}"
    )]
    Vendor {
        /// The vendor string of the saved machine.
        saved: String,
        /// That of this host.
        here: String,
    },
    /// Its CPUs have features that this host can't offer.
    #[error(
        "the saved machine uses CPU features that this host lacks: {}; restore it on a host that has them, or hide them \
         from the start (--cpu-features)",
        .0.join(", ")
    )]
    Features(Vec<&'static str>),
    /// The guest uses an MSR that this host's KVM lacks.
    #[error(
        "the saved machine uses MSR {index:#x}, which this host's KVM lacks; restore it on a host whose kernel is as new \
         as the one that saved it"
    )]
    Msr {
        /// Its index.
        index: u32,
    },
    /// Two of its CPUs differ in vendor or features, which no machine's do.
    #[error(
        "the saved machine's vCPUs differ in their CPUID; the state is damaged, take a new one"
    )]
    Mixed,
}

/// MSRs without whose values a guest can't go on. SDM: Intel SDM volume 4, table 2-2. APM: AMD APM volume 2, appendix A.
const REQUIRED: [RangeInclusive<u32>; 9] = [
    0x10..=0x12,               // the TSC (SDM), and kvmclock's first MSRs (KVM's msr.rst)
    0x3b..=0x3b,               // IA32_TSC_ADJUST (SDM)
    0x174..=0x176,             // SYSENTER (SDM)
    0x1c4..=0x1c4,             // IA32_XFD (SDM)
    0x277..=0x277,             // the PAT (SDM)
    0x6e0..=0x6e0,             // IA32_TSC_DEADLINE (SDM)
    0xda0..=0xda0,             // IA32_XSS (SDM)
    0x4b56_4d00..=0x4b56_4d08, // KVM's own, such as kvmclock's (KVM's msr.rst)
    0xc000_0081..=0xc000_0103, // SYSCALL, FS, GS, SWAPGS, TSC_AUX (APM)
];

/// Checks that a host whose KVM has the MSRs `here` has what the vCPUs of `state` need. A value of 0 is as good as none.
///
/// # Errors
/// [`Misfit::Msr`].
pub(super) fn check_msrs(state: &MachineState, here: &[u32]) -> Result<(), Misfit> {
    let all = state.vcpus.iter().flat_map(|vcpu| &vcpu.vcpu.msrs);
    let set = all.filter(|msr| msr.data != 0).map(|msr| msr.index);
    match first_missing(set, here) {
        None => Ok(()),
        Some(index) => Err(Misfit::Msr { index }),
    }
}

/// The first required MSR of `set` that `here` lacks.
fn first_missing(mut set: impl Iterator<Item = u32>, here: &[u32]) -> Option<u32> {
    let is_required = |index: &u32| REQUIRED.iter().any(|range| range.contains(index));
    set.find(|index| is_required(index) && !here.contains(index))
}

/// Whether a host that can offer `here`, and perhaps more, has all that the CPUs of `state` use.
pub(super) fn suffices(state: &MachineState, here: &[kvm_cpuid_entry2]) -> bool {
    let vendor = cpu::vendor(here);
    let mut tables = state.vcpus.iter().map(|vcpu| &vcpu.vcpu.cpuid);
    tables.all(|table| cpu::vendor(table) == vendor && cpu::has_all(table, here))
}

/// Checks the CPUs of `state` with `here`, which has all that this host can offer such a machine.
///
/// # Errors
/// [`Misfit`].
pub(super) fn check_cpus(state: &MachineState, here: &[kvm_cpuid_entry2]) -> Result<(), Misfit> {
    let (saved, host) = (state.cpu_vendor(), cpu::vendor(here));
    if saved != host {
        return Err(Misfit::Vendor { saved, here: host });
    }
    for vcpu in &state.vcpus {
        let table = &vcpu.vcpu.cpuid;
        if cpu::vendor(table) != saved {
            return Err(Misfit::Mixed);
        }
        let missing = cpu::missing(table, here);
        if !missing.is_empty() {
            return Err(Misfit::Features(missing));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::format_1::saved;

    #[test]
    fn an_msr_that_the_guest_needs_must_be_here() {
        for (set, missing) in [
            (vec![0x174, 0xc000_0082], Some(0xc000_0082)),
            (vec![0x4b56_4d01], Some(0x4b56_4d01)),
            // A performance counter, and machine check.
            (vec![0x174, 0xc1, 0x400], None),
        ] {
            assert_eq!(first_missing(set.into_iter(), &[0x10, 0x174]), missing);
        }
    }

    #[test]
    fn another_vendor_and_features_that_are_missing_are_named() {
        let state = saved();
        let here = state.vcpus[0].vcpu.cpuid.clone();
        assert_eq!(check_cpus(&state, &here), Ok(()));
        assert!(suffices(&state, &here));
        let msrs: Vec<_> = state.vcpus[0]
            .vcpu
            .msrs
            .iter()
            .map(|msr| msr.index)
            .collect();
        assert_eq!(check_msrs(&state, &msrs), Ok(()));

        let mut other = here.clone();
        other
            .iter_mut()
            .filter(|leaf| leaf.function == 0)
            .for_each(|leaf| leaf.ebx = 0);
        assert!(!suffices(&state, &other));
        let error = check_cpus(&state, &other).unwrap_err().to_string();
        assert!(error.contains("\"AuthenticAMD\""), "{error}");

        let mut less = here;
        // SSE2's bit, and that of the local APIC, which the guest itself may clear.
        let leaf1 = less.iter_mut().find(|leaf| leaf.function == 1).unwrap();
        leaf1.edx &= !(1 << 9);
        assert!(suffices(&state, &less));
        let leaf1 = less.iter_mut().find(|leaf| leaf.function == 1).unwrap();
        leaf1.edx &= !(1 << 26);
        assert!(!suffices(&state, &less));
        let lacks = Misfit::Features(vec!["sse2"]);
        assert_eq!(check_cpus(&state, &less), Err(lacks));
    }
}
