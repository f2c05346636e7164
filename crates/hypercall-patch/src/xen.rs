// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Xen's hypercall page, as KVM writes it for `KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL`.
//!
//! A guest writes the page's address to an MSR that the hypervisor's CPUID leaves name (base + 2, EBX). It
//! calls hypercall *n* at offset 32 *n* of the page. With interception, KVM fills the page with the
//! processor's own hypercall instruction, and calls exit with `KVM_EXIT_XEN`.
//!
//! The page is the same for 32-bit and 64-bit guests: `mov eax, imm32` clears the upper half of RAX, and the
//! other instructions have the same encoding. The mode matters only without interception. Then the VMM supplies
//! one blob of pages per mode, and the low 12 bits of the MSR value choose the page ([`PageRequest::index`]).
//!
//! Xen itself writes `ud2` to the slot of `iret` (23). KVM doesn't, and neither does this module.
//!
//! Source: KVM API, `KVM_XEN_HVM_CONFIG`; Xen's `public/arch-x86/cpuid.h` and `public/arch-x86/xen.h`.

use core::fmt;

use crate::{HypercallInsn, PAGE_SIZE};

/// Size of a slot in bytes.
pub const SLOT_LEN: usize = 32;

/// Number of slots in a page, one per hypercall.
pub const SLOTS: usize = PAGE_SIZE / SLOT_LEN;

const MOV_EAX_IMM32: u8 = 0xb8;
const RET: u8 = 0xc3;
const INT3: u8 = 0xcc;

/// Low bits of the MSR value that are the index.
const INDEX_MASK: u64 = PAGE_SIZE as u64 - 1;

/// The bytes of one slot: `mov eax, number; vmcall|vmmcall; ret`, then `int3` to the end.
pub const fn slot(number: u32, insn: HypercallInsn) -> [u8; SLOT_LEN] {
    let mut slot = [INT3; SLOT_LEN];
    let [n0, n1, n2, n3] = number.to_le_bytes();
    let [i0, i1, i2] = insn.bytes();
    let code = [MOV_EAX_IMM32, n0, n1, n2, n3, i0, i1, i2, RET];
    let mut at = 0;
    while at < code.len() {
        slot[at] = code[at];
        at += 1;
    }
    slot
}

/// Fills a page with Xen's hypercalls 0 to 127. `insn` is the **host's** ([`Vendor::insn`]).
///
/// [`Vendor::insn`]: crate::Vendor::insn
///
/// # Examples
///
/// ```
/// use hypercall_patch::{PAGE_SIZE, Vendor, xen};
///
/// let mut page = [0; PAGE_SIZE];
/// xen::write_page(&mut page, Vendor::Intel.insn());
/// // HYPERVISOR_xen_version is call 17: mov eax, 17; vmcall; ret
/// let at = 17 * xen::SLOT_LEN;
/// assert_eq!(page[at..at + 9], [0xb8, 17, 0, 0, 0, 0x0f, 0x01, 0xc1, 0xc3]);
/// ```
pub fn write_page(page: &mut [u8; PAGE_SIZE], insn: HypercallInsn) {
    for (number, bytes) in (0..).zip(page.chunks_exact_mut(SLOT_LEN)) {
        bytes.copy_from_slice(&slot(number, insn));
    }
}

/// The instruction of a page that [`write_page`] filled, `None` for any other content. A VMM uses it to
/// rewrite a restored guest's page for another vendor.
pub fn identify(page: &[u8; PAGE_SIZE]) -> Option<HypercallInsn> {
    let insn = HypercallInsn::identify(&page[5..])?;
    let mut slots = (0..).zip(page.chunks_exact(SLOT_LEN));
    slots
        .all(|(number, bytes)| bytes == slot(number, insn))
        .then_some(insn)
}

/// What a guest asks for with a write to the hypercall page MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Guest-physical address of the page, a multiple of 4096. It may be outside RAM.
    pub gpa: u64,
    /// The page of the VMM's blob, 0 to 4095.
    pub index: u16,
}

impl PageRequest {
    /// Decodes an MSR value: bits 63:12 are the address, bits 11:0 the index.
    pub const fn from_msr(value: u64) -> Self {
        Self {
            gpa: value & !INDEX_MASK,
            index: (value & INDEX_MASK) as u16,
        }
    }

    /// The address of the intercepted page. There is only one such page, so the index must be 0.
    ///
    /// # Errors
    ///
    /// [`NoSuchPage`] for any other index. KVM then raises #GP for the guest's write, and so should a VMM.
    ///
    /// # Examples
    ///
    /// ```
    /// use hypercall_patch::xen::PageRequest;
    ///
    /// assert_eq!(PageRequest::from_msr(0x1_0000_5000).intercepted(), Ok(0x1_0000_5000));
    /// assert!(PageRequest::from_msr(0x5001).intercepted().is_err());
    /// ```
    pub const fn intercepted(self) -> Result<u64, NoSuchPage> {
        match self.index {
            0 => Ok(self.gpa),
            index => Err(NoSuchPage { index }),
        }
    }
}

/// A guest asked for a hypercall page that doesn't exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchPage {
    /// The page's index.
    pub index: u16,
}

impl fmt::Display for NoSuchPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Xen hypercall page {} was asked for, but there is only page 0; answer the guest's WRMSR with #GP",
            self.index
        )
    }
}

impl core::error::Error for NoSuchPage {}

#[cfg(test)]
mod tests {
    use super::*;

    const INSNS: [(HypercallInsn, u8); 2] = [
        (HypercallInsn::Vmcall, 0xc1),
        (HypercallInsn::Vmmcall, 0xd9),
    ];

    #[test]
    fn the_page_is_kvms_byte_for_byte() {
        for (insn, last) in INSNS {
            let mut page = [0x5a; PAGE_SIZE];
            write_page(&mut page, insn);
            for (at, byte) in page.into_iter().enumerate() {
                let expected = match at % 32 {
                    0 => 0xb8,
                    1 => u8::try_from(at / 32).unwrap_or(0xff),
                    2..=4 => 0,
                    5 => 0x0f,
                    6 => 0x01,
                    7 => last,
                    8 => 0xc3,
                    _ => 0xcc,
                };
                assert_eq!(byte, expected, "offset {at:#x}");
            }
        }
        assert_eq!((SLOTS, SLOT_LEN), (128, 32));
    }

    #[test]
    fn a_page_is_identified_until_one_byte_of_it_changes() {
        for (insn, _) in INSNS {
            let mut page = [0; PAGE_SIZE];
            assert_eq!(identify(&page), None);
            write_page(&mut page, insn);
            assert_eq!(identify(&page), Some(insn));
            for at in [0, 1, 4, 7, 8, 9, 31, 32 * 127 + 1, 4095] {
                page[at] ^= 0x18; // swaps VMCALL and VMMCALL
                assert_eq!(identify(&page), None, "offset {at:#x}");
                page[at] ^= 0x18;
            }
        }
    }

    #[test]
    fn the_msrs_low_bits_are_the_pages_index() {
        for (value, gpa, index) in [
            (0, 0, 0),
            (0x1234_5000, 0x1234_5000, 0),
            (0x1234_5001, 0x1234_5000, 1),
            (0xffff_ffff_ffff_f000, 0xffff_ffff_ffff_f000, 0),
            (u64::MAX, 0xffff_ffff_ffff_f000, 0xfff),
        ] {
            let request = PageRequest::from_msr(value);
            assert_eq!(request, PageRequest { gpa, index });
            let expected = if index == 0 {
                Ok(gpa)
            } else {
                Err(NoSuchPage { index })
            };
            assert_eq!(request.intercepted(), expected);
        }
    }
}
