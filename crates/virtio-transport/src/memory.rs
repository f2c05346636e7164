// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Short accesses to guest memory.
//!
//! A device makes about a dozen of them per request: descriptors, ring entries, headers, status. `vm_memory` looks up the
//! region each time and expects several pieces, which takes five times as many instructions as the access itself. A
//! [`View`] looks up a region once per wake-up of a device.

use std::cell::OnceCell;
use std::fmt;
use std::sync::atomic::Ordering;

use vm_memory::bitmap::BS;
use vm_memory::{
    AtomicAccess, ByteValued, Bytes, GuestAddress, GuestMemory, GuestMemoryBackend,
    GuestMemoryRegion, Permissions, VolatileMemory, VolatileSlice,
};

/// The most regions that a view keeps. A PC's memory is in two: below and above 4 GiB.
const REGIONS: usize = 2;

/// A piece of guest memory.
pub type Piece<'a, M> = VolatileSlice<'a, BS<'a, <M as GuestMemory>::Bitmap>>;

/// Guest memory, with the regions that were accessed first at hand.
///
/// It is made for one event of a device, and costs nothing before the first access. Accesses to memory behind an IOMMU,
/// and to further regions, are looked up each time. Written memory is marked as dirty.
pub struct View<'a, M: GuestMemory + ?Sized> {
    memory: &'a M,
    regions: [OnceCell<Region<'a, M>>; REGIONS],
}

/// All of a region.
struct Region<'a, M: GuestMemory + ?Sized> {
    start: u64,
    slice: Piece<'a, M>,
}

impl<'a, M: GuestMemory + ?Sized> Region<'a, M> {
    #[inline(always)]
    fn piece(&self, address: GuestAddress, len: usize) -> Option<Piece<'a, M>> {
        let offset = address.0.wrapping_sub(self.start);
        self.slice.subslice(usize::try_from(offset).ok()?, len).ok()
    }
}

impl<'a, M: GuestMemory + ?Sized> View<'a, M> {
    /// A view of this memory.
    pub const fn new(memory: &'a M) -> Self {
        View {
            memory,
            regions: [const { OnceCell::new() }; REGIONS],
        }
    }

    /// The memory.
    pub const fn memory(&self) -> &'a M {
        self.memory
    }

    /// The `len` bytes at `address`, if they are in one piece.
    #[inline(always)]
    pub fn piece(
        &self,
        address: GuestAddress,
        len: usize,
        access: Permissions,
    ) -> Option<Piece<'a, M>> {
        // Almost always there is one, and it is this one.
        let first = self.regions[0].get();
        if let Some(piece) = first.and_then(|region| region.piece(address, len)) {
            return Some(piece);
        }
        self.look_up(address, len, access)
    }

    #[inline(never)]
    fn look_up(
        &self,
        address: GuestAddress,
        len: usize,
        access: Permissions,
    ) -> Option<Piece<'a, M>> {
        let mut others = self.regions[1..].iter().map_while(OnceCell::get);
        others
            .find_map(|region| region.piece(address, len))
            .or_else(|| self.keep(address)?.piece(address, len))
            .or_else(|| piece(self.memory, address, len, access))
    }

    /// Keeps the region of this address, if it is one and there is a place for it.
    fn keep(&self, address: GuestAddress) -> Option<&Region<'a, M>> {
        let region = self.memory.physical_memory()?.find_region(address)?;
        let (start, len) = (region.start_addr(), usize::try_from(region.len()).ok()?);
        // An access past the end of a region that is kept is no reason to keep it twice.
        let is_free =
            |place: &&OnceCell<Region<'a, M>>| place.get().is_none_or(|kept| kept.start == start.0);
        let place = self.regions.iter().find(is_free)?;
        let slice = piece(self.memory, start, len, Permissions::ReadWrite)?;
        let start = start.0;
        Some(place.get_or_init(|| Region { start, slice }))
    }

    /// Reads plain data, in the guest's byte order. `None` if a part of it is not in guest memory.
    #[inline(always)]
    pub fn read<T: ByteValued>(&self, address: GuestAddress) -> Option<T> {
        match self.piece(address, size_of::<T>(), Permissions::Read) {
            Some(piece) => Some(piece.get_ref(0).ok()?.load()),
            None => self.memory.read_obj(address).ok(),
        }
    }

    /// Fills `data`. Returns whether all of it is in guest memory.
    #[inline]
    pub fn read_slice(&self, address: GuestAddress, data: &mut [u8]) -> bool {
        match self.piece(address, data.len(), Permissions::Read) {
            Some(piece) => piece.copy_to(data) == data.len(),
            None => self.memory.read_slice(data, address).is_ok(),
        }
    }

    /// Writes plain data, in the guest's byte order. Returns whether all of it is in guest memory; if not, a part may
    /// have been written.
    #[inline(always)]
    pub fn write<T: ByteValued>(&self, address: GuestAddress, value: T) -> bool {
        match self.piece(address, size_of::<T>(), Permissions::Write) {
            Some(piece) => piece.get_ref(0).map(|place| place.store(value)).is_ok(),
            None => self.memory.write_obj(value, address).is_ok(),
        }
    }

    /// Writes `data`. Returns whether all of it is in guest memory; if not, a part may have been written.
    #[inline]
    pub fn write_slice(&self, address: GuestAddress, data: &[u8]) -> bool {
        match self.piece(address, data.len(), Permissions::Write) {
            Some(piece) => {
                piece.copy_from(data);
                true
            }
            None => self.memory.write_slice(data, address).is_ok(),
        }
    }

    /// Reads a number that the driver may write at the same time. `None` if it is misaligned, or not in one piece of
    /// guest memory.
    #[inline(always)]
    pub fn load<T: AtomicAccess>(&self, address: GuestAddress, order: Ordering) -> Option<T> {
        let piece = self.piece(address, size_of::<T>(), Permissions::Read)?;
        piece.load(0, order).ok()
    }

    /// Writes a number that the driver may read at the same time. Returns `false` if it is misaligned, or not in one
    /// piece of guest memory.
    #[inline(always)]
    pub fn store<T: AtomicAccess>(&self, address: GuestAddress, value: T, order: Ordering) -> bool {
        let piece = self.piece(address, size_of::<T>(), Permissions::Write);
        piece.is_some_and(|piece| piece.store(value, 0, order).is_ok())
    }
}

impl<M: GuestMemory + ?Sized> fmt::Debug for View<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let regions = self.regions.iter().map_while(OnceCell::get);
        f.debug_list()
            .entries(regions.map(|region| (region.start, region.slice.len())))
            .finish()
    }
}

/// The only piece of `len` bytes at `address`, if they are in one.
fn piece<M: GuestMemory + ?Sized>(
    memory: &M,
    address: GuestAddress,
    len: usize,
    access: Permissions,
) -> Option<Piece<'_, M>> {
    let slice = memory.get_slices(address, len, access).ok()?.next()?.ok()?;
    (slice.len() == len).then_some(slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemoryMmap;
    use vm_memory::bitmap::{AtomicBitmap, Bitmap};

    type Ram = GuestMemoryMmap<AtomicBitmap>;

    const SEAM: u64 = 0x1000;
    const END: u64 = 0x2000;
    const FAR: u64 = 0x10_0000;

    /// Two regions without a gap, and more than a view keeps.
    fn memory() -> Ram {
        let regions = [0, SEAM, FAR, 2 * FAR].map(|start| (GuestAddress(start), 0x1000));
        GuestMemoryMmap::from_ranges(&regions).unwrap()
    }

    #[test]
    fn data_may_be_in_one_piece_or_in_two() {
        let memory = memory();
        let view = View::new(&memory);
        for at in [
            0,
            1,
            SEAM - 8,
            SEAM - 3,
            SEAM,
            END - 8,
            FAR,
            2 * FAR + 0xff8,
            1,
        ] {
            let at = GuestAddress(at);
            assert!(view.write(at, 0x1122_3344_5566_7788u64));
            assert_eq!(memory.read_obj::<u64>(at).unwrap(), 0x1122_3344_5566_7788);
            assert_eq!(view.read::<u64>(at), Some(0x1122_3344_5566_7788));
            assert!(view.write_slice(at, &[1, 2, 3]));
            assert_eq!(memory.read_obj::<[u8; 3]>(at).unwrap(), [1, 2, 3]);
            let mut bytes = [0; 8];
            assert!(view.read_slice(at, &mut bytes));
            assert_eq!(bytes, [1, 2, 3, 0x55, 0x44, 0x33, 0x22, 0x11]);
        }
    }

    #[test]
    fn holes_are_no_memory() {
        let memory = memory();
        let view = View::new(&memory);
        for _ in 0..2 {
            for at in [END - 7, END, FAR - 1, FAR + 0xff9, u64::MAX - 7, u64::MAX] {
                let at = GuestAddress(at);
                assert_eq!(view.read::<u64>(at), None);
                assert!(!view.read_slice(at, &mut [0; 8]));
                assert!(!view.write(at, 0u64));
                assert!(!view.write_slice(at, &[0; 8]));
                assert_eq!(view.load::<u64>(at, Ordering::Relaxed), None);
                assert!(!view.store(at, 0u64, Ordering::Relaxed));
            }
            assert!(view.read_slice(GuestAddress(END), &mut []));
            // Now both of its regions are known.
            assert!(view.write(GuestAddress(0), 0u8) && view.write(GuestAddress(FAR), 0u8));
        }
    }

    #[test]
    fn numbers_are_aligned() {
        let memory = memory();
        let view = View::new(&memory);
        for at in [0, SEAM, FAR, 2 * FAR] {
            assert!(view.store(GuestAddress(at + 2), 0x1234u16, Ordering::Release));
            let loaded = view.load(GuestAddress(at + 2), Ordering::Acquire);
            assert_eq!(loaded, Some(0x1234u16));
            assert_eq!(
                view.load::<u16>(GuestAddress(at + 1), Ordering::Acquire),
                None
            );
            assert!(!view.store(GuestAddress(at + 1), 0u16, Ordering::Release));
        }
    }

    #[test]
    fn each_region_is_kept_once() {
        let memory = memory();
        let view = View::new(&memory);
        let at = |at: u64| view.read::<u64>(GuestAddress(at)).is_some();
        assert!(at(0) && at(SEAM - 3) && !at(u64::MAX));
        assert_eq!(format!("{view:?}"), "[(0, 4096)]");
        assert!(at(FAR) && at(SEAM) && at(SEAM - 3));
        assert_eq!(format!("{view:?}"), "[(0, 4096), (1048576, 4096)]");
    }

    #[test]
    fn what_is_written_is_dirty() {
        let writes: [fn(&View<'_, Ram>, GuestAddress) -> bool; 3] = [
            |view, at| view.write(at, 1u32),
            |view, at| view.write_slice(at, &[1]),
            |view, at| view.store(at, 1u16, Ordering::Relaxed),
        ];
        for write in writes {
            let memory = memory();
            let view = View::new(&memory);
            for at in [0, SEAM, FAR, 2 * FAR].map(GuestAddress) {
                let region = memory.find_region(at).unwrap();
                assert!(view.read::<u64>(at).is_some());
                assert!(!region.bitmap().dirty_at(0), "{at:?} was only read");
                assert!(write(&view, at));
                assert!(region.bitmap().dirty_at(0), "{at:?}");
            }
        }
    }
}
