// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that starts on a huge page of the host.
//!
//! KVM maps 2 MiB at once only where guest-physical and host address agree in their lower 21 bits
//! (else it takes 512 faults for the same), and the kernel places a mapping at any page.

use libc::{MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// x86's huge page in bytes.
const HUGE_PAGE: usize = 2 << 20;

/// Maps anonymous memory at the given ranges, each of which starts on a huge page of host and guest.
pub(super) fn from_ranges(
    ranges: &[(GuestAddress, usize)],
) -> Result<GuestMemoryMmap, vm_memory::mmap::FromRangesError> {
    let mut regions = Vec::with_capacity(ranges.len());
    for (start, size) in ranges {
        let region = GuestRegionMmap::new(map(*size)?, *start);
        regions.push(region.ok_or(vm_memory::GuestRegionCollectionError::NoMemoryRegion)?);
    }
    Ok(GuestMemoryMmap::from_regions(regions)?)
}

/// Maps `size` bytes, on a huge page unless other mappings are made or ended meanwhile.
///
/// Linux places mappings from the top of a gap down. A filler above, which ends with this function,
/// takes what is between the place that the mapping got and one on a huge page.
fn map(size: usize) -> Result<MmapRegion, MmapRegionError> {
    let anywhere = MmapRegion::new(size)?;
    let excess = anywhere.as_ptr() as usize % HUGE_PAGE;
    if excess == 0 {
        return Ok(anywhere);
    }
    drop(anywhere);
    // As large as the mapping itself, so that both go to the same gap.
    let filler = size.next_multiple_of(HUGE_PAGE) + excess;
    let flags = MAP_ANONYMOUS | MAP_PRIVATE | MAP_NORESERVE;
    // A limit on address space is no reason to fail: the guest then has small pages.
    let _filler = MmapRegion::<()>::build(None, filler, PROT_NONE, flags);
    MmapRegion::new(size)
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

    use super::*;

    #[test]
    fn memory_starts_on_a_huge_page() {
        let ranges = [
            (GuestAddress(0), 33 * HUGE_PAGE),
            (GuestAddress(4 << 30), 5 * HUGE_PAGE + 4096),
        ];
        // Other tests map memory meanwhile; not all of ten times.
        let aligned = (0..10).any(|_| {
            let memory = from_ranges(&ranges).unwrap();
            assert_eq!(memory.num_regions(), 2);
            memory.iter().all(|region| {
                let host = region.get_host_address(vm_memory::MemoryRegionAddress(0));
                (host.unwrap() as usize).is_multiple_of(HUGE_PAGE)
            })
        });
        assert!(aligned);
    }
}
