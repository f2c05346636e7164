// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use crate::config::CpuFeature;

#[test]
fn every_word_fits_a_register_and_names_are_plain() {
    for word in &WORDS {
        assert!(
            word.names.split_whitespace().count() <= 32,
            "{:#x}",
            word.leaf
        );
    }
    for (name, bit) in all() {
        assert!(bit.bit < 32);
        assert!(
            name.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        );
    }
}

#[test]
fn dependencies_name_features() {
    for (needed, names) in DEPENDENTS {
        for name in names.split_whitespace().chain([needed]) {
            assert!(known(name).is_ok(), "{name}");
        }
    }
    for (_, name) in COMPONENTS.iter().chain(&SUPERVISOR) {
        assert!(known(name).is_ok(), "{name}");
    }
}

#[test]
fn known_bits_are_where_the_manuals_say() {
    let expect = [
        ("fpu", 1, 0, Register::Edx, 0),
        ("clflush", 1, 0, Register::Edx, 19),
        ("pbe", 1, 0, Register::Edx, 31),
        ("cx16", 1, 0, Register::Ecx, 13),
        ("hypervisor", 1, 0, Register::Ecx, 31),
        ("avx2", 7, 0, Register::Ebx, 5),
        ("avx512vl", 7, 0, Register::Ebx, 31),
        ("la57", 7, 0, Register::Ecx, 16),
        ("pks", 7, 0, Register::Ecx, 31),
        ("amx_int8", 7, 0, Register::Edx, 25),
        ("arch_capabilities", 7, 0, Register::Edx, 29),
        ("lam", 7, 1, Register::Eax, 26),
        ("xfd", 0xd, 1, Register::Eax, 4),
        ("topoext", 0x8000_0001, 0, Register::Ecx, 22),
        ("lm", 0x8000_0001, 0, Register::Edx, 29),
        ("nonstop_tsc", 0x8000_0007, 0, Register::Edx, 8),
        ("virt_ssbd", 0x8000_0008, 0, Register::Ebx, 25),
        ("vnmi", 0x8000_000a, 0, Register::Edx, 25),
    ];
    for (name, leaf, index, register, bit) in expect {
        let found: Vec<_> = bits_of(name)
            .map(|b| (b.leaf, b.index, b.register, b.bit))
            .collect();
        assert_eq!(found, [(leaf, index, register, bit)], "{name}");
    }
    assert_eq!(bits_of("ibpb").count(), 2);
}

#[test]
fn near_names_are_suggested() {
    let suggestions = |name: &str| match known(name) {
        Err(Error::UnknownFeature { near, .. }) => near,
        other => panic!("{other:?}"),
    };
    assert_eq!(suggestions("axv2")[0], "avx2");
    for name in ["SSE4-1", "sse4.1", "SSE4_1"] {
        assert_eq!(suggestions(name)[0], "sse4_1");
    }
    assert!(suggestions("sse41").contains(&"sse4_1"));
    assert!(suggestions("quantum").is_empty());
    assert!(suggestions("").len() <= 3);
}

proptest::proptest! {
    /// Whatever is requested, the result is a table that KVM accepts, or an error.
    #[test]
    fn any_words_give_a_table_or_an_error(
        words in proptest::collection::vec((proptest::bool::ANY, 0..all().count()), 0..8),
        host in 0..3usize,
    ) {
        use crate::cpu::cpuid::{CpuPlan, build};
        use crate::cpu::recorded::{self, KVM_AMD_ON_TCG, KVM_INTEL_ON_HASWELL, SOFTWARE_ON_EPYC};
        let names: Vec<_> = all().map(|(name, _)| name).collect();
        let features: Vec<_> = words
            .iter()
            .map(|&(enable, word)| CpuFeature { name: names[word].to_owned(), enable })
            .collect();
        let host = [KVM_AMD_ON_TCG, KVM_INTEL_ON_HASWELL, SOFTWARE_ON_EPYC][host];
        let plan = CpuPlan {
            cpus: 4,
            features: &features,
            nested: host != SOFTWARE_ON_EPYC,
            tsc_deadline_timer: true,
            tsc_khz: Some(1_000_000),
        };
        if let Ok(made) = build(&recorded::table(host), &plan) {
            let mut table = Table::new(&made);
            // XSAVE's area is never smaller than its last component.
            let size = table.get(0xd, 0).map_or(u32::MAX, |e| e.ecx);
            let ends = table.subleaves(0xd).filter(|e| e.index >= 2 && e.ecx & 1 == 0);
            for end in ends.map(|e| e.eax + e.ebx) {
                proptest::prop_assert!(end <= size);
            }
            // The last request for a feature wins.
            for (i, feature) in features.iter().enumerate() {
                let last = features[i + 1..].iter().all(|later| later.name != feature.name);
                let shown = bits_of(&feature.name)
                    .any(|b| table.has(b.leaf, b.index, b.register, b.bit));
                if last {
                    proptest::prop_assert_eq!(shown, feature.enable, "{}", feature.name);
                }
            }
        }
    }
}
