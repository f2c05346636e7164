// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Hyper-V's hypercall page, as KVM writes it.
//!
//! A guest identifies itself in `HV_X64_MSR_GUEST_OS_ID`, enables the page with `HV_X64_MSR_HYPERCALL`
//! (0x40000001), and calls its first byte. KVM writes 4 bytes there, or 9 in a VM whose Xen hypercalls are
//! intercepted too. It leaves the rest of the page alone. The bytes are the same for 32-bit and 64-bit guests.
//!
//! Source: Hypervisor Top Level Functional Specification, "Establishing the hypercall interface"; KVM's
//! behaviour where it is narrower.

use crate::{HypercallInsn, PAGE_SIZE};

/// Bit 0 of the MSR: the page is enabled.
pub const HV_X64_MSR_HYPERCALL_ENABLE: u64 = 1;

/// Bit 1 of the MSR: the guest locks the value until reset. KVM stores this bit but ignores it.
pub const HV_X64_MSR_HYPERCALL_LOCKED: u64 = 1 << 1;

/// Bits 63:12 of the MSR: the guest-physical address of the page.
pub const HV_X64_MSR_HYPERCALL_PAGE_ADDRESS_MASK: u64 = !0xfff;

/// Length of the code in bytes.
pub const CODE_LEN: usize = 4;

/// Length of the code in bytes if Xen hypercalls are intercepted too.
pub const CODE_LEN_WITH_XEN: usize = 9;

/// `or eax, 0x80000000`. It tells Hyper-V's calls from Xen's: bit 31 is always zero in 32-bit Hyper-V
/// calls, and 64-bit ones pass nothing in RAX.
const OR_EAX_BIT_31: [u8; 5] = [0x0d, 0x00, 0x00, 0x00, 0x80];
const RET: u8 = 0xc3;

/// The code: `vmcall|vmmcall; ret`.
pub const fn code(insn: HypercallInsn) -> [u8; CODE_LEN] {
    let [a, b, c] = insn.bytes();
    [a, b, c, RET]
}

/// The code of a VM whose Xen hypercalls are intercepted: `or eax, 0x80000000; vmcall|vmmcall; ret`.
pub const fn code_with_xen(insn: HypercallInsn) -> [u8; CODE_LEN_WITH_XEN] {
    let [o, p, q, r, s] = OR_EAX_BIT_31;
    let [a, b, c] = insn.bytes();
    [o, p, q, r, s, a, b, c, RET]
}

/// Writes [`code`] to the start of a page and leaves the rest. `insn` is the **host's** ([`Vendor::insn`]).
///
/// [`Vendor::insn`]: crate::Vendor::insn
///
/// # Examples
///
/// ```
/// use hypercall_patch::{PAGE_SIZE, Vendor, hyperv};
///
/// let mut page = [0; PAGE_SIZE];
/// hyperv::write_page(&mut page, Vendor::Amd.insn());
/// assert_eq!(page[..5], [0x0f, 0x01, 0xd9, 0xc3, 0x00]);
/// ```
pub fn write_page(page: &mut [u8; PAGE_SIZE], insn: HypercallInsn) {
    page[..CODE_LEN].copy_from_slice(&code(insn));
}

/// Writes [`code_with_xen`] to the start of a page and leaves the rest.
pub fn write_page_with_xen(page: &mut [u8; PAGE_SIZE], insn: HypercallInsn) {
    page[..CODE_LEN_WITH_XEN].copy_from_slice(&code_with_xen(insn));
}

/// The instruction in a page's code of either form, `None` if `bytes` start with something else.
pub fn identify(bytes: &[u8]) -> Option<HypercallInsn> {
    let code = bytes.strip_prefix(&OR_EAX_BIT_31).unwrap_or(bytes);
    let insn = HypercallInsn::identify(code)?;
    (code.get(3) == Some(&RET)).then_some(insn)
}

/// A value of `HV_X64_MSR_HYPERCALL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HypercallMsr(pub u64);

impl HypercallMsr {
    /// Whether the page is enabled.
    pub const fn enabled(self) -> bool {
        self.0 & HV_X64_MSR_HYPERCALL_ENABLE != 0
    }

    /// Whether the value is locked until reset.
    pub const fn locked(self) -> bool {
        self.0 & HV_X64_MSR_HYPERCALL_LOCKED != 0
    }

    /// Guest-physical address of the page, a multiple of 4096. It may be outside RAM.
    pub const fn gpa(self) -> u64 {
        self.0 & HV_X64_MSR_HYPERCALL_PAGE_ADDRESS_MASK
    }

    /// What KVM does when a guest with this OS ID writes the value.
    ///
    /// # Examples
    ///
    /// ```
    /// use hypercall_patch::hyperv::{HypercallMsr, OnWrite};
    ///
    /// let value = HypercallMsr(0x5001);
    /// assert_eq!(value.on_write(0x8100_0000_0000_0000), OnWrite::WritePage { gpa: 0x5000 });
    /// assert_eq!(value.on_write(0), OnWrite::Ignore);
    /// ```
    pub const fn on_write(self, guest_os_id: u64) -> OnWrite {
        if guest_os_id == 0 {
            OnWrite::Ignore
        } else if self.enabled() {
            OnWrite::WritePage { gpa: self.gpa() }
        } else {
            OnWrite::Store
        }
    }

    /// The value after the guest writes this OS ID. 0 disables the page and keeps its address.
    #[must_use]
    pub const fn after_guest_os_id(self, guest_os_id: u64) -> Self {
        if guest_os_id == 0 {
            Self(self.0 & !HV_X64_MSR_HYPERCALL_ENABLE)
        } else {
            self
        }
    }
}

/// The effect of a write to `HV_X64_MSR_HYPERCALL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnWrite {
    /// Nothing, because the guest has not identified itself. The value is dropped.
    Ignore,
    /// The value is stored. A page that was enabled keeps its bytes.
    Store,
    /// The code is written, then the value is stored. If the page can't be written, the guest gets #GP and
    /// the old value stays.
    WritePage {
        /// Guest-physical address of the page, a multiple of 4096.
        gpa: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINUX: u64 = 0x8100_0000_0000_0000;

    #[test]
    fn the_code_is_kvms_and_the_rest_of_the_page_stays() {
        for (insn, last) in [
            (HypercallInsn::Vmcall, 0xc1),
            (HypercallInsn::Vmmcall, 0xd9),
        ] {
            let mut page = [0x5a; PAGE_SIZE];
            write_page(&mut page, insn);
            assert_eq!(page[..4], [0x0f, 0x01, last, 0xc3]);
            assert!(page[4..].iter().all(|&byte| byte == 0x5a));
            assert_eq!(identify(&page), Some(insn));

            let mut page = [0x5a; PAGE_SIZE];
            write_page_with_xen(&mut page, insn);
            assert_eq!(
                page[..9],
                [0x0d, 0x00, 0x00, 0x00, 0x80, 0x0f, 0x01, last, 0xc3]
            );
            assert!(page[9..].iter().all(|&byte| byte == 0x5a));
            assert_eq!(identify(&page), Some(insn));
        }
    }

    #[test]
    fn other_bytes_are_no_hypercall_page() {
        let others: [&[u8]; 5] = [
            &[],
            &[0x0f, 0x01, 0xc1],
            &[0x0f, 0x01, 0xc1, 0x90],
            &OR_EAX_BIT_31,
            &[0x0d, 0, 0, 0, 0, 0x0f, 0x01, 0xc1, 0xc3],
        ];
        for bytes in others {
            assert_eq!(identify(bytes), None, "{bytes:02x?}");
        }
    }

    #[test]
    fn the_msr_is_enable_lock_and_address() {
        for (value, enabled, locked, gpa) in [
            (0, false, false, 0),
            (0x7001, true, false, 0x7000),
            (0x7002, false, true, 0x7000),
            (0x7ffc, false, false, 0x7000),
            (u64::MAX, true, true, 0xffff_ffff_ffff_f000),
        ] {
            let msr = HypercallMsr(value);
            assert_eq!(
                (msr.enabled(), msr.locked(), msr.gpa()),
                (enabled, locked, gpa),
                "{value:#x}"
            );
        }
    }

    #[test]
    fn a_guest_without_os_id_has_no_page() {
        assert_eq!(HypercallMsr(0x7001).on_write(0), OnWrite::Ignore);
        assert_eq!(HypercallMsr(0x7000).on_write(0), OnWrite::Ignore);
        assert_eq!(
            HypercallMsr(0x7001).on_write(LINUX),
            OnWrite::WritePage { gpa: 0x7000 }
        );
        assert_eq!(HypercallMsr(0x7000).on_write(LINUX), OnWrite::Store);
        assert_eq!(
            HypercallMsr(0x7001).after_guest_os_id(0),
            HypercallMsr(0x7000)
        );
        assert_eq!(
            HypercallMsr(0x7001).after_guest_os_id(LINUX),
            HypercallMsr(0x7001)
        );
    }
}
