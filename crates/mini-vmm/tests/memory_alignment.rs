// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The address of guest memory in the host. A separate process, because other tests that map memory would change it.

#![allow(clippy::unwrap_used)]

use mini_vmm::memory;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

const HUGE_PAGE: usize = 2 << 20;

#[test]
fn memory_starts_on_a_huge_page() {
    for ram in [32 << 20, (33 << 20) + 4096, (5 << 30) + 4096] {
        let memory = memory::allocate(ram).unwrap();
        for region in memory.iter() {
            let host = region.get_host_address(MemoryRegionAddress(0)).unwrap();
            assert!(
                (host as usize).is_multiple_of(HUGE_PAGE),
                "{ram:#x} of memory at {host:p}"
            );
        }
    }
}
