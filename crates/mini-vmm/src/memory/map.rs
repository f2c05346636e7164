// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory map for the guest.

use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::layout::{
    ACPI_TABLES, HIGH_RAM, HOLE_END, KIB, KVM_IDENTITY_MAP, KVM_TSS, LOW_RAM_END, PAGE_SIZE,
};

/// The kind of a range in the guest's memory map. The numbers are those of E820 and of PVH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    /// RAM.
    Ram = 1,
    /// Not for the operating system.
    Reserved = 2,
    /// RAM that holds ACPI tables, and the MPtable.
    Acpi = 3,
}

/// One range of the guest's memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// The guest-physical address where it starts.
    pub start: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Its kind.
    pub kind: MapKind,
}

/// The guest's memory map, the same for each boot protocol. Sorted, without overlaps.
///
/// Device windows in the hole are not listed: a driver can't claim a reserved range. `reserved` lists ranges in the hole and
/// above RAM that no driver claims, as (start, bytes) in ascending order.
pub fn memory_map<M: GuestMemoryBackend>(mem: &M, reserved: &[(u64, u64)]) -> Vec<MapEntry> {
    let entry = |start, end: u64, kind| MapEntry {
        start,
        size: end.saturating_sub(start),
        kind,
    };
    let mut map = vec![
        entry(0, LOW_RAM_END, MapKind::Ram),
        entry(LOW_RAM_END, 640 * KIB, MapKind::Reserved),
        entry(ACPI_TABLES, HIGH_RAM, MapKind::Acpi),
    ];
    let reserved_entry = |&(start, size): &(u64, u64)| MapEntry {
        start,
        size,
        kind: MapKind::Reserved,
    };
    let in_hole = reserved.partition_point(|(start, _)| *start < HOLE_END);
    let (in_hole, above) = reserved.split_at(in_hole);
    for region in mem.iter() {
        let start = region.start_addr().raw_value().max(HIGH_RAM);
        map.push(entry(
            start,
            region.last_addr().raw_value() + 1,
            MapKind::Ram,
        ));
        if region.start_addr().raw_value() == 0 {
            map.extend(in_hole.iter().map(reserved_entry));
            map.push(entry(
                KVM_IDENTITY_MAP,
                KVM_TSS + 3 * PAGE_SIZE,
                MapKind::Reserved,
            ));
        }
    }
    map.extend(above.iter().map(reserved_entry));
    map.retain(|entry| entry.size > 0);
    map
}

/// The end of the RAM that starts at address 0.
pub fn low_ram_end<M: GuestMemoryBackend>(mem: &M) -> u64 {
    mem.find_region(GuestAddress(0))
        .map_or(0, |region| region.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layout::{GIB, HOLE_START, MIB, MIN_RAM, PCI_ECAM, shared_memory};
    use crate::memory::allocate;

    proptest! {
        #[test]
        fn map_is_sorted_apart_and_holds_all_ram(pages in (MIN_RAM / PAGE_SIZE)..(9 * GIB / PAGE_SIZE)) {
            let ram = pages * PAGE_SIZE;
            let shared = (shared_memory(ram), PAGE_SIZE);
            let map = memory_map(&allocate(ram).unwrap(), &[(PCI_ECAM, MIB), shared]);
            for pair in map.windows(2) {
                prop_assert!(pair[0].start + pair[0].size <= pair[1].start);
            }
            let usable: u64 = map.iter().filter(|e| e.kind == MapKind::Ram).map(|e| e.size).sum();
            let ecam = MapEntry { start: PCI_ECAM, size: MIB, kind: MapKind::Reserved };
            prop_assert!(map.contains(&ecam));
            let shared = MapEntry { start: shared.0, size: shared.1, kind: MapKind::Reserved };
            prop_assert_eq!(map.last(), Some(&shared));
            // All but the range between conventional memory's end and 1 MiB.
            prop_assert_eq!(usable, ram - (HIGH_RAM - LOW_RAM_END));
            prop_assert!(map.iter().all(|e| e.kind != MapKind::Ram || e.start >= HOLE_END || e.start + e.size <= HOLE_START));
        }
    }
}
