// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The route on which KVM forwards all hypercalls of the machine.

use kvm_bindings::{CpuId, KVM_CAP_XEN_HVM, KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL};
use para_abi::kvm::{KVM_CPUID_FEATURES, KVM_FEATURE_MMU_OP, KVM_FEATURES_BY_HYPERCALL};

/// Features that make guests use hypercalls, and one that did until KVM dropped its call.
const BY_HYPERCALL: u32 = KVM_FEATURES_BY_HYPERCALL | 1 << KVM_FEATURE_MMU_OP;

/// Whether KVM can forward hypercalls. `extension` is `check_extension_raw` of the system or of a virtual machine.
pub(crate) fn is_offered(extension: impl FnOnce(u64) -> i32) -> bool {
    let bits = extension(u64::from(KVM_CAP_XEN_HVM));
    // A negative value is a failure.
    u32::try_from(bits).is_ok_and(|bits| bits & KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL != 0)
}

/// Hides features whose hypercalls are fast inside KVM, but slow when forwarded.
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
    fn forwarding_is_one_bit_of_an_answer() {
        for (answer, offered) in [
            (0, false),
            (1, false),
            (2, true),
            (0x1ff, true),
            (-1, false),
        ] {
            let asked = |capability| {
                assert_eq!(capability, 38);
                answer
            };
            assert_eq!(is_offered(asked), offered, "{answer:#x}");
        }
    }

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
