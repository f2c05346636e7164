// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Holes H1 to H14 of the original, closed. H6 is in `restore.rs`, H8 in part in `threads.rs`, H11 in `events.rs`.

use hypercall_patch::Stub;
use hypercall_patch::memory::{SiteError, Written};
use para_abi::{KvmErrno, ParaErrno, ParaStatePayload};
use para_msr::ParaMsr;
use para_msr::para::{FaultReason, Refusal};
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    Permissions,
};

use crate::support::*;

#[test]
fn h1_a_site_that_crosses_a_page_is_refused_untouched() {
    // Followed by a page of RAM, by nothing, and by another region.
    let layouts: [&[(u64, usize)]; 3] = [
        &[(0, RAM as usize)],
        &[(0, 0x3000)],
        &[(0, 0x3000), (0x3000, 0x1000)],
    ];
    for layout in layouts {
        for gpa in [0x2ffd, 0x2ffe, 0x2fff] {
            let memory = memory(layout);
            put(&memory, PAGE, &ParaStatePayload::new(gpa));
            let before = image(&memory);
            let mut para = ParaMsr::new(&memory, Stub::Vmx);
            let reason = refusal(para.wrmsr(PAGE));
            assert_eq!(reason, Refusal::Site(SiteError::CrossesPage { gpa }));
            assert_eq!(para.registration(), None);
            assert_eq!(get(&memory, PAGE).ret, EINVAL);
            let version: Vec<_> = (PAGE + 4..PAGE + 8).collect();
            assert_eq!(changed(&before, &image(&memory)), version);
        }
    }
}

#[test]
fn h1_the_last_four_bytes_of_a_page_are_a_site() {
    for (layout, gpa) in [(RAM, 0x2ffc), (0x3000, 0x2ffc), (RAM, RAM - 4)] {
        let memory = memory(&[(0, layout as usize)]);
        put(&memory, PAGE, &ParaStatePayload::new(gpa));
        assert!(
            ParaMsr::new(&memory, PIO)
                .wrmsr(PAGE)
                .registered()
                .is_some()
        );
        assert_eq!(bytes(&memory, gpa), PIO.bytes());
    }
}

#[test]
fn h1_a_site_across_the_end_of_ram_is_refused_untouched() {
    // KVM's regions are whole pages, but a GuestMemory's need not be.
    for size in [0x2011, 0x2012, 0x2013] {
        let memory = memory(&[(0, size)]);
        put(&memory, PAGE, &ParaStatePayload::new(SITE));
        let before = image(&memory);
        let reason = refusal(ParaMsr::new(&memory, PIO).wrmsr(PAGE));
        assert_eq!(reason, Refusal::Site(SiteError::NotRam { gpa: SITE }));
        assert!(
            changed(&before, &image(&memory))
                .iter()
                .all(|gpa| *gpa < SITE)
        );
    }
}

#[test]
fn h1_a_site_in_two_regions_of_one_page_is_whole() {
    for split in 0x2011..=0x2013 {
        let memory = memory(&[(0, split as usize), (split, 0x1000)]);
        put(&memory, PAGE, &ParaStatePayload::new(SITE));
        assert!(
            ParaMsr::new(&memory, PIO)
                .wrmsr(PAGE)
                .registered()
                .is_some()
        );
        assert_eq!(bytes(&memory, SITE), PIO.bytes(), "{split:#x}");
    }
}

#[test]
fn h1_a_page_in_two_regions_is_no_page() {
    for split in PAGE + 1..PAGE + 24 {
        let memory = memory(&[(0, split as usize), (split, 0x2000)]);
        put(&memory, PAGE, &ParaStatePayload::new(SITE));
        let before = image(&memory);
        assert_eq!(
            fault(ParaMsr::new(&memory, PIO).wrmsr(PAGE)),
            FaultReason::NotRam
        );
        assert_eq!(image(&memory), before);
    }
}

#[test]
fn h2_size_is_shown_and_means_nothing() {
    for size in [0, 1, 23, 24, 4096, 4097, u32::MAX] {
        let memory = ready();
        put(
            &memory,
            PAGE,
            &ParaStatePayload {
                size,
                ..ParaStatePayload::new(SITE)
            },
        );
        let event = ParaMsr::new(&memory, Stub::Svm).wrmsr(PAGE);
        assert_eq!(event.registered().unwrap().size, size);
        assert_eq!(get(&memory, PAGE).size, size);
    }
}

#[test]
fn h2_nothing_behind_the_24_bytes_is_needed() {
    let memory = memory(&[(0, 0x7018)]);
    put(&memory, 0x7000, &ParaStatePayload::new(SITE));
    let event = ParaMsr::new(&memory, Stub::Svm).wrmsr(0x7000);
    assert!(event.registered().is_some());
    let guarded = Guarded {
        ram: ready(),
        limits: vec![(PAGE + 24..PAGE + 0x1000, Permissions::No)],
    };
    assert!(
        ParaMsr::new(&guarded, Stub::Svm)
            .wrmsr(PAGE)
            .registered()
            .is_some()
    );
}

#[test]
fn h3_both_pages_are_marked_dirty_and_no_other() {
    let pages = [(GuestAddress(0), RAM as usize)];
    let memory = GuestMemoryMmap::<AtomicBitmap>::from_ranges(&pages).unwrap();
    put(&memory, PAGE, &ParaStatePayload::new(SITE));
    let bitmap = || memory.find_region(GuestAddress(0)).unwrap().bitmap();
    let dirty = || {
        (0..RAM as usize)
            .step_by(0x1000)
            .map(|gpa| bitmap().dirty_at(gpa))
            .collect()
    };
    let clean = || (**memory.iter().next().unwrap()).bitmap().reset();
    let mut para = ParaMsr::new(&memory, Stub::Vmx);
    clean();
    assert!(para.wrmsr(PAGE).registered().is_some());
    let pages: Vec<bool> = dirty();
    assert_eq!(
        pages,
        [false, true, true, false, false, false, false, false]
    );
    // Again, with the stub already there.
    clean();
    assert!(para.wrmsr(PAGE).registered().is_some());
    let pages: Vec<bool> = dirty();
    assert_eq!(
        pages,
        [false, true, false, false, false, false, false, false]
    );
    // Refused.
    put(&memory, PAGE, &ParaStatePayload::new(RAM));
    clean();
    let _ = refusal(para.wrmsr(PAGE));
    let pages: Vec<bool> = dirty();
    assert_eq!(
        pages,
        [false, true, false, false, false, false, false, false]
    );
    // Patched again on another host.
    put(&memory, PAGE, &ParaStatePayload::new(SITE));
    assert!(para.wrmsr(PAGE).registered().is_some());
    clean();
    let _ = ParaMsr::new(&memory, Stub::Svm)
        .restore(&para.save())
        .unwrap();
    let pages: Vec<bool> = dirty();
    assert_eq!(
        pages,
        [false, false, true, false, false, false, false, false]
    );
}

#[test]
fn h4_memory_is_looked_up_anew_for_each_registration() {
    let small = memory(&[(0, 0x3000)]);
    put(&small, PAGE, &ParaStatePayload::new(SITE));
    let atomic = GuestMemoryAtomic::new(small.clone());
    let mut para = ParaMsr::new(atomic.clone(), PIO);
    assert!(para.wrmsr(PAGE).registered().is_some());
    assert_eq!(fault(para.wrmsr(0x10_0000)), FaultReason::NotRam);
    // Memory is plugged, and existing memory moves in the host.
    let large = memory(&[(0, 0x3000), (0x10_0000, 0x1000)]);
    put(&large, 0x10_0000, &ParaStatePayload::new(SITE));
    let before = image(&small);
    atomic.lock().unwrap().replace(large.clone());
    assert!(para.wrmsr(0x10_0000).registered().is_some());
    assert_eq!(bytes(&large, SITE), PIO.bytes());
    assert_eq!(image(&small), before);
    // And unplugged.
    atomic.lock().unwrap().replace(small);
    assert_eq!(fault(para.wrmsr(0x10_0000)), FaultReason::NotRam);
}

#[test]
fn h5_a_reset_unregisters_and_leaves_the_patched_bytes() {
    let memory = ready();
    let mut para = ParaMsr::new(&memory, Stub::Vmx);
    assert!(para.wrmsr(PAGE).registered().is_some());
    let before = image(&memory);
    para.reset();
    assert_eq!(para.registration(), None);
    assert_eq!(para.save(), ParaMsr::new(&memory, Stub::Vmx).save());
    assert_eq!(image(&memory), before);
    assert_eq!(
        para.wrmsr(PAGE).registered().unwrap().written,
        Written::Unchanged
    );
}

#[test]
fn h7_the_page_is_read_once() {
    let memory = spied();
    let other = memory.clone();
    // Another vCPU rewrites the page as soon as the host starts to answer.
    after_each_store(move |gpa, _| {
        if gpa == PAGE + 4 {
            let evil = ParaStatePayload {
                guest_version: 99,
                ..ParaStatePayload::new(0x5ffe)
            };
            put(&other, PAGE, &evil);
        }
    });
    let mut para = ParaMsr::new(&memory, Stub::Vmx);
    let registered = *para.wrmsr(PAGE).registered().unwrap();
    assert_eq!(
        (registered.guest_version, registered.hypercall_gpa),
        (1, SITE)
    );
    assert_eq!(para.registration().unwrap().hypercall_gpa, SITE);
    assert_eq!(bytes(&memory, SITE), Stub::Vmx.bytes());
    assert_eq!(get(&memory, PAGE).ret, 0);
}

#[test]
fn h8_an_aligned_site_is_one_store_and_equal_bytes_are_none() {
    for (site, count) in [(SITE, 1), (SITE + 0xfec, 1)] {
        let memory = spied();
        put(&memory, PAGE, &ParaStatePayload::new(site));
        let (sender, stores) = std::sync::mpsc::channel();
        after_each_store(move |gpa, len| sender.send((gpa, len)).unwrap());
        let mut para = ParaMsr::new(&memory, Stub::Svm);
        assert_eq!(
            para.wrmsr(PAGE).registered().unwrap().written,
            Written::Changed
        );
        let at_site = |(gpa, _): &(u64, usize)| *gpa >= site;
        let patched: Vec<_> = stores.try_iter().filter(at_site).collect();
        assert_eq!(patched, vec![(site, 4); count]);
        assert_eq!(
            para.wrmsr(PAGE).registered().unwrap().written,
            Written::Unchanged
        );
        assert_eq!(stores.try_iter().filter(at_site).count(), 0);
    }
}

#[test]
fn h9_a_site_that_overlaps_the_payload_is_refused() {
    for offset in 0..24 {
        let memory = ready();
        put(
            &memory,
            PAGE,
            &ParaStatePayload {
                ret: 5,
                ..ParaStatePayload::new(PAGE + offset)
            },
        );
        let mut para = ParaMsr::new(&memory, PIO);
        let overlaps = SiteError::Overlaps {
            gpa: PAGE + offset,
            start: PAGE,
            end: PAGE + 24,
        };
        assert_eq!(refusal(para.wrmsr(PAGE)), Refusal::Site(overlaps));
        assert_eq!(para.registration(), None);
        let page = get(&memory, PAGE);
        assert_eq!((page.ret, page.hypercall_gpa), (EINVAL, PAGE + offset));
    }
    // A site just below the page would cross into it; from offset 24 on it is allowed.
    for (gpa, crosses) in [
        (PAGE - 4, false),
        (PAGE - 3, true),
        (PAGE - 1, true),
        (PAGE + 24, false),
    ] {
        let memory = ready();
        put(&memory, PAGE, &ParaStatePayload::new(gpa));
        let event = ParaMsr::new(&memory, PIO).wrmsr(PAGE);
        assert_eq!(event.registered().is_none(), crosses, "{gpa:#x}");
        if !crosses {
            assert_eq!(bytes(&memory, gpa), PIO.bytes());
            assert_eq!(get(&memory, PAGE).ret, 0);
        }
    }
}

#[test]
fn h10_a_page_that_cannot_be_written_or_read_faults() {
    for allowed in [Permissions::No, Permissions::Read, Permissions::Write] {
        for limit in [PAGE..PAGE + 0x1000, PAGE..PAGE + 1, PAGE + 23..PAGE + 24] {
            let memory = Guarded {
                ram: ready(),
                limits: vec![(limit, allowed)],
            };
            let before = image(&memory.ram);
            let mut para = ParaMsr::new(&memory, Stub::Vmx);
            assert_eq!(fault(para.wrmsr(PAGE)), FaultReason::NotRam);
            assert_eq!(image(&memory.ram), before);
            assert_eq!(para.registration(), None);
        }
    }
}

#[test]
fn h10_a_site_that_cannot_be_written_is_refused() {
    for (allowed, reason) in [
        (Permissions::No, SiteError::NotRam { gpa: SITE }),
        (Permissions::Read, SiteError::ReadOnly { gpa: SITE }),
    ] {
        for limit in [0x2000..0x3000, SITE..SITE + 1, SITE + 3..SITE + 4] {
            let memory = Guarded {
                ram: ready(),
                limits: vec![(limit, allowed)],
            };
            let before = bytes::<4, _>(&memory.ram, SITE);
            let mut para = ParaMsr::new(&memory, Stub::Vmx);
            assert_eq!(refusal(para.wrmsr(PAGE)), Refusal::Site(reason));
            let page = get(&memory, PAGE);
            assert_eq!((page.host_version, page.ret), (1, EINVAL));
            assert_eq!(bytes(&memory.ram, SITE), before);
            assert_eq!(para.registration(), None);
        }
    }
}

#[test]
fn h12_ret_is_the_error_of_2007() {
    let memory = ready();
    put(
        &memory,
        PAGE,
        &ParaStatePayload {
            ret: 0,
            ..ParaStatePayload::new(RAM)
        },
    );
    let _ = refusal(ParaMsr::new(&memory, PIO).wrmsr(PAGE));
    let ret = get(&memory, PAGE).ret;
    assert_eq!(
        (ret, ret),
        (ParaErrno::KVM_EINVAL.as_ret(), 1u32.wrapping_neg())
    );
    assert_ne!(u64::from(ret), KvmErrno::KVM_EINVAL.as_ret() & 0xffff_ffff);
}

#[test]
fn h13_addresses_near_2_to_the_64_fail_and_do_not_wrap() {
    let memory = ready();
    let before = image(&memory);
    let mut para = ParaMsr::new(&memory, PIO);
    assert_eq!(
        fault(para.wrmsr(0xffff_ffff_ffff_f001)),
        FaultReason::Misaligned
    );
    assert_eq!(
        fault(para.wrmsr(0xffff_ffff_ffff_f000)),
        FaultReason::NotRam
    );
    // The low half alone would be a valid page.
    assert_eq!(fault(para.wrmsr(1 << 32 | PAGE)), FaultReason::NotRam);
    assert_eq!(fault(para.wrmsr(1 << 63 | PAGE)), FaultReason::NotRam);
    assert_eq!(image(&memory), before);
    for gpa in u64::MAX - 16..=u64::MAX {
        put(&memory, PAGE, &ParaStatePayload::new(gpa));
        let _ = refusal(para.wrmsr(PAGE));
    }
    assert_eq!(
        bytes::<8, _>(&memory, 0),
        before[0].1[..8],
        "no stub around the corner"
    );
}

#[test]
fn h13_memory_that_ends_at_2_to_the_64_is_memory() {
    let top = 0xffff_ffff_ffff_e000;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(top), 0x1000)]).unwrap();
    put(&memory, top, &ParaStatePayload::new(top + 0xffc));
    assert!(ParaMsr::new(&memory, PIO).wrmsr(top).registered().is_some());
    assert_eq!(bytes(&memory, top + 0xffc), PIO.bytes());
}

#[test]
fn h14_the_wrong_page_gets_a_version_and_a_refusal_and_no_more() {
    // The guest's page is above 4 GiB, but it passes 0 in EDX, so the host uses the page at the low half.
    let truncated = 0x5000;
    for value in [0x00, 0x90, 0xcc, 0xff] {
        let memory = memory(&[(0, RAM as usize), (1 << 32, 0x8000)]);
        memory
            .write_slice(&[value; 0x1000], GuestAddress(truncated))
            .unwrap();
        put(
            &memory,
            1 << 32 | truncated,
            &ParaStatePayload::new(1 << 32),
        );
        let before = image(&memory);
        let event = ParaMsr::new(&memory, PIO).wrmsr(truncated);
        let allowed: Vec<u64> = match value {
            // A page of zeros means version 0 and a site at 0, which is RAM here, so it registers.
            0 => (0..4)
                .chain(truncated + 4..truncated + 8)
                .chain(truncated + 12..truncated + 16)
                .collect(),
            _ => (truncated + 4..truncated + 8)
                .chain(truncated + 12..truncated + 16)
                .collect(),
        };
        assert_eq!(event.registered().is_some(), value == 0);
        let changed = changed(&before, &image(&memory));
        assert!(
            changed.iter().all(|gpa| allowed.contains(gpa)),
            "{changed:x?}"
        );
    }
}
