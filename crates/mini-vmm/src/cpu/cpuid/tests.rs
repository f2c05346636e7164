// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use kvm_bindings::kvm_cpuid_entry2;

use super::*;
use crate::cpu::recorded::{self, KVM_AMD_ON_TCG, KVM_INTEL_ON_HASWELL, SOFTWARE_ON_EPYC};

const HOSTS: [&str; 3] = [SOFTWARE_ON_EPYC, KVM_AMD_ON_TCG, KVM_INTEL_ON_HASWELL];
const TSC_KHZ: u32 = 2_596_126;

fn plan(cpus: u8) -> CpuPlan<'static> {
    CpuPlan {
        cpus,
        features: &[],
        nested: false,
        tsc_deadline_timer: true,
        tsc_khz: Some(TSC_KHZ),
    }
}

fn feature(word: &str) -> CpuFeature {
    let name = word[1..].to_owned();
    CpuFeature {
        name,
        enable: word.starts_with('+'),
    }
}

/// The table of vCPU `id` of `cpus` on a recorded host.
fn made(host: &str, cpus: u8, id: u8) -> CpuId {
    let mut cpuid = build(&recorded::table(host), &plan(cpus)).unwrap();
    set_apic_id(&mut cpuid, id);
    cpuid
}

fn with_features(host: &str, words: &str) -> Result<CpuId, Error> {
    let features: Vec<_> = words.split(',').map(feature).collect();
    build(
        &recorded::table(host),
        &CpuPlan {
            features: &features,
            ..plan(2)
        },
    )
}

/// EAX, EBX, ECX, EDX as KVM answers, with zeros for missing leaves.
fn leaf(cpuid: &CpuId, function: u32, index: u32) -> [u32; 4] {
    let mut found = cpuid
        .as_slice()
        .iter()
        .filter(|e| (e.function, e.index) == (function, index));
    let entry = found.next().copied().unwrap_or_default();
    assert!(
        found.next().is_none(),
        "{function:#x}.{index} is there twice"
    );
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

fn edit(host: &str, function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuId {
    let mut entries = recorded::table(host).as_slice().to_vec();
    entries.retain(|e| (e.function, e.index) != (function, index));
    entries.push(kvm_cpuid_entry2 {
        function,
        index,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    });
    CpuId::from_entries(&entries).unwrap()
}

#[test]
fn what_a_kernel_needs_to_tell_time_is_there() {
    for host in HOSTS {
        let cpuid = made(host, 2, 0);
        let [_, _, ecx, _] = leaf(&cpuid, 1, 0);
        assert_eq!(
            ecx & (1 << 31 | 1 << 24 | 1 << 21),
            1 << 31 | 1 << 24 | 1 << 21
        );
        assert_eq!(leaf(&cpuid, 6, 0)[0] & 1 << 2, 1 << 2, "ARAT");
        let [max, k, v, m] = leaf(&cpuid, 0x4000_0000, 0);
        assert_eq!([k, v, m], [0x4b4d_564b, 0x564b_4d56, 0x4d], "KVMKVMKVM");
        assert_eq!(max, 0x4000_0010);
        // kvmclock (both MSR pairs) and its stable bit.
        assert_eq!(
            leaf(&cpuid, 0x4000_0001, 0)[0] & (1 << 24 | 1 << 3 | 1),
            1 << 24 | 1 << 3 | 1
        );
        assert_eq!(leaf(&cpuid, 0x4000_0010, 0), [TSC_KHZ, 1_000_000, 0, 0]);
    }
}

#[test]
fn tsc_deadline_and_frequency_follow_the_plan() {
    for host in HOSTS {
        let plan = CpuPlan {
            tsc_deadline_timer: false,
            tsc_khz: None,
            ..plan(1)
        };
        let cpuid = build(&recorded::table(host), &plan).unwrap();
        assert_eq!(leaf(&cpuid, 1, 0)[2] & 1 << 24, 0);
        assert_eq!(leaf(&cpuid, 0x4000_0000, 0)[0], 0x4000_0001);
        assert_eq!(leaf(&cpuid, 0x4000_0010, 0), [0; 4]);
    }
}

#[test]
fn crystal_and_tsc_ratio_give_the_tsc_frequency_on_intel_only() {
    let [_, b, c, d] = leaf(&recorded::table(KVM_INTEL_ON_HASWELL), 0, 0);
    let new = edit(KVM_INTEL_ON_HASWELL, 0, 0, [0x16, b, c, d]);
    let cpuid = build(&new, &plan(1)).unwrap();
    let [denominator, numerator, crystal_hz, _] = leaf(&cpuid, 0x15, 0).map(u64::from);
    assert_eq!(
        crystal_hz * numerator / denominator,
        u64::from(TSC_KHZ) * 1000
    );
    assert_eq!(crystal_hz, u64::from(APIC_TIMER_KHZ) * 1000);
    assert_eq!(leaf(&cpuid, 0x16, 0), [2596, 2596, 100, 0]);

    assert_eq!(
        leaf(&made(KVM_INTEL_ON_HASWELL, 1, 0), 0x15, 0),
        [0; 4],
        "beyond the last leaf"
    );
    // The recorded EPYC's last leaf is 0x1c.
    assert_eq!(
        leaf(&made(SOFTWARE_ON_EPYC, 1, 0), 0x15, 0),
        [0; 4],
        "AMD has no such leaf"
    );
}

#[test]
fn every_vcpu_has_its_own_apic_id() {
    for host in HOSTS {
        for cpus in [1, 2, 3, 64] {
            for id in 0..cpus {
                let cpuid = made(host, cpus, id);
                let [_, ebx, _, edx] = leaf(&cpuid, 1, 0);
                assert_eq!(ebx >> 24, u32::from(id));
                assert_eq!(ebx >> 8 & 0xff, 8, "CLFLUSH line size is kept");
                assert_eq!(edx >> 28 & 1, u32::from(cpus > 1), "HTT");
                for index in [0, 1] {
                    assert_eq!(leaf(&cpuid, 0xb, index)[3], u32::from(id));
                }
            }
        }
    }
}

#[test]
fn levels_are_one_thread_and_all_cores() {
    for (cpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (33, 6), (64, 6)] {
        for host in HOSTS {
            let cpuid = made(host, cpus, 0);
            assert_eq!(leaf(&cpuid, 0xb, 0), [0, 1, 0x100, 0]);
            assert_eq!(leaf(&cpuid, 0xb, 1), [bits, cpus.into(), 0x201, 0]);
            // Leaf 0x1F is beyond the last leaf, or not AMD's.
            assert_eq!(leaf(&cpuid, 0x1f, 0), [0; 4]);
        }
    }
    let [_, b, c, d] = leaf(&recorded::table(KVM_INTEL_ON_HASWELL), 0, 0);
    let new = edit(KVM_INTEL_ON_HASWELL, 0, 0, [0x1f, b, c, d]);
    let mut cpuid = build(&new, &plan(4)).unwrap();
    set_apic_id(&mut cpuid, 3);
    assert_eq!(leaf(&cpuid, 0x1f, 1), [2, 4, 0x201, 3]);
}

#[test]
fn intel_shares_the_last_level_cache_only() {
    for (cpus, span) in [(1, 1), (2, 2), (3, 4), (64, 64)] {
        let cpuid = made(KVM_INTEL_ON_HASWELL, cpus, 0);
        assert_eq!(leaf(&cpuid, 1, 0)[1] >> 16 & 0xff, span);
        for index in 0..4 {
            let [eax, rest @ ..] = leaf(&cpuid, 4, index);
            let sharers = if index == 3 { span } else { 1 };
            assert_eq!(eax >> 14 & 0xfff, sharers - 1);
            assert_eq!(eax >> 26, span - 1);
            let before = leaf(&recorded::table(KVM_INTEL_ON_HASWELL), 4, index);
            assert_eq!(eax & 0x3fff, before[0] & 0x3fff);
            assert_eq!(rest, before[1..]);
        }
        assert_eq!(leaf(&cpuid, 4, 4), [0; 4]);
        assert_eq!(leaf(&cpuid, 0x8000_0008, 0), [0x3028, 0, 0, 0]);
    }
}

#[test]
fn amd_counts_cores() {
    for (cpus, bits) in [(1, 0), (2, 1), (3, 2), (64, 6)] {
        for id in [0, cpus - 1] {
            let cpuid = made(SOFTWARE_ON_EPYC, cpus, id);
            assert_eq!(leaf(&cpuid, 1, 0)[1] >> 16 & 0xff, u32::from(cpus));
            let cmp_legacy = leaf(&cpuid, 0x8000_0001, 0)[2] & 2;
            assert_eq!(cmp_legacy != 0, cpus > 1);
            // PerfTscSize (bits 17:16) stays as it was, at 0.
            assert_eq!(
                leaf(&cpuid, 0x8000_0008, 0)[2],
                (u32::from(cpus) - 1) | (bits << 12)
            );
            for index in 0..4 {
                let eax = leaf(&cpuid, 0x8000_001d, index)[0];
                let sharers = if index == 3 { cpus } else { 1 };
                assert_eq!(eax >> 14 & 0xfff, u32::from(sharers) - 1);
            }
            assert_eq!(leaf(&cpuid, 0x8000_001e, 0), [id.into(), id.into(), 0, 0]);
        }
        // The CPU of this one ends at leaf 0x8000_000A.
        let old = made(KVM_AMD_ON_TCG, cpus, 0);
        assert_eq!(
            leaf(&old, 0x8000_0008, 0)[2] & 0xf0ff,
            (u32::from(cpus) - 1) | (bits << 12)
        );
        assert!(old.as_slice().iter().all(|e| e.function != 0x8000_001e));
    }
}

#[test]
fn unknown_vendors_get_what_all_share() {
    let odd = edit(SOFTWARE_ON_EPYC, 0, 0, [0x1c, 1, 2, 3]);
    let cpuid = build(&odd, &plan(2)).unwrap();
    assert_eq!(leaf(&cpuid, 0xb, 1), [1, 2, 0x201, 0]);
    assert_eq!(leaf(&cpuid, 0x8000_0008, 0), leaf(&odd, 0x8000_0008, 0));
}

#[test]
fn nothing_else_is_changed_and_empty_leaves_are_gone() {
    let touched = [
        1,
        4,
        6,
        0xb,
        0x15,
        0x16,
        0x1f,
        0x4000_0000,
        0x4000_0010,
        0x8000_0001,
        0x8000_0008,
        0x8000_000a,
    ];
    for host in HOSTS {
        let supported = recorded::table(host);
        let cpuid = made(host, 2, 0);
        for e in supported.as_slice() {
            if !touched.contains(&e.function) && e.function < 0x8000_001d {
                assert_eq!(
                    leaf(&cpuid, e.function, e.index),
                    [e.eax, e.ebx, e.ecx, e.edx]
                );
            }
        }
        let filled = |e: &&kvm_cpuid_entry2| e.eax | e.ebx | e.ecx | e.edx != 0;
        let filled = supported.as_slice().iter().filter(filled).count();
        // Two for leaf 0xB, the timing leaf, and the extended APIC id of vCPU 0.
        assert!(
            cpuid.as_slice().len() <= filled + 4,
            "{}",
            cpuid.as_slice().len()
        );
    }
}

#[test]
fn hidden_features_take_along_what_needs_them() {
    let all = leaf(&made(SOFTWARE_ON_EPYC, 2, 0), 7, 0);
    assert_ne!(all[1] & 1 << 23, 0, "clflushopt is there to begin with");
    let cpuid = with_features(KVM_INTEL_ON_HASWELL, "-avx").unwrap();
    let [_, _, ecx, _] = leaf(&cpuid, 1, 0);
    // AVX, FMA and F16C are gone, but XSAVE and SSE4.2 remain.
    assert_eq!(ecx & (1 << 28 | 1 << 12 | 1 << 29), 0);
    assert_eq!(ecx & (1 << 26 | 1 << 20), 1 << 26 | 1 << 20);
    assert_eq!(leaf(&cpuid, 7, 0)[1] & 1 << 5, 0, "avx2");
    // XSAVE's AVX component is gone, too. The legacy region and the header remain.
    assert_eq!(leaf(&cpuid, 0xd, 0), [3, 576, 576, 0]);
    assert_eq!(leaf(&cpuid, 0xd, 2), [0; 4]);
    assert_eq!(leaf(&cpuid, 0xd, 1)[0], 1, "xsaveopt");
}

#[test]
fn xsave_area_ends_with_its_last_component() {
    let cpuid = with_features(SOFTWARE_ON_EPYC, "-pku").unwrap();
    // AVX-512's last component ends at 0x580 + 0x400. This host has no PKRU.
    assert_eq!(
        leaf(&cpuid, 0xd, 0),
        leaf(&recorded::table(SOFTWARE_ON_EPYC), 0xd, 0)
    );
    let cpuid = with_features(SOFTWARE_ON_EPYC, "-avx512f").unwrap();
    assert_eq!(leaf(&cpuid, 0xd, 0), [7, 0x340, 0x340, 0]);
    let cpuid = with_features(KVM_AMD_ON_TCG, "-pku").unwrap();
    assert_eq!(leaf(&cpuid, 0xd, 0), [7, 0x340, 0x340, 0]);
    assert_eq!(leaf(&cpuid, 7, 0)[2] & (1 << 3 | 1 << 4), 0, "pku, ospke");
    let cpuid = with_features(KVM_AMD_ON_TCG, "-xsave").unwrap();
    assert!(cpuid.as_slice().iter().all(|e| e.function != 0xd));
    assert_eq!(leaf(&cpuid, 1, 0)[2] & (1 << 26 | 1 << 28), 0, "xsave, avx");
}

#[test]
fn supervisor_state_goes_with_xsaves() {
    let mut entries = recorded::table(KVM_INTEL_ON_HASWELL).as_slice().to_vec();
    entries.retain(|e| (e.function, e.index) != (0xd, 1));
    let sub = |index, eax, ebx, ecx| kvm_cpuid_entry2 {
        function: 0xd,
        index,
        eax,
        ebx,
        ecx,
        ..Default::default()
    };
    // XSAVEOPT, XSAVEC, XGETBV1, XSAVES; CET's and arch LBR's state.
    entries.extend([
        sub(1, 0xf, 0x500, 0x9800),
        sub(11, 16, 0, 1),
        sub(12, 24, 0, 1),
    ]);
    entries.push(sub(15, 0x328, 0, 1));
    let supported = CpuId::from_entries(&entries).unwrap();
    let hide = |words: &str| {
        let features: Vec<_> = words.split(',').map(feature).collect();
        build(
            &supported,
            &CpuPlan {
                features: &features,
                ..plan(1)
            },
        )
        .unwrap()
    };
    let left = |cpuid: &CpuId| [11, 12, 15].map(|index| leaf(cpuid, 0xd, index) != [0; 4]);

    let cpuid = hide("-xsaves");
    assert_eq!(leaf(&cpuid, 0xd, 1), [7, 0x500, 0, 0]);
    assert_eq!(left(&cpuid), [false; 3]);
    let cpuid = hide("-xsavec");
    assert_eq!(
        leaf(&cpuid, 0xd, 1),
        [5, 0, 0, 0],
        "no compacted area, no size of it"
    );
    let cpuid = hide("-arch_lbr");
    assert_eq!((leaf(&cpuid, 0xd, 1)[2], left(&cpuid)), (0, [false; 3]));
    assert_eq!(
        leaf(&cpuid, 0xd, 0),
        [7, 0x340, 0x340, 0],
        "user state stays"
    );
}

/// A saved vCPU would lack the pointer.
#[test]
fn no_guest_gets_shadow_stacks() {
    for ibt in [false, true] {
        let mut entries = recorded::table(KVM_INTEL_ON_HASWELL).as_slice().to_vec();
        let features = entries.iter_mut().find(|e| (e.function, e.index) == (7, 0));
        let features = features.unwrap();
        features.ecx |= 1 << 7;
        features.edx |= u32::from(ibt) << 20;
        entries.retain(|e| (e.function, e.index) != (0xd, 1));
        let sub = |index, eax, ebx, ecx| kvm_cpuid_entry2 {
            function: 0xd,
            index,
            eax,
            ebx,
            ecx,
            ..Default::default()
        };
        entries.extend([sub(1, 0xf, 0x500, 0x1800), sub(11, 16, 0, 1)]);
        let supported = CpuId::from_entries(&entries).unwrap();
        let cpuid = build(&supported, &plan(1)).unwrap();
        assert_eq!(leaf(&cpuid, 7, 0)[2] & 1 << 7, 0);
        assert_eq!(leaf(&cpuid, 7, 0)[3] >> 20 & 1, u32::from(ibt));
        let state = if ibt { 0x1800 } else { 0 };
        assert_eq!(leaf(&cpuid, 0xd, 1)[2], state, "IBT needs it as well");
        assert_eq!(leaf(&cpuid, 0xd, 11) != [0; 4], ibt);
        let features = [feature("+user_shstk")];
        let plan = CpuPlan {
            features: &features,
            ..plan(1)
        };
        assert_eq!(
            build(&supported, &plan).unwrap_err(),
            Error::Unsaved("user_shstk")
        );
    }
}

#[test]
fn amd_repeats_base_features_and_hides_them_twice() {
    let cpuid = with_features(KVM_AMD_ON_TCG, "-mca").unwrap();
    assert_eq!(leaf(&cpuid, 1, 0)[3] & 1 << 14, 0);
    assert_eq!(leaf(&cpuid, 0x8000_0001, 0)[3] & 1 << 14, 0);
    // On Intel these bits of 0x8000_0001 mean something else: SYSCALL is bit 11.
    let cpuid = with_features(KVM_INTEL_ON_HASWELL, "-sep").unwrap();
    assert_ne!(leaf(&cpuid, 0x8000_0001, 0)[3] & 1 << 11, 0);
}

/// The table of one vCPU of a recorded host, with and without nested virtualization.
fn with_nested(host: &str, nested: bool, words: &[&str]) -> Result<CpuId, Error> {
    let features: Vec<_> = words.iter().map(|word| feature(word)).collect();
    build(
        &recorded::table(host),
        &CpuPlan {
            features: &features,
            nested,
            ..plan(1)
        },
    )
}

#[test]
fn nested_virtualization_is_shown_on_request_only() {
    for (host, function, bit) in [
        (KVM_INTEL_ON_HASWELL, 1, 5),
        (KVM_AMD_ON_TCG, 0x8000_0001, 2),
    ] {
        let shown = |nested, words: &[&str]| {
            let cpuid = with_nested(host, nested, words).unwrap();
            leaf(&cpuid, function, 0)[2] & 1 << bit != 0
        };
        assert!(!shown(false, &[]));
        assert!(!shown(false, &["-avx"]));
        assert!(shown(true, &[]));
        assert!(
            !shown(true, &["-vmx", "-svm"]),
            "the list has the last word"
        );
    }
    // Nothing else differs: only each vendor's bit, and SVM's leaf.
    for host in [KVM_INTEL_ON_HASWELL, KVM_AMD_ON_TCG] {
        let off = with_nested(host, false, &[]).unwrap();
        let mut on = with_nested(host, true, &[]).unwrap().as_slice().to_vec();
        on.retain(|e| e.function != 0x8000_000a);
        for entry in &mut on {
            match entry.function {
                1 => entry.ecx &= !(1 << 5),
                0x8000_0001 => entry.ecx &= !(1 << 2),
                _ => {}
            }
        }
        assert_eq!(off.as_slice(), on);
    }
}

#[test]
fn nested_virtualization_that_can_not_be_had_is_an_error() {
    let none = with_nested(SOFTWARE_ON_EPYC, true, &[]).unwrap_err();
    assert_eq!(none, Error::NoNested);
    for (host, word, name) in [
        (KVM_INTEL_ON_HASWELL, "+vmx", "vmx"),
        (KVM_AMD_ON_TCG, "+svm", "svm"),
        (KVM_AMD_ON_TCG, "+npt", "npt"),
    ] {
        let off = with_nested(host, false, &[word]).unwrap_err();
        assert_eq!(off, Error::NestedOff(name));
        assert!(off.to_string().contains("--nested on"), "{off}");
        assert!(with_nested(host, true, &[word]).is_ok());
    }
    // What the host lacks is missing with and without nested virtualization.
    let lacking = with_nested(KVM_INTEL_ON_HASWELL, true, &["+svm"]).unwrap_err();
    assert_eq!(lacking, Error::Unsupported("svm"));
}

#[test]
fn later_words_win_and_insisting_is_checked() {
    let plain = made(KVM_INTEL_ON_HASWELL, 2, 0);
    let again = with_features(KVM_INTEL_ON_HASWELL, "-avx,+avx").unwrap();
    assert_eq!(again.as_slice(), plain.as_slice());
    // Features that the VMM provides can also be required.
    let ours = with_features(KVM_INTEL_ON_HASWELL, "+x2apic,+tsc_deadline_timer,+ht").unwrap();
    assert_eq!(ours.as_slice(), plain.as_slice());

    let error = with_features(KVM_INTEL_ON_HASWELL, "+avx512f").unwrap_err();
    assert_eq!(error, Error::Unsupported("avx512f"));
    let error = with_features(KVM_INTEL_ON_HASWELL, "+avx2,-xsave").unwrap_err();
    assert_eq!(
        error,
        Error::Dependency {
            feature: "avx2",
            needs: "avx"
        }
    );
    // The two names of one bit can't be set differently.
    let error = with_features(KVM_INTEL_ON_HASWELL, "+constant_tsc,-nonstop_tsc").unwrap_err();
    let expected = Error::Dependency {
        feature: "constant_tsc",
        needs: "nonstop_tsc",
    };
    assert_eq!(error, expected);
    let error = with_features(KVM_INTEL_ON_HASWELL, "-axv2").unwrap_err();
    assert!(error.to_string().contains("did you mean avx2"), "{error}");
}

#[test]
fn errors_say_what_to_do() {
    for cpus in [0, 65] {
        let error = build(&recorded::table(SOFTWARE_ON_EPYC), &plan(cpus)).unwrap_err();
        assert_eq!(error, Error::Cpus(cpus));
        assert!(error.to_string().contains("1 to 64"), "{error}");
    }
    let empty = CpuId::from_entries(&[]).unwrap();
    assert_eq!(build(&empty, &plan(1)).unwrap_err(), Error::NoLeaf(0));
    let error = with_features(SOFTWARE_ON_EPYC, "-zzzzzz").unwrap_err();
    assert!(error.to_string().contains("/proc/cpuinfo"), "{error}");
}
