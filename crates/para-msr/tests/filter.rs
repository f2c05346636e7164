// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Compares compiled filters with a model of KVM's matching, over random rules.
#![allow(clippy::unwrap_used)]

use para_msr::MsrRange;
use para_msr::filter::{
    Access, FilterDefault, FilterError, MAX_BITMAP_BYTES, MAX_RANGE_MSRS, MAX_RANGES, MsrFilter,
    MsrFilterBuilder, X2APIC,
};
use para_msr::profile;
use proptest::prelude::*;

const READ: u32 = 1;
const WRITE: u32 = 2;

/// What KVM does with an access: the first range whose indices and flags match decides, otherwise the
/// default. All arithmetic is 32-bit.
fn kvm_allows(filter: &MsrFilter, index: u32, kind: u32) -> bool {
    if (0x800..=0x8ff).contains(&index) {
        return true;
    }
    for range in filter.ranges() {
        let (start, flags) = (range.base(), range.access().flags());
        let end = start.wrapping_add(range.count());
        if index >= start && index < end && flags & kind != 0 {
            let at = (index - start) as usize;
            let words: Vec<u64> = range
                .bitmap()
                .chunks_exact(8)
                .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
                .collect();
            return words[at / 64] >> (at % 64) & 1 == 1;
        }
    }
    filter.default_action() == FilterDefault::Allow
}

/// Whether KVM accepts the filter: what `KVM_X86_SET_MSR_FILTER` checks, and how much of the bitmap it reads.
fn kvm_takes(filter: &MsrFilter) -> bool {
    let fits = filter.ranges().iter().all(|range| {
        let bytes = (range.count() as usize).div_ceil(64) * 8;
        (1..=3).contains(&range.access().flags())
            && (1..=MAX_RANGE_MSRS).contains(&range.count())
            && bytes <= MAX_BITMAP_BYTES
            && range.bitmap().len() == bytes
    });
    let deny = filter.default_action() == FilterDefault::Deny;
    fits && filter.ranges().len() <= MAX_RANGES && !(deny && filter.ranges().is_empty())
}

#[derive(Clone, Copy, Debug)]
struct Rule {
    range: MsrRange,
    access: Access,
    allow: bool,
}

fn wanted(default: FilterDefault, rules: &[Rule], index: u32, kind: u32) -> bool {
    let any = |allow| {
        rules.iter().any(|rule| {
            rule.allow == allow && rule.range.contains(index) && rule.access.flags() & kind != 0
        })
    };
    !any(false) && (any(true) || default == FilterDefault::Allow)
}

fn collect(default: FilterDefault, rules: &[Rule]) -> MsrFilterBuilder {
    rules
        .iter()
        .fold(MsrFilterBuilder::new(default), |builder, rule| {
            match rule.allow {
                true => builder.allow(rule.range, rule.access),
                false => builder.deny(rule.range, rule.access),
            }
        })
}

/// Where an answer could change: next to the ends of rules, of ranges, and of what KVM treats specially.
fn interesting(filter: &MsrFilter, rules: &[Rule]) -> Vec<u32> {
    let ends = |range: MsrRange| [range.first(), range.last()];
    let mut found: Vec<u32> = rules.iter().flat_map(|rule| ends(rule.range)).collect();
    found.extend(filter.ranges().iter().flat_map(|range| ends(range.range())));
    found.extend([0, u32::MAX, 0x7ff, 0x800, 0x8ff, 0x900]);
    let near = found
        .iter()
        .flat_map(|at| (-2i32..=2).map(move |step| at.wrapping_add_signed(step)));
    near.collect()
}

fn check(default: FilterDefault, rules: &[Rule]) -> Result<Option<MsrFilter>, TestCaseError> {
    let builder = collect(default, rules);
    let Ok(filter) = builder.compile_lenient() else {
        prop_assert!(builder.compile().is_err());
        return Ok(None);
    };
    // `compile` accepts exactly the filters that deny everything they should.
    match filter.uncovered().iter().find(|gap| gap.allowed) {
        Some(gap) => prop_assert_eq!(builder.compile(), Err(FilterError::Void(*gap))),
        None => prop_assert_eq!(builder.compile(), Ok(filter.clone())),
    }
    prop_assert!(kvm_takes(&filter));
    for index in interesting(&filter, rules) {
        for (kind, allows) in [
            (READ, filter.allows_read(index)),
            (WRITE, filter.allows_write(index)),
        ] {
            let kvm = kvm_allows(&filter, index, kind);
            prop_assert_eq!(kvm, allows, "the filter misjudges KVM at {:#x}", index);
            let uncovered = filter
                .uncovered()
                .iter()
                .find(|gap| gap.range.contains(index) && gap.access.flags() & kind != 0);
            let want = wanted(default, rules, index, kind);
            prop_assert_eq!(
                kvm != want,
                uncovered.is_some(),
                "at {:#x}, kind {}",
                index,
                kind
            );
            prop_assert!(uncovered.is_none_or(|gap| gap.allowed == kvm));
            let special = X2APIC.contains(index) || index == u32::MAX;
            prop_assert!(uncovered.is_none() || special);
        }
    }
    Ok(Some(filter))
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![Just(Access::Read), Just(Access::Write), Just(Access::Both)]
}

/// Indices near those of real owners, and anywhere.
fn index() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0..0x1000u32,
        2 => 0xc000_0000..0xc000_0200u32,
        2 => 0xc001_0000..0xc001_4000u32,
        2 => 0x4000_0000..0x4000_0200u32,
        1 => Just(0x8765_5678u32),
        1 => 0xffff_fff0..=u32::MAX,
        1 => any::<u32>(),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let len = prop_oneof![8 => 0..8u32, 3 => 0..0x400u32, 1 => 0..0x9000u32];
    (index(), len, access(), any::<bool>()).prop_map(|(first, len, access, allow)| Rule {
        range: MsrRange::new(first, first.saturating_add(len)).unwrap(),
        access,
        allow,
    })
}

fn default_action() -> impl Strategy<Value = FilterDefault> {
    prop_oneof![Just(FilterDefault::Allow), Just(FilterDefault::Deny)]
}

proptest! {
    #[test]
    fn compiled_filters_do_what_was_wanted(
        default in default_action(),
        rules in prop::collection::vec(rule(), 0..24),
    ) {
        check(default, &rules)?;
    }

    /// In one direction, the minimal number of intervals that cover given points is known.
    #[test]
    fn one_direction_takes_the_fewest_ranges(points in prop::collection::btree_set(0..0x4_0000u32, 1..40)) {
        let mut best = 0;
        let mut covered = 0u32;
        for point in &points {
            // The x2APIC's MSRs need no range.
            if *point >= covered && !X2APIC.contains(*point) {
                (best, covered) = (best + 1, point + MAX_RANGE_MSRS);
            }
        }
        let both: Vec<Rule> = points
            .iter()
            .map(|point| Rule { range: (*point).into(), access: Access::Both, allow: false })
            .collect();
        match collect(FilterDefault::Allow, &both).compile_lenient() {
            Ok(filter) => prop_assert_eq!(filter.ranges().len(), best),
            Err(_) => prop_assert!(best > MAX_RANGES),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Compares every MSR in a window longer than two ranges.
    #[test]
    fn every_msr_of_a_window_is_as_wanted(
        default in default_action(),
        rules in prop::collection::vec(
            (0..0x6000u32, 0..0x2000u32, access(), any::<bool>()), 1..8
        ),
    ) {
        let rules: Vec<Rule> = rules
            .into_iter()
            .map(|(first, len, access, allow)| Rule {
                range: MsrRange::new(0x10_0000 + first, 0x10_0000 + first + len).unwrap(),
                access,
                allow,
            })
            .collect();
        let filter = check(default, &rules)?.unwrap();
        for index in 0x10_0000..0x10_8000 {
            prop_assert_eq!(filter.allows_read(index), wanted(default, &rules, index, READ));
            prop_assert_eq!(filter.allows_write(index), wanted(default, &rules, index, WRITE));
        }
    }
}

fn range(first: u32, last: u32) -> MsrRange {
    MsrRange::new(first, last).unwrap()
}

#[test]
fn neighbours_share_a_range() {
    let mut builder = MsrFilterBuilder::new(FilterDefault::Allow);
    for index in [0x35, 0x8b, 0xce, 0x1a0, 0x606] {
        builder = builder.deny(index, Access::Both);
    }
    let filter = builder.compile().unwrap();
    let [only] = filter.ranges() else {
        panic!("{filter:?}")
    };
    assert_eq!(
        (only.range(), only.access()),
        (range(0x35, 0x606), Access::Both)
    );
}

/// Reads of one MSR, writes of its neighbour, both of a third: two ranges are enough, because the second
/// may be for both directions where the first matches earlier.
#[test]
fn directions_that_differ_take_two_ranges() {
    let filter = MsrFilterBuilder::new(FilterDefault::Allow)
        .deny(0x100, Access::Read)
        .deny(0x101, Access::Write)
        .deny(0x102, Access::Both)
        .compile()
        .unwrap();
    assert_eq!(filter.ranges().len(), 2);
    let answers = (0x100..0x103).map(|n| (filter.allows_read(n), filter.allows_write(n)));
    assert_eq!(
        answers.collect::<Vec<_>>(),
        [(false, true), (true, false), (false, false)]
    );
}

#[test]
fn what_takes_more_than_sixteen_ranges_is_refused() {
    let spread = |count: u32| {
        (0..count).fold(MsrFilterBuilder::new(FilterDefault::Allow), |builder, n| {
            builder.deny(0x10_0000 + n * 0x3000, Access::Read)
        })
    };
    assert_eq!(spread(16).compile().unwrap().ranges().len(), 16);
    let first_left = 0x10_0000 + 16 * 0x3000;
    let error = spread(17).compile().unwrap_err();
    assert_eq!(error, FilterError::TooManyRanges { first_left });
    assert!(error.to_string().contains("0x130000"), "{error}");
    let all = MsrFilterBuilder::new(FilterDefault::Allow).deny(MsrRange::ALL, Access::Both);
    assert!(all.compile_lenient().is_err());
}

#[test]
fn denying_everything_needs_a_range_for_kvm() {
    let filter = MsrFilterBuilder::new(FilterDefault::Deny)
        .compile_lenient()
        .unwrap();
    assert!(kvm_takes(&filter));
    assert!(
        [0, 1, 0x10, 0xc000_0080]
            .iter()
            .all(|n| !filter.allows_read(*n))
    );
    let none = MsrFilter::from_ranges(FilterDefault::Deny, Vec::new());
    assert_eq!(none, Err(FilterError::NothingButDeny));
    let many = vec![filter.ranges()[0].clone(); 17];
    let many = MsrFilter::from_ranges(FilterDefault::Allow, many);
    assert_eq!(many, Err(FilterError::Ranges { count: 17 }));
}

#[test]
fn what_kvm_never_filters_is_said() {
    let filter = MsrFilterBuilder::new(FilterDefault::Allow)
        .deny(range(0x7ff, 0x802), Access::Read)
        .deny(u32::MAX, Access::Both)
        .compile_lenient()
        .unwrap();
    let said: Vec<String> = filter
        .uncovered()
        .iter()
        .map(|gap| gap.to_string())
        .collect();
    assert_eq!(
        said,
        [
            "KVM allows read of MSR 0x800-0x802 whatever its filter says",
            "KVM allows read and write of MSR 0xffffffff whatever its filter says"
        ]
    );
    assert!(!filter.allows_read(0x7ff) && filter.allows_read(0x800));
    // With a default of deny, the x2APIC's MSRs are reported unless a rule allows them.
    let deny = MsrFilterBuilder::new(FilterDefault::Deny).allow(0x10, Access::Both);
    assert_eq!(deny.compile_lenient().unwrap().uncovered()[0].range, X2APIC);
    let allowed = deny.allow(X2APIC, Access::Both).compile().unwrap();
    assert_eq!(allowed.uncovered(), []);
}

#[test]
fn a_denial_that_would_be_void_is_refused() {
    let open = || MsrFilterBuilder::new(FilterDefault::Allow);
    let shut = || MsrFilterBuilder::new(FilterDefault::Deny);
    let refused = [
        open().deny(0x830, Access::Write),
        open().deny(range(0x700, 0x800), Access::Read),
        open().deny(u32::MAX, Access::Both),
        shut().allow(0x10, Access::Both),
        shut().allow(X2APIC, Access::Read),
        shut().allow(X2APIC, Access::Both).deny(0x8ff, Access::Read),
    ]
    .map(|builder| builder.compile().unwrap_err().to_string());
    let rest =
        "whatever its filter says: allow these accesses, or leave them out of what is denied";
    let expected = [
        "write of MSR 0x830",
        "read of MSR 0x800",
        "read and write of MSR 0xffffffff",
        "read and write of MSR 0x800-0x8ff",
        "write of MSR 0x800-0x8ff",
        "read of MSR 0x8ff",
    ]
    .map(|accesses| format!("KVM allows {accesses} {rest}"));
    assert_eq!(refused, expected);
    let taken = [
        open().deny(0x7ff, Access::Both).deny(0x900, Access::Both),
        open().deny(0xffff_fffe, Access::Both),
        open().allow(X2APIC, Access::Both),
        // An allow rule that KVM won't honour harms no owner.
        shut()
            .allow(X2APIC, Access::Both)
            .allow(u32::MAX, Access::Both),
        shut().allow_profile(profile::LINUX),
    ];
    for builder in taken {
        assert!(builder.compile().is_ok(), "{builder:?}");
    }
}

#[test]
fn h15_the_magic_msr_is_owned_by_a_range() {
    for default in [FilterDefault::Allow, FilterDefault::Deny] {
        let filter = MsrFilterBuilder::new(default)
            .allow_profile(profile::LINUX)
            .deny(0x8765_5678, Access::Both)
            .compile()
            .unwrap();
        assert!(kvm_takes(&filter));
        assert!(!kvm_allows(&filter, 0x8765_5678, READ));
        assert!(!kvm_allows(&filter, 0x8765_5678, WRITE));
        assert!(kvm_allows(&filter, 0x10, READ) && kvm_allows(&filter, 0xc000_0080, WRITE));
    }
}
