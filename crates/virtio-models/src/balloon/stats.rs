// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the guest says about its memory (virtio 1.4, 5.5.6.3).

use virtio_transport::chain::ChainReader;
use vm_memory::GuestMemory;

/// The names of the numbers, in the order of their tags. Those from 10 on are Linux's, and not in virtio 1.4.
pub const STATS: [&str; 16] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kill",
    "alloc_stall",
    "async_scan",
    "direct_scan",
    "async_reclaim",
    "direct_reclaim",
];

/// The bytes of an entry: its tag, and its value.
const ENTRY: usize = 10;
/// The most entries that are read from a buffer. A driver has one for each tag.
const MOST: usize = 64;

/// The last numbers that the guest told. They are its own claims.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    values: [Option<u64>; STATS.len()],
}

impl Stats {
    /// The names and values that the guest told.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let named = STATS.into_iter().zip(self.values);
        named.filter_map(|(name, value)| Some((name, value?)))
    }

    /// Takes the numbers of a buffer, in any order. Unknown tags are ignored. Numbers that it leaves out stay. Returns
    /// whether the whole buffer is made of entries that can be read.
    pub(super) fn read<M: GuestMemory>(&mut self, reader: &mut ChainReader<'_, '_, M>) -> bool {
        for _ in 0..MOST {
            if reader.left() == 0 {
                return true;
            }
            let mut entry = [0; ENTRY];
            if reader.read(&mut entry).is_err() {
                return false;
            }
            let [low, high, value @ ..] = entry;
            let tag = u16::from_le_bytes([low, high]);
            if let Some(slot) = self.values.get_mut(usize::from(tag)) {
                *slot = Some(u64::from_le_bytes(value));
            }
        }
        reader.left() == 0
    }
}
