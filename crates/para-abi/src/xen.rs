// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Constants of the Xen hypercall page: the CPUID leaf that names its MSR, the page's layout, call numbers.
//!
//! A Xen guest reads CPUID leaf base + 2, writes a page's guest-physical address to the MSR in EBX, and calls
//! slot `nr` of that page. KVM writes the same code to all 128 slots: `mov eax, nr; vmcall|vmmcall; ret`,
//! then `int3`. The registers are those of [`Convention::Xen`](crate::Convention::Xen). Sources: Xen's public
//! headers (`arch-x86/cpuid.h`, `xen.h`) and the KVM API, `KVM_XEN_HVM_CONFIG` (4.31) and `KVM_EXIT_XEN`.

#![allow(non_upper_case_globals, reason = "the names of Xen's headers")]

/// The first base leaf; further ones follow every [`XEN_CPUID_STRIDE`].
pub const XEN_CPUID_FIRST_LEAF: u32 = 0x4000_0000;
/// The last base leaf a guest looks at.
pub const XEN_CPUID_LAST_BASE: u32 = 0x4000_ff00;
/// The distance between base leaves. Xen moves up when it also offers Hyper-V's leaves.
pub const XEN_CPUID_STRIDE: u32 = 0x100;
/// The signature in EBX, ECX and EDX of the base leaf.
pub const XEN_SIGNATURE: &[u8; 12] = b"XenVMMXenVMM";
/// Base leaf + this: EAX is the version, major in the upper half.
pub const XEN_CPUID_VERSION: u32 = 1;
/// Base leaf + this: EAX is the number of hypercall pages, EBX their MSR.
pub const XEN_CPUID_HYPERCALL: u32 = 2;

/// The MSR that Xen announces if it doesn't offer Hyper-V's MSRs.
pub const XEN_HYPERCALL_MSR: u32 = 0x4000_0000;
/// The MSR that Xen announces alongside Hyper-V's. KVM's tests use it too.
pub const XEN_HYPERCALL_MSR_VIRIDIAN: u32 = 0x4000_0200;
/// The lowest MSR that KVM accepts for hypercall pages since Linux 6.15.
pub const KVM_XEN_MSR_MIN_INDEX: u32 = 0x4000_0000;
/// The highest MSR that KVM accepts for hypercall pages since Linux 6.15.
pub const KVM_XEN_MSR_MAX_INDEX: u32 = 0x4fff_ffff;

/// The size of a hypercall page in bytes.
pub const XEN_HYPERCALL_PAGE_SIZE: usize = 4096;
/// The size of a slot in bytes.
pub const XEN_HYPERCALL_SLOT_SIZE: usize = 32;
/// The number of slots in a page.
pub const XEN_HYPERCALL_SLOTS: usize = 128;

const _: () = assert!(XEN_HYPERCALL_SLOTS * XEN_HYPERCALL_SLOT_SIZE == XEN_HYPERCALL_PAGE_SIZE);

/// KVM_CAP_XEN_HVM: KVM handles the MSR and writes the page.
pub const KVM_XEN_HVM_CONFIG_HYPERCALL_MSR: u32 = 1 << 0;
/// KVM_CAP_XEN_HVM: every VMCALL of the VM becomes a `KVM_EXIT_XEN`. Without an MSR other than 0 in the
/// configuration, KVM ignores it.
pub const KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL: u32 = 1 << 1;

/// Memory reservations and the physmap.
pub const __HYPERVISOR_memory_op: u64 = 12;
/// The one-shot timer. KVM may answer it itself.
pub const __HYPERVISOR_set_timer_op: u64 = 15;
/// Version and features. KVM may answer it itself.
pub const __HYPERVISOR_xen_version: u64 = 17;
/// The emergency console.
pub const __HYPERVISOR_console_io: u64 = 18;
/// Shared memory between domains.
pub const __HYPERVISOR_grant_table_op: u64 = 20;
/// Returns from an exception in a PV guest. On Xen its slot differs from the others.
pub const __HYPERVISOR_iret: u64 = 23;
/// vCPU registration and timers. KVM may answer it itself.
pub const __HYPERVISOR_vcpu_op: u64 = 24;
/// Yield, block, poll, shutdown. KVM may answer it itself.
pub const __HYPERVISOR_sched_op: u64 = 29;
/// Event channels. KVM may answer it itself.
pub const __HYPERVISOR_event_channel_op: u64 = 32;
/// Physical interrupts and devices.
pub const __HYPERVISOR_physdev_op: u64 = 33;
/// Parameters of an HVM guest.
pub const __HYPERVISOR_hvm_op: u64 = 34;

/// The offset of the code for `nr` in a hypercall page, `None` beyond the last slot.
///
/// ```
/// use para_abi::xen;
///
/// assert_eq!(xen::slot_offset(xen::__HYPERVISOR_xen_version), Some(0x220));
/// assert_eq!(xen::slot_offset(128), None);
/// ```
pub const fn slot_offset(nr: u64) -> Option<usize> {
    if nr < XEN_HYPERCALL_SLOTS as u64 {
        Some(nr as usize * XEN_HYPERCALL_SLOT_SIZE)
    } else {
        None
    }
}

/// Whether KVM accepts `msr` for hypercall pages: 0 turns the page off, other numbers must be in range.
pub const fn is_hypercall_msr(msr: u32) -> bool {
    msr == 0 || (msr >= KVM_XEN_MSR_MIN_INDEX && msr <= KVM_XEN_MSR_MAX_INDEX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_slot_ends_with_the_page() {
        assert_eq!(slot_offset(0), Some(0));
        assert_eq!(
            slot_offset(127),
            Some(XEN_HYPERCALL_PAGE_SIZE - XEN_HYPERCALL_SLOT_SIZE)
        );
        assert_eq!(slot_offset(u64::MAX), None);
    }

    #[test]
    fn the_para_msr_is_no_hypercall_page() {
        assert!(is_hypercall_msr(0) && is_hypercall_msr(XEN_HYPERCALL_MSR_VIRIDIAN));
        assert!(!is_hypercall_msr(crate::MSR_KVM_API_MAGIC) && !is_hypercall_msr(1));
        assert!(!is_hypercall_msr(KVM_XEN_MSR_MAX_INDEX + 1));
    }
}
