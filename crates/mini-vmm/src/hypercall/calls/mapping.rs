// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `KVM_HC_MAP_GPA_RANGE` in a machine whose memory is never encrypted.

use para_abi::KvmErrno;
use para_abi::kvm::KVM_MAP_GPA_RANGE_ENCRYPTED as ENCRYPTED;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::Answer;
use crate::layout::PAGE_SIZE;

/// Attributes that must be 0: all but the preferred page size (bits 0 to 3) and encryption (bit 4).
const RESERVED: u64 = !0x1f;

/// The handler. KVM forwards this call to user space only if user space enabled that. Elsewhere, such as on route
/// `vendor`, the number is unknown, and CPUID does not offer it.
///
/// A guest's request either holds already or is impossible: RAM is shared with the VMM and stays so. A guest with
/// secrets would believe a false claim of encryption, so such a request is refused.
pub(super) struct MappingCalls<M> {
    pub(super) memory: M,
}

impl<M: GuestMemoryBackend> MappingCalls<M> {
    /// Checks whether a range already has the requested attributes, and keeps them.
    pub(super) fn map(&self, args: &[u64; 6]) -> Answer {
        let [gpa, pages, attributes, ..] = *args;
        // KVM checks this before user space sees the call.
        let frame = gpa / PAGE_SIZE;
        if gpa % PAGE_SIZE != 0 || pages == 0 || frame.checked_add(pages).is_none() {
            return Err(KvmErrno::KVM_EINVAL);
        }
        let size = pages.checked_mul(PAGE_SIZE).ok_or(KvmErrno::KVM_EINVAL)?;
        let is_ram = self.memory.check_range(GuestAddress(gpa), size as usize);
        if attributes & RESERVED != 0 || !is_ram {
            return Err(KvmErrno::KVM_EINVAL);
        }
        match attributes & ENCRYPTED {
            0 => Ok(0),
            _ => Err(KvmErrno::KVM_EOPNOTSUPP),
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;

    /// RAM of 16 pages at 0 and 4 at 0x2_0000.
    fn map(gpa: u64, pages: u64, attributes: u64) -> Answer {
        let ranges = [
            (GuestAddress(0), 0x1_0000),
            (GuestAddress(0x2_0000), 0x4000),
        ];
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        MappingCalls { memory }.map(&[gpa, pages, attributes, 7, 7, 7])
    }

    #[test]
    fn plain_ram_stays_plain() {
        for (gpa, pages) in [(0, 1), (0, 16), (0xf000, 1), (0x2_0000, 4)] {
            for page_size in [0, 1, 2, 15] {
                assert_eq!(map(gpa, pages, page_size), Ok(0), "{gpa:#x}");
            }
        }
    }

    #[test]
    fn nothing_is_encrypted() {
        assert_eq!(map(0, 1, ENCRYPTED), Err(KvmErrno::KVM_EOPNOTSUPP));
        assert_eq!(map(0, 1, ENCRYPTED | 1), Err(KvmErrno::KVM_EOPNOTSUPP));
    }

    #[test]
    fn ranges_that_kvm_refuses_are_refused() {
        let max = u64::MAX;
        for (gpa, pages) in [
            (1, 1),
            (0xfff, 1),
            (0, 0),
            (max & !0xfff, 1 << 52),
            (0, max),
            (0x1000, max),
            (max, 1),
            // KVM would forward these. Here they are not RAM.
            (0, 17),
            (0x1_0000, 1),
            (0xf000, 2),
            (0x2_0000, 5),
            (max & !0xfff, 1),
            (0, 1 << 52),
        ] {
            let answer = map(gpa, pages, 0);
            assert_eq!(answer, Err(KvmErrno::KVM_EINVAL), "{gpa:#x}, {pages:#x}");
        }
        for attributes in [1 << 5, 1 << 63, max] {
            assert_eq!(map(0, 1, attributes), Err(KvmErrno::KVM_EINVAL));
        }
    }
}
