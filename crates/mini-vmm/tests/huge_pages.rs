// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The page size that the host is asked to use for guest memory.

#![allow(clippy::unwrap_used)] // a test may panic

use mini_vmm::memory;
use vm_memory::{GuestAddress, GuestMemoryBackend};

const HUGE_PAGE: usize = 2 << 20;

/// The flags of the mapping that contains `address`, by their names in /proc/PID/smaps.
fn flags(address: usize) -> String {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in maps.lines() {
        let range = line.split(' ').next().unwrap().split_once('-');
        let number = |text| usize::from_str_radix(text, 16);
        if let Some((Ok(start), Ok(end))) = range.map(|(start, end)| (number(start), number(end))) {
            inside = (start..end).contains(&address);
        } else if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| inside) {
            return format!("{flags} ");
        }
    }
    panic!("no mapping at {address:#x}");
}

#[test]
fn memory_has_huge_pages_but_where_little_is_used() {
    if !std::fs::exists("/sys/kernel/mm/transparent_hugepage").unwrap() {
        eprintln!("SKIP: memory_has_huge_pages_but_where_little_is_used: this host has none");
        return;
    }
    let memory = memory::allocate(32 << 20).unwrap();
    let first = memory.get_host_address(GuestAddress(0)).unwrap() as usize;
    let (low, rest) = (first + HUGE_PAGE - 1, first + HUGE_PAGE);
    assert!(flags(low).contains(" nh "), "{}", flags(low));
    assert!(!flags(rest).contains(" hg "), "not yet: {}", flags(rest));
    memory::prefer_huge_pages(&memory);
    assert!(flags(low).contains(" nh "), "{}", flags(low));
    assert!(flags(rest).contains(" hg "), "{}", flags(rest));
}
