// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memories that record or restrict accesses.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use vm_memory::bitmap::{AtomicBitmap, BS, Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap,
    GuestMemoryRegion, Permissions,
};

/// A "bitmap" that logs every store in order: offset in the region and length.
#[derive(Clone, Debug, Default)]
pub struct StoreLog {
    log: Arc<Mutex<Vec<(usize, usize)>>>,
    base: usize,
}

impl WithBitmapSlice<'_> for StoreLog {
    type S = Self;
}

impl BitmapSlice for StoreLog {}

impl Bitmap for StoreLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.log.lock().unwrap().push((self.base + offset, len));
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.log
            .lock()
            .unwrap()
            .iter()
            .any(|&(at, len)| (at..at + len).contains(&(self.base + offset)))
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            log: Arc::clone(&self.log),
            base: self.base + offset,
        }
    }
}

impl NewBitmap for StoreLog {
    fn with_len(_: usize) -> Self {
        Self::default()
    }
}

/// The stores since the last call, to a memory of one region.
pub fn stores(memory: &GuestMemoryMmap<StoreLog>) -> Vec<(usize, usize)> {
    let region = memory.iter().next().unwrap();
    std::mem::take(&mut *region.bitmap().log.lock().unwrap())
}

/// Memory with a read-only range and an inaccessible range.
#[derive(Debug)]
pub struct Guarded {
    pub memory: GuestMemoryMmap<AtomicBitmap>,
    pub read_only: Range<u64>,
    pub private: Range<u64>,
}

impl Guarded {
    fn grants(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        let touches =
            |range: &Range<u64>| addr.0 < range.end && range.start < addr.0 + count as u64;
        !(touches(&self.private) || access.has_write() && touches(&self.read_only))
    }
}

impl GuestMemory for Guarded {
    type PhysicalMemory = GuestMemoryMmap<AtomicBitmap>;
    type Bitmap = AtomicBitmap;

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.grants(addr, count, access)
            && GuestMemoryBackend::check_range(&self.memory, addr, count)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, AtomicBitmap>>, GuestMemoryError> {
        if !self.grants(addr, count, access) {
            return Err(GuestMemoryError::InvalidGuestAddress(addr));
        }
        Ok(GuestMemoryBackend::get_slices(&self.memory, addr, count))
    }
}

/// Memory that breaks its contract: for every request it returns this many bytes.
#[derive(Debug)]
pub struct Liar {
    pub memory: GuestMemoryMmap<AtomicBitmap>,
    pub len: usize,
}

impl GuestMemory for Liar {
    type PhysicalMemory = GuestMemoryMmap<AtomicBitmap>;
    type Bitmap = AtomicBitmap;

    fn check_range(&self, _: GuestAddress, _: usize, _: Permissions) -> bool {
        false
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        _: usize,
        _: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, AtomicBitmap>>, GuestMemoryError> {
        Ok(GuestMemoryBackend::get_slices(&self.memory, addr, self.len))
    }
}
