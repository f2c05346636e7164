// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Registration while other vCPUs overwrite everything that it reads and writes.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use hypercall_patch::Stub;
use para_abi::{OFFSET_RET, ParaStatePayload};
use para_msr::para::Refusal;
use para_msr::{ParaMsr, Registration};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::support::*;

const TURNS: usize = 4_000;
const OLD: u32 = u32::from_le_bytes([0xb8, 0xda, 0xff, 0xff]);
const SITES: [u64; 3] = [0x2000, 0x2ffc, 0x4010];
const PAGES: [u64; 2] = [0x1000, 0x3000];

fn load(memory: &GuestMemoryMmap, gpa: u64) -> u32 {
    u32::from_le(memory.load(GuestAddress(gpa), Ordering::Acquire).unwrap())
}

fn store(memory: &GuestMemoryMmap, gpa: u64, value: u32) {
    memory
        .store(value.to_le(), GuestAddress(gpa), Ordering::Release)
        .unwrap();
}

fn store_site(memory: &GuestMemoryMmap, page: u64, site: u64) {
    memory
        .store(site.to_le(), GuestAddress(page + 16), Ordering::Release)
        .unwrap();
}

/// Two vCPUs register while a third rewrites their pages and reverts the stubs, and a fourth calls them. It
/// must find the guest's own bytes or the stub, never a mixture, and no other byte may change.
#[test]
fn h8_a_vcpu_that_runs_an_aligned_site_sees_old_or_new_bytes() {
    let memory = memory(&[(0, RAM as usize)]);
    for site in SITES {
        store(&memory, site, OLD);
    }
    for page in PAGES {
        put(&memory, page, &ParaStatePayload::new(SITES[0]));
    }
    let before = image(&memory);
    let done = AtomicBool::new(false);
    let new = u32::from_le_bytes(Stub::Svm.bytes());
    thread::scope(|scope| {
        let memory = &memory;
        let vcpus = PAGES.map(|page| scope.spawn(move || register_often(memory, page)));
        scope.spawn(|| {
            for turn in (0..).take_while(|_| !done.load(Ordering::Relaxed)) {
                let page = PAGES[turn % 2];
                store(memory, page, [1, 0, 7, 1, u32::MAX, 1, 1][turn % 7]);
                let sites = [SITES[0], SITES[1], SITES[2], 0x4ffe, page + 8, RAM];
                store_site(memory, page, sites[turn / 2 % 6]);
                store(memory, SITES[turn % 3], OLD);
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for site in SITES {
                    let found = load(memory, site);
                    assert!(
                        found == OLD || found == new,
                        "torn: {found:#010x} at {site:#x}"
                    );
                }
            }
        });
        // The others must stop even if one fails.
        let finished = vcpus.map(|vcpu| vcpu.join());
        done.store(true, Ordering::Relaxed);
        for vcpu in finished {
            vcpu.unwrap();
        }
    });
    let touched = |gpa: &u64| {
        PAGES.iter().any(|page| (*page..page + 24).contains(gpa))
            || SITES.iter().any(|site| (*site..site + 4).contains(gpa))
    };
    assert!(changed(&before, &image(&memory)).iter().all(touched));
}

/// Registers many times, until it has both succeeded and been refused, because threads may not run in parallel.
fn register_often(memory: &GuestMemoryMmap, page: u64) {
    let mut para = ParaMsr::new(memory, Stub::Svm);
    let (mut turns, mut registered) = (0, 0);
    while turns < TURNS || registered == 0 || registered == turns {
        registered += usize::from(check(&para.wrmsr(page), page));
        turns += 1;
    }
}

/// Whether the guest was registered. Checks that the event fits one of the pages.
fn check(event: &Registration, page: u64) -> bool {
    match event {
        Registration::Registered(event) => {
            assert!(SITES.contains(&event.hypercall_gpa) && event.guest_version <= 1);
            assert_eq!(event.para_state_gpa, page);
            true
        }
        Registration::Refused(event) => {
            let newer = event.guest_version > 1;
            assert_eq!(event.reason == Refusal::NewerGuest, newer);
            assert!(newer || !SITES.contains(&event.hypercall_gpa));
            false
        }
        other => panic!("{other}"),
    }
}

#[test]
fn r8_a_vcpu_that_sees_ret_0_sees_the_stub() {
    let memory = memory(&[(0, RAM as usize)]);
    put(&memory, PAGE, &ParaStatePayload::new(SITE));
    let (start, end) = (Barrier::new(2), Barrier::new(2));
    let new = u32::from_le_bytes(PIO.bytes());
    let seen = thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut seen = Vec::new();
            for _ in 0..TURNS {
                start.wait();
                while load(&memory, PAGE + OFFSET_RET as u64) != 0 {
                    std::hint::spin_loop();
                }
                seen.push((load(&memory, SITE), load(&memory, PAGE + 4)));
                end.wait();
            }
            seen
        });
        let mut para = ParaMsr::new(&memory, PIO);
        for _ in 0..TURNS {
            store(&memory, SITE, OLD);
            store(&memory, PAGE + 4, EINVAL);
            store(&memory, PAGE + OFFSET_RET as u64, EINVAL);
            start.wait();
            let _ = para.wrmsr(PAGE);
            store(&memory, PAGE + OFFSET_RET as u64, 0); // so that the other thread continues in any case
            end.wait();
        }
        other.join().unwrap()
    });
    assert_eq!(seen, [(new, 1); TURNS]);
}

#[test]
fn r11_two_vcpus_register_one_stub_at_the_same_time() {
    let memory = memory(&[(0, RAM as usize)]);
    for turn in 0..200 {
        // Aligned, and not.
        let site = SITE + turn % 2;
        for page in PAGES {
            put(&memory, page, &ParaStatePayload::new(site));
        }
        memory
            .write_slice(&[0xb8, 0xda, 0xff, 0xff, 0xff, 0xc3], GuestAddress(site))
            .unwrap();
        let start = Barrier::new(2);
        thread::scope(|scope| {
            for page in PAGES {
                let (memory, start) = (&memory, &start);
                scope.spawn(move || {
                    let mut para = ParaMsr::new(memory, Stub::Vmx);
                    start.wait();
                    assert!(para.wrmsr(page).registered().is_some());
                });
            }
        });
        assert_eq!(bytes(&memory, site), [0x0f, 0x01, 0xc1, 0xc3, 0xff, 0xc3]);
        assert_eq!(PAGES.map(|page| get(&memory, page).ret), [0, 0]);
    }
}
