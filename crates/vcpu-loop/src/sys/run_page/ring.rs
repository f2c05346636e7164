// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ring of coalesced writes, in a page after the run page.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{kvm_coalesced_mmio, kvm_coalesced_mmio_ring};

use super::{Mapping, PAGE, RING};

/// An entry of KVM's ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingEntry {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) is_port: bool,
    pub(crate) data: [u8; 8],
}

/// KVM's ring of coalesced writes (`struct kvm_coalesced_mmio_ring`): KVM writes entries and then `last`, and never
/// touches an entry between `first` and `last`.
#[derive(Debug)]
pub(crate) struct Ring {
    pub(super) mapping: Arc<Mapping>,
}

impl Ring {
    /// How many entries fit in the page after the two indices.
    pub(crate) const SLOTS: u32 =
        ((PAGE - size_of::<kvm_coalesced_mmio_ring>()) / size_of::<kvm_coalesced_mmio>()) as u32;

    fn base(&self) -> *mut u8 {
        // SAFETY: the page is in the mapping (checked in `RunPage::ring`).
        unsafe { self.mapping.base.as_ptr().add(RING) }
    }

    /// `first`, the index of the oldest entry, and `last`, the index of the next entry that KVM writes.
    fn indices(&self) -> [&AtomicU32; 2] {
        let base = self.base().cast::<u32>();
        // SAFETY: both are at the start of a page of the mapping, which lives as long as `self`. This process only
        // accesses them through this function.
        unsafe { [AtomicU32::from_ptr(base), AtomicU32::from_ptr(base.add(1))] }
    }

    /// The slot of the oldest entry, below [`Ring::SLOTS`]. `None` if the ring is empty or an index is invalid.
    #[inline]
    pub(crate) fn oldest(&self) -> Option<u32> {
        let [first, last] = self.indices().map(|index| index.load(Ordering::Acquire));
        (first != last && first < Self::SLOTS && last < Self::SLOTS).then_some(first)
    }

    /// The entry in a slot. The caller must hold the ring's lock.
    ///
    /// # Panics
    /// There is no such slot.
    pub(crate) fn entry(&self, slot: u32) -> RingEntry {
        assert!(slot < Self::SLOTS);
        let at =
            size_of::<kvm_coalesced_mmio_ring>() + slot as usize * size_of::<kvm_coalesced_mmio>();
        // SAFETY: `slot` is below `SLOTS`, so the entry is in the page, 8-byte aligned. It consists of integers, and
        // KVM doesn't write it while it is between `first` and `last`.
        let entry = unsafe { self.base().add(at).cast::<kvm_coalesced_mmio>().read() };
        RingEntry {
            address: entry.phys_addr,
            len: entry.len,
            // SAFETY: both arms of the union are the same integer.
            is_port: unsafe { entry.__bindgen_anon_1.pio } != 0,
            data: entry.data,
        }
    }

    /// Returns the oldest entry's slot to KVM. The caller must hold the ring's lock.
    pub(crate) fn advance(&self) {
        let [first, _] = self.indices();
        let next = (first.load(Ordering::Relaxed) + 1) % Self::SLOTS;
        first.store(next, Ordering::Release);
    }
}
