// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The MSRs that a vCPU starts with, as firmware would leave them.

use kvm_bindings::{Msrs, kvm_msr_entry};

/// System call entry through SYSENTER (Intel SDM volume 4, table 2-2).
const IA32_SYSENTER_CS: u32 = 0x174;
const IA32_SYSENTER_ESP: u32 = 0x175;
const IA32_SYSENTER_EIP: u32 = 0x176;
/// Processor features that are enabled (Intel SDM volume 4, table 2-2).
const IA32_MISC_ENABLE: u32 = 0x1a0;
/// Page attributes (Intel SDM volume 3A, section "Programming the PAT").
const IA32_PAT: u32 = 0x277;
/// Default memory type (Intel SDM volume 3A, section "IA32_MTRR_DEF_TYPE MSR").
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// System call entry through SYSCALL (AMD APM volume 2, section 6.1.1).
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SYSCALL_FLAG_MASK: u32 = 0xc000_0084;
/// The value that SWAPGS swaps in (AMD APM volume 2, section 6.1.3).
const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// IA32_MISC_ENABLE: fast REP string instructions. Linux disables `rep_good` and `erms` on an Intel CPU if this bit is
/// clear.
const FAST_STRING: u64 = 1 << 0;
/// IA32_MISC_ENABLE: no branch trace store, no PEBS. KVM's own reset value has these two bits.
const BTS_UNAVAILABLE: u64 = 1 << 11;
const PEBS_UNAVAILABLE: u64 = 1 << 12;
/// IA32_PAT at reset: WB, WT, UC-, UC, twice.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// IA32_MTRR_DEF_TYPE: MTRRs are enabled and all memory is write-back. Without MTRRs, Linux 6.1 doesn't use the PAT
/// either.
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

/// The boot MSRs: indices and values.
const BOOT_MSRS: [(u32, u64); 11] = [
    (IA32_SYSENTER_CS, 0),
    (IA32_SYSENTER_ESP, 0),
    (IA32_SYSENTER_EIP, 0),
    (
        IA32_MISC_ENABLE,
        FAST_STRING | BTS_UNAVAILABLE | PEBS_UNAVAILABLE,
    ),
    (IA32_PAT, PAT_RESET),
    (IA32_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK),
    (STAR, 0),
    (LSTAR, 0),
    (CSTAR, 0),
    (SYSCALL_FLAG_MASK, 0),
    (KERNEL_GS_BASE, 0),
];

/// The number of MSRs in [`boot_msrs`]. `KVM_SET_MSRS` returns how many it set.
#[cfg(test)]
pub(crate) const BOOT_MSR_COUNT: usize = BOOT_MSRS.len();

/// The MSRs that every vCPU starts with, for one `KVM_SET_MSRS` call.
///
/// Every KVM supports all of these. The TSC isn't among them. KVM starts the TSCs of a new machine's vCPUs at 0 and in
/// sync, and a write could only break that.
pub fn boot_msrs() -> Msrs {
    let entries = BOOT_MSRS.map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    // Fails only beyond KVM_MAX_MSR_ENTRIES (256).
    Msrs::from_entries(&entries).expect("eleven entries are fewer than 256")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_write_back_and_strings_are_fast() {
        let msrs = boot_msrs();
        assert_eq!(msrs.as_slice().len(), BOOT_MSR_COUNT);
        let value = |index| {
            let entry = msrs.as_slice().iter().find(|e| e.index == index);
            entry.map(|e| e.data)
        };
        assert_eq!(value(0x2ff), Some(0x806));
        assert_eq!(value(0x1a0), Some(0x1801));
        assert_eq!(value(0x277), Some(0x0007_0406_0007_0406));
        assert_eq!(value(0x10), None, "the TSC is KVM's to start");
    }

    #[test]
    fn no_msr_is_set_twice() {
        let mut indices = BOOT_MSRS.map(|(index, _)| index);
        indices.sort_unstable();
        assert!(indices.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
