// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Any rules of an MSR filter: refused, or compiled to ranges that KVM accepts and that follow the rules.
//!
//! The first byte of the input chooses the default. Each further 9 bytes are a rule: a byte of choices, the
//! first MSR, how many more.

#![no_main]

use libfuzzer_sys::fuzz_target;
use para_msr::MsrRange;
use para_msr::filter::{
    Access, FilterDefault, FilterRange, LAST_MSR, MAX_BITMAP_BYTES, MAX_RANGES, MsrFilter,
    MsrFilterBuilder, X2APIC,
};

struct Rule {
    range: MsrRange,
    access: Access,
    allow: bool,
}

fn rule(bytes: &[u8]) -> Option<Rule> {
    let (choice, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first_chunk()?;
    let first = u32::from_le_bytes(*first);
    let more = u32::from_le_bytes(rest.try_into().ok()?);
    // Mostly short ones, because a few long ones are too many.
    let more = if choice & 8 == 0 { more % 0x4000 } else { more };
    Some(Rule {
        range: MsrRange::new(first, first.saturating_add(more)).ok()?,
        access: [Access::Read, Access::Write, Access::Both][usize::from(choice & 3) % 3],
        allow: choice & 4 != 0,
    })
}

/// Whether RDMSR (otherwise WRMSR) of an MSR should be allowed.
fn wanted(default: FilterDefault, rules: &[Rule], index: u32, read: bool) -> bool {
    let about = |rule: &&Rule| {
        let direction = if read {
            rule.access.reads()
        } else {
            rule.access.writes()
        };
        direction && rule.range.contains(index)
    };
    let denied = rules.iter().filter(about).any(|rule| !rule.allow);
    let allowed = rules.iter().filter(about).any(|rule| rule.allow);
    !denied && (allowed || default == FilterDefault::Allow)
}

fn check(filter: &MsrFilter, default: FilterDefault, rules: &[Rule]) {
    let ranges = filter.ranges();
    assert!(ranges.len() <= MAX_RANGES);
    for range in ranges {
        assert!(range.bitmap().len() <= MAX_BITMAP_BYTES && range.bitmap().len() % 8 == 0);
        assert!(range.count() as usize <= range.bitmap().len() * 8);
        let again = FilterRange::new(range.range(), range.access(), range.bitmap().to_vec());
        assert_eq!(again.as_ref(), Ok(range));
    }
    let edges = rules.iter().map(|rule| rule.range);
    let edges = edges
        .chain(ranges.iter().map(FilterRange::range))
        .chain([X2APIC, LAST_MSR]);
    for (range, by) in edges.flat_map(|range| [-1i32, 0, 1].map(|by| (range, by))) {
        for edge in [range.first(), range.last()] {
            let index = edge.wrapping_add_signed(by);
            for read in [true, false] {
                let is = if read {
                    filter.allows_read(index)
                } else {
                    filter.allows_write(index)
                };
                let uncovered = filter.uncovered().iter().any(|uncovered| {
                    let direction = if read {
                        uncovered.access.reads()
                    } else {
                        uncovered.access.writes()
                    };
                    direction && uncovered.range.contains(index) && uncovered.allowed == is
                });
                let wanted = wanted(default, rules, index, read);
                assert_eq!(is == wanted, !uncovered, "MSR {index:#x}, read: {read}");
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, rest)) = input.split_first() else {
        return;
    };
    let default = match choice & 1 {
        0 => FilterDefault::Allow,
        _ => FilterDefault::Deny,
    };
    let rules: Vec<_> = rest.chunks_exact(9).take(64).filter_map(rule).collect();
    let builder = rules
        .iter()
        .fold(MsrFilterBuilder::new(default), |builder, rule| {
            match rule.allow {
                true => builder.allow(rule.range, rule.access),
                false => builder.deny(rule.range, rule.access),
            }
        });
    let strict = builder.compile();
    match builder.compile_lenient() {
        Ok(filter) => {
            check(&filter, default, &rules);
            let is_void = filter.uncovered().iter().any(|gap| gap.allowed);
            assert_eq!(strict.is_err(), is_void);
        }
        Err(e) => assert_eq!(strict, Err(e)),
    }
});
