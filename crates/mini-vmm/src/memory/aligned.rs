// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that starts on a huge page of the host.
//!
//! KVM maps 2 MiB at once only where guest-physical and host address agree in their lower 21 bits
//! (else it takes 512 faults for the same), and the kernel places a mapping at any page.

use libc::{MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion,
};

use crate::sys::huge_pages::{HUGE_PAGE, Pages, advise};

/// Maps anonymous memory at the given ranges, each of which starts on a huge page of host and guest.
pub(super) fn from_ranges(
    ranges: &[(GuestAddress, usize)],
) -> Result<GuestMemoryMmap, vm_memory::mmap::FromRangesError> {
    let mut regions = Vec::with_capacity(ranges.len());
    for (start, size) in ranges {
        let memory = map(*size)?;
        advise(&memory, 0..small(*start), Pages::Small);
        let region = GuestRegionMmap::new(memory, *start);
        regions.push(region.ok_or(vm_memory::GuestRegionCollectionError::NoMemoryRegion)?);
    }
    Ok(GuestMemoryMmap::from_regions(regions)?)
}

/// Has the host serve `memory` with huge pages from now on, where it asks who wants them (`madvise` in
/// `/sys/kernel/mm/transparent_hugepage/enabled`). What was touched already keeps its small pages until khugepaged,
/// the host's thread that looks for pages to merge, comes by; the first 2 MiB keep them for good.
pub fn prefer_huge_pages(memory: &GuestMemoryMmap) {
    for region in memory.iter() {
        let from = small(region.start_addr());
        advise(region, from..region.size(), Pages::Huge);
    }
}

/// How much of a region is to have small pages on any host. Of the first 2 MiB a guest uses little, tables that are
/// written before it starts: they are not worth that the host clears a huge page for them.
fn small(start: GuestAddress) -> usize {
    match start {
        GuestAddress(0) => HUGE_PAGE,
        _ => 0,
    }
}

/// How many places are tried: more than a process has gaps in which guest memory fits.
const TRIES: usize = 8;

/// Maps `size` bytes, on a huge page unless other mappings are made or ended meanwhile.
///
/// Linux places mappings from the top of a gap down. What came to lie elsewhere is kept until this function ends, and
/// a filler below it, so that the next try starts on a huge page in the same gap; where that is too small for it, the
/// next try has the next gap.
fn map(size: usize) -> Result<MmapRegion, MmapRegionError> {
    let flags = MAP_ANONYMOUS | MAP_PRIVATE | MAP_NORESERVE;
    let mut kept = Vec::with_capacity(2 * TRIES);
    for _ in 0..TRIES {
        let region = MmapRegion::new(size)?;
        let start = region.as_ptr() as usize;
        if start.is_multiple_of(HUGE_PAGE) {
            return Ok(region);
        }
        kept.push(region);
        // As large as the memory, so that no small gap takes it.
        let filler = size.next_multiple_of(HUGE_PAGE) + start.wrapping_sub(size) % HUGE_PAGE;
        // A limit on address space is no reason to fail: the guest then has small pages.
        let Ok(filler) = MmapRegion::build(None, filler, PROT_NONE, flags) else {
            break;
        };
        kept.push(filler);
    }
    drop(kept);
    MmapRegion::new(size)
}
