// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The route on which KVM forwards every hypercall of the machine.

use kvm_bindings::CpuId;

/// The MSR that KVM's interface for forwarding comes with: a write of it would have KVM write a page of Xen's hypercalls
/// into the guest. It can't be 0, or KVM forwards nothing until another VM has one, and since Linux 6.15 it lies in
/// 0x40000000 to 0x4fffffff. The filter hides it from the guest.
pub const FORWARD_MSR: u32 = 0x4d56_0200;

/// The leaf of KVM's paravirtual features (Linux, `Documentation/virt/kvm/x86/cpuid.rst`).
const KVM_CPUID_FEATURES: u32 = 0x4000_0001;
/// Features that a guest uses by a hypercall: MMU_OP (2, old), PV_UNHALT (7), PV_SEND_IPI (11), PV_SCHED_YIELD (13) and
/// HC_MAP_GPA_RANGE (16).
const BY_HYPERCALL: u32 = 1 << 2 | 1 << 7 | 1 << 11 | 1 << 13 | 1 << 16;

/// Hides features from the guest whose hypercalls are fast in KVM, and slow when each is forwarded.
pub fn hide_kvm_hypercalls(cpuid: &mut CpuId) {
    let entries = cpuid.as_mut_slice().iter_mut();
    for entry in entries.filter(|entry| entry.function == KVM_CPUID_FEATURES) {
        entry.eax &= !BY_HYPERCALL;
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    #[test]
    fn forwarding_hides_what_would_be_slow_and_nothing_else() {
        let entry = |function| kvm_cpuid_entry2 {
            function,
            eax: u32::MAX,
            ..Default::default()
        };
        let mut cpuid = CpuId::from_entries(&[entry(0x4000_0000), entry(0x4000_0001)]).unwrap();
        hide_kvm_hypercalls(&mut cpuid);
        assert_eq!(cpuid.as_slice()[0].eax, u32::MAX);
        assert_eq!(cpuid.as_slice()[1].eax, !0x0001_2884);
    }
}
