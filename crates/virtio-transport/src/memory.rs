// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Short accesses to guest memory.
//!
//! `vm_memory::Bytes` expects that any access may consist of several pieces. Almost every descriptor, ring entry and
//! request header is in one piece, and there are about a dozen of them per request. So these functions try one piece
//! first, which takes a third of the instructions.

use vm_memory::bitmap::BS;
use vm_memory::{
    ByteValued, Bytes, GuestAddress, GuestMemory, Permissions, VolatileMemory, VolatileSlice,
};

/// A piece of guest memory.
pub(crate) type Piece<'a, M> = VolatileSlice<'a, BS<'a, <M as GuestMemory>::Bitmap>>;

/// The only piece of `len` bytes at `address`, if they are in one.
pub(crate) fn piece<M: GuestMemory>(
    memory: &M,
    address: GuestAddress,
    len: usize,
    access: Permissions,
) -> Option<Piece<'_, M>> {
    let slice = memory.get_slices(address, len, access).ok()?.next()?.ok()?;
    (slice.len() == len).then_some(slice)
}

/// Reads plain data, in the guest's byte order. `None` if a part of it is not in guest memory.
pub fn read<T: ByteValued, M: GuestMemory>(memory: &M, address: GuestAddress) -> Option<T> {
    match piece(memory, address, size_of::<T>(), Permissions::Read) {
        Some(slice) => Some(slice.get_ref(0).ok()?.load()),
        None => memory.read_obj(address).ok(),
    }
}

/// Fills `data`. Returns whether all of it is in guest memory.
pub fn read_slice<M: GuestMemory>(memory: &M, address: GuestAddress, data: &mut [u8]) -> bool {
    match piece(memory, address, data.len(), Permissions::Read) {
        Some(slice) => slice.copy_to(data) == data.len(),
        None => memory.read_slice(data, address).is_ok(),
    }
}

/// Writes plain data, in the guest's byte order. Returns whether all of it is in guest memory; if not, a part may have
/// been written.
pub fn write<T: ByteValued, M: GuestMemory>(memory: &M, address: GuestAddress, value: T) -> bool {
    match piece(memory, address, size_of::<T>(), Permissions::Write) {
        Some(slice) => slice.get_ref(0).map(|place| place.store(value)).is_ok(),
        None => memory.write_obj(value, address).is_ok(),
    }
}

/// Writes `data`. Returns whether all of it is in guest memory; if not, a part may have been written.
pub fn write_slice<M: GuestMemory>(memory: &M, address: GuestAddress, data: &[u8]) -> bool {
    match piece(memory, address, data.len(), Permissions::Write) {
        Some(slice) => {
            slice.copy_from(data);
            true
        }
        None => memory.write_slice(data, address).is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemoryMmap;

    const SEAM: u64 = 0x1000;
    const END: u64 = 0x2000;

    /// Two regions without a gap.
    fn memory() -> GuestMemoryMmap {
        let regions = [(GuestAddress(0), 0x1000), (GuestAddress(SEAM), 0x1000)];
        GuestMemoryMmap::from_ranges(&regions).unwrap()
    }

    #[test]
    fn data_may_be_in_one_piece_or_in_two() {
        let memory = memory();
        for at in [0, 1, SEAM - 8, SEAM - 3, SEAM, END - 8] {
            let at = GuestAddress(at);
            assert!(write(&memory, at, 0x1122_3344_5566_7788u64));
            assert_eq!(memory.read_obj::<u64>(at).unwrap(), 0x1122_3344_5566_7788);
            assert_eq!(read::<u64, _>(&memory, at), Some(0x1122_3344_5566_7788));
            assert!(write_slice(&memory, at, &[1, 2, 3]));
            assert_eq!(memory.read_obj::<[u8; 3]>(at).unwrap(), [1, 2, 3]);
            let mut bytes = [0; 8];
            assert!(read_slice(&memory, at, &mut bytes));
            assert_eq!(bytes, [1, 2, 3, 0x55, 0x44, 0x33, 0x22, 0x11]);
        }
    }

    #[test]
    fn holes_are_no_memory() {
        let memory = memory();
        for at in [END - 7, END, u64::MAX - 7, u64::MAX] {
            let at = GuestAddress(at);
            assert_eq!(read::<u64, _>(&memory, at), None);
            assert!(!read_slice(&memory, at, &mut [0; 8]));
            assert!(!write(&memory, at, 0u64));
            assert!(!write_slice(&memory, at, &[0; 8]));
        }
        assert!(read_slice(&memory, GuestAddress(END), &mut []));
    }
}
