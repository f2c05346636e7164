// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stubs in guest memory, compared with a model that works byte by byte.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::ops::Range;

use hypercall_patch::memory::{SiteError, Written, check_site, write_stub};
use hypercall_patch::{PioPort, Stub, Vendor, hyperv, xen};
use proptest::prelude::*;
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

const BASE: u64 = 0x7000;
const LEN: u64 = 0x3000;

/// Three pages, divided anywhere into RAM and holes.
#[derive(Clone, Debug)]
struct Layout(Vec<Range<u64>>);

fn any_layout() -> impl Strategy<Value = Layout> {
    // Cuts are mostly near page boundaries, as the sites are.
    let cut = prop_oneof![
        0..LEN,
        (1..3_u64, 0..12_u64).prop_map(|(page, at)| page * 0x1000 + at - 6)
    ];
    (
        prop::collection::btree_set(cut, 0..6),
        prop::collection::vec(prop::bool::weighted(0.8), 7),
    )
        .prop_map(|(mut cuts, ram)| {
            cuts.extend([0, LEN]);
            let cuts: Vec<u64> = cuts.into_iter().collect();
            let pieces = cuts.windows(2).map(|w| BASE + w[0]..BASE + w[1]);
            Layout(
                pieces
                    .zip(ram)
                    .filter_map(|(piece, ram)| ram.then_some(piece))
                    .collect(),
            )
        })
}

fn any_gpa(layout: &Layout) -> BoxedStrategy<u64> {
    let edges: Vec<u64> = layout
        .0
        .iter()
        .flat_map(|r| [r.start, r.end])
        .chain([BASE, BASE + 0x1000, BASE + 0x2000])
        .collect();
    prop_oneof![
        4 => (prop::sample::select(edges), 0..12_u64).prop_map(|(edge, at)| edge + at - 6),
        2 => BASE - 8..BASE + LEN + 8,
        1 => u64::MAX - 8..=u64::MAX,
        1 => any::<u64>(),
    ]
    .boxed()
}

fn any_stub() -> impl Strategy<Value = Stub> {
    prop_oneof![
        Just(Stub::Vmx),
        Just(Stub::Svm),
        any::<u8>().prop_filter_map("forbidden", |port| PioPort::new(port).ok().map(Stub::Pio)),
    ]
}

fn any_keep(gpa: u64) -> impl Strategy<Value = Option<Range<u64>>> {
    prop_oneof![
        2 => Just(None),
        3 => (0..40_u64, 0..30_u64).prop_map(move |(at, len)| {
            let start = gpa.wrapping_add(at).wrapping_sub(30);
            Some(start..start.saturating_add(len))
        }),
        1 => (any::<u64>(), any::<u64>()).prop_map(|(start, end)| Some(start..end)),
    ]
}

#[derive(Clone, Debug)]
struct Case {
    layout: Layout,
    gpa: u64,
    keep: Option<Range<u64>>,
    before: Option<Stub>,
    stub: Stub,
}

fn any_case() -> impl Strategy<Value = Case> {
    any_layout()
        .prop_flat_map(|layout| (any_gpa(&layout), Just(layout)))
        .prop_flat_map(|(gpa, layout)| {
            (
                Just(layout),
                Just(gpa),
                any_keep(gpa),
                prop::option::of(any_stub()),
                any_stub(),
            )
        })
        .prop_map(|(layout, gpa, keep, before, stub)| Case {
            layout,
            gpa,
            keep,
            before,
            stub,
        })
}

/// The three pages byte by byte; `None` is a hole.
type Bytewise = Vec<Option<u8>>;

fn index(gpa: u64) -> Option<usize> {
    (BASE..BASE + LEN)
        .contains(&gpa)
        .then(|| (gpa - BASE) as usize)
}

/// The expected result, computed as simply as possible. 128-bit addresses can't wrap.
fn model(ram: &mut Bytewise, case: &Case) -> Result<Written, SiteError> {
    let gpa = case.gpa;
    let site: Vec<u128> = (0..4).map(|at| u128::from(gpa) + at).collect();
    if site
        .iter()
        .map(|byte| byte / 4096)
        .collect::<BTreeSet<_>>()
        .len()
        != 1
    {
        return Err(SiteError::CrossesPage { gpa });
    }
    let site: Vec<u64> = site
        .into_iter()
        .map(|byte| byte.try_into().unwrap())
        .collect();
    if let Some(keep) = case
        .keep
        .clone()
        .filter(|keep| site.iter().any(|byte| keep.contains(byte)))
    {
        return Err(SiteError::Overlaps {
            gpa,
            start: keep.start,
            end: keep.end,
        });
    }
    if !site
        .iter()
        .all(|&byte| index(byte).is_some_and(|at| ram[at].is_some()))
    {
        return Err(SiteError::NotRam { gpa });
    }
    let mut written = Written::Unchanged;
    for (byte, new) in site.into_iter().zip(case.stub.bytes()) {
        if ram[index(byte).unwrap()].replace(new) != Some(new) {
            written = Written::Changed;
        }
    }
    Ok(written)
}

/// The memory that both start with: a pattern, and maybe a stub at the site.
fn build(case: &Case) -> (GuestMemoryMmap<AtomicBitmap>, Bytewise) {
    let mut bytewise = vec![None; LEN as usize];
    for byte in case.layout.0.iter().cloned().flatten() {
        bytewise[index(byte).unwrap()] = Some((byte % 251) as u8);
    }
    for (at, new) in (0..).zip(case.before.map(Stub::bytes).into_iter().flatten()) {
        if let Some(at) = case.gpa.checked_add(at).and_then(index) {
            bytewise[at] = bytewise[at].map(|_| new);
        }
    }
    let ranges: Vec<_> = case
        .layout
        .0
        .iter()
        .map(|r| (GuestAddress(r.start), (r.end - r.start) as usize))
        .collect();
    let memory = GuestMemoryMmap::<AtomicBitmap>::from_ranges(&ranges).unwrap();
    for region in memory.iter() {
        let at = index(region.start_addr().0).unwrap();
        let content: Vec<u8> = bytewise[at..at + region.len() as usize]
            .iter()
            .flatten()
            .copied()
            .collect();
        memory.write_slice(&content, region.start_addr()).unwrap();
        (**region).bitmap().reset();
    }
    (memory, bytewise)
}

fn content(memory: &GuestMemoryMmap<AtomicBitmap>) -> Bytewise {
    let mut all = vec![None; LEN as usize];
    for region in memory.iter() {
        let mut content = vec![0; region.len() as usize];
        memory
            .read_slice(&mut content, region.start_addr())
            .unwrap();
        let at = index(region.start_addr().0).unwrap();
        for (byte, content) in all[at..].iter_mut().zip(content) {
            *byte = Some(content);
        }
    }
    all
}

/// Checks that the pages of changed bytes are dirty, and no pages outside the site.
fn check_dirty(
    memory: &GuestMemoryMmap<AtomicBitmap>,
    case: &Case,
    before: &Bytewise,
    after: &Bytewise,
) {
    let changed: Vec<u64> = (BASE..)
        .zip(before.iter().zip(after))
        .filter(|(_, (old, new))| old != new)
        .map(|(gpa, _)| gpa)
        .collect();
    for region in memory.iter() {
        let start = region.start_addr().0;
        let page = |byte: &u64| {
            byte.checked_sub(start)
                .filter(|at| *at < region.len())
                .map(|at| at / 4096)
        };
        let must: BTreeSet<u64> = changed.iter().filter_map(page).collect();
        let site = (0..4).filter_map(|at| case.gpa.checked_add(at));
        let may: BTreeSet<u64> = site
            .filter(|_| !changed.is_empty())
            .filter_map(|byte| page(&byte))
            .collect();
        for number in 0..region.len().div_ceil(4096) {
            let dirty = region.bitmap().dirty_at(number as usize * 4096);
            assert!(
                dirty || !must.contains(&number),
                "page {number} of {start:#x} should be dirty"
            );
            assert!(
                !dirty || may.contains(&number),
                "page {number} of {start:#x} should be clean"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn h1_h3_h8_h9_h13_a_write_is_what_the_model_does(case in any_case()) {
        prop_assume!(!case.layout.0.is_empty());
        let (memory, before) = build(&case);
        let mut expected = before.clone();
        let outcome = model(&mut expected, &case);

        let checked = check_site(&memory, GuestAddress(case.gpa), case.keep.clone());
        prop_assert_eq!(checked.as_ref().err(), outcome.as_ref().err());
        prop_assert!(content(&memory) == before, "a check must not write");
        drop(checked);

        let written = write_stub(&memory, GuestAddress(case.gpa), case.stub, case.keep.clone());
        prop_assert_eq!(written, outcome);
        let after = content(&memory);
        prop_assert!(after == expected);
        check_dirty(&memory, &case, &before, &after);

        if written.is_ok() {
            let again = write_stub(&memory, GuestAddress(case.gpa), case.stub, case.keep.clone());
            prop_assert_eq!(again, Ok(Written::Unchanged));
        }
    }

    #[test]
    fn r9_only_what_bytes_yields_is_identified(bytes in prop_oneof![
        any::<[u8; 4]>(),
        any_stub().prop_map(Stub::bytes),
        (any_stub(), 0..4_usize, any::<u8>()).prop_map(|(stub, at, byte)| {
            let mut bytes = stub.bytes();
            bytes[at] = byte;
            bytes
        }),
    ]) {
        let all = (0..=u8::MAX).filter_map(|port| PioPort::new(port).ok()).map(Stub::Pio);
        let expected = all.chain([Stub::Vmx, Stub::Svm]).find(|stub| stub.bytes() == bytes);
        prop_assert_eq!(Stub::identify(&bytes), expected);
    }

    #[test]
    fn vendors_are_exact_and_shown_in_printable_ascii(id in any::<[u8; 12]>(), flip in 0..96_usize) {
        for id in Vendor::ALL.map(|vendor| {
            let mut id = *vendor.id();
            id[flip / 8] ^= 1 << (flip % 8);
            id
        }).into_iter().chain([id]) {
            let error = Vendor::from_id(&id).unwrap_err();
            prop_assert_eq!(error.0, id);
            prop_assert!(error.to_string().bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
    }

    #[test]
    fn msr_values_lose_no_bit(value in any::<u64>(), os in any::<u64>()) {
        let request = xen::PageRequest::from_msr(value);
        prop_assert_eq!(request.gpa | u64::from(request.index), value);
        prop_assert_eq!(request.gpa % 4096, 0);
        prop_assert_eq!(request.intercepted().is_ok(), value % 4096 == 0);

        let msr = hyperv::HypercallMsr(value);
        prop_assert_eq!(msr.gpa(), value / 4096 * 4096);
        prop_assert_eq!(msr.enabled(), value % 2 == 1);
        prop_assert_eq!(msr.on_write(os | 1) == hyperv::OnWrite::WritePage { gpa: msr.gpa() }, msr.enabled());
    }
}
