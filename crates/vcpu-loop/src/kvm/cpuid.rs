// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The CPUID part of a vCPU's state.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::VcpuFd;

use super::{Error, Result, call};

/// CPUID.1: EDX.APIC follows the APIC base, ECX.OSXSAVE follows CR4, ECX.MONITOR follows IA32_MISC_ENABLE (Intel
/// SDM, volume 2, CPUID).
const APIC: u32 = 1 << 9;
const OSXSAVE: u32 = 1 << 27;
const MONITOR: u32 = 1 << 3;

/// CPUID.7.0: ECX.OSPKE follows CR4.
const OSPKE: u32 = 1 << 4;

/// The range of hypervisor leaves. Xen's may start at any multiple of 0x100.
const HYPERVISORS: std::ops::Range<u32> = 0x4000_0000..0x4001_0000;
const XEN: [u32; 3] = [
    u32::from_le_bytes(*b"XenV"),
    u32::from_le_bytes(*b"MMXe"),
    u32::from_le_bytes(*b"nVMM"),
];

/// The vCPU's CPUID.
pub(super) fn save(fd: &VcpuFd) -> Result<Vec<kvm_cpuid_entry2>> {
    let all = call("KVM_GET_CPUID2", fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES))?;
    Ok(trimmed(all.as_slice()).to_vec())
}

/// Cuts off the zeros after the last entry: KVM before 6.2 doesn't return how many entries it filled.
fn trimmed(entries: &[kvm_cpuid_entry2]) -> &[kvm_cpuid_entry2] {
    let used = entries
        .iter()
        .rposition(|entry| *entry != Default::default());
    &entries[..used.map_or(0, |last| last + 1)]
}

/// The saved entries in KVM's structure.
pub(super) fn fit(entries: &[kvm_cpuid_entry2]) -> Result<CpuId> {
    CpuId::from_entries(trimmed(entries)).map_err(|_| Error::Misfit {
        what: "CPUID entries",
    })
}

/// Sets CPUID, unless the vCPU already has it, except for bits that KVM itself updates. Since Linux 5.16, KVM accepts
/// no other CPUID after the first run. If KVM refuses it, nothing has changed.
pub(super) fn restore(fd: &VcpuFd, cpuid: &CpuId) -> Result<()> {
    let saved = cpuid.as_slice();
    if constant(&save(fd)?) == constant(saved) {
        return Ok(());
    }
    match fd.set_cpuid2(cpuid) {
        Err(error) if error.errno() == libc::EINVAL => Err(Error::Misfit {
            what: "CPUID entries",
        }),
        result => call("KVM_SET_CPUID2", result),
    }
}

/// The entries without the bits that KVM updates while the guest runs (`kvm_update_cpuid_runtime`, and
/// `kvm_xen_update_tsc_info` for Xen guests). KVM derives these again from the restored registers.
fn constant(entries: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
    let xen = xen_base(entries);
    let mut entries = entries.to_vec();
    for entry in &mut entries {
        match (entry.function, entry.index) {
            (1, _) => {
                entry.ecx &= !(OSXSAVE | MONITOR);
                entry.edx &= !APIC;
            }
            (7, 0) => entry.ecx &= !OSPKE,
            // The size of the XSAVE area for the components that XCR0 and IA32_XSS enable.
            (0xd, 0 | 1) => entry.ebx = 0,
            // The scale of the guest's clock, and below, the frequency of the host's TSC.
            (function, 1) if xen.is_some_and(|base| function == base + 3) => {
                (entry.ecx, entry.edx) = (0, 0);
            }
            (function, 2) if xen.is_some_and(|base| function == base + 3) => entry.eax = 0,
            _ => {}
        }
    }
    entries
}

fn xen_base(entries: &[kvm_cpuid_entry2]) -> Option<u32> {
    let is_base = |entry: &&kvm_cpuid_entry2| {
        HYPERVISORS.contains(&entry.function)
            && entry.function.is_multiple_of(0x100)
            && [entry.ebx, entry.ecx, entry.edx] == XEN
    };
    entries.iter().find(is_base).map(|entry| entry.function)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, values: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = values;
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    #[test]
    fn zeros_are_cut_off_after_the_last_entry_only() {
        let zero = kvm_cpuid_entry2::default();
        let leaf = entry(0x8000_0000, 0, [1, 0, 0, 0]);
        assert_eq!(trimmed(&[zero, leaf, zero, zero]), [zero, leaf]);
        assert_eq!(trimmed(&[leaf]), [leaf]);
        assert_eq!(trimmed(&[zero; 256]), []);
    }

    #[test]
    fn only_what_kvm_updates_is_left_out() {
        const ALL: [u32; 4] = [u32::MAX; 4];
        let [xen_b, xen_c, xen_d] = XEN;
        let signature = entry(0x4000_0100, 0, [0x4000_0104, xen_b, xen_c, xen_d]);
        let changing = [
            ((1, 0), [0, 0, 1 << 27 | 1 << 3, 1 << 9]),
            ((7, 0), [0, 0, 1 << 4, 0]),
            ((7, 1), [0; 4]),
            ((0xd, 0), [0, u32::MAX, 0, 0]),
            ((0xd, 1), [0, u32::MAX, 0, 0]),
            ((0xd, 2), [0; 4]),
            ((0x4000_0003, 1), [0; 4]),
            ((0x4000_0103, 0), [0; 4]),
            ((0x4000_0103, 1), [0, 0, u32::MAX, u32::MAX]),
            ((0x4000_0103, 2), [u32::MAX, 0, 0, 0]),
            ((0xb, 0), [0; 4]),
        ];
        for ((function, index), bits) in changing {
            let kept = constant(&[signature, entry(function, index, ALL)])[1];
            let left_out = [kept.eax, kept.ebx, kept.ecx, kept.edx].map(|kept| !kept);
            assert_eq!(left_out, bits, "{function:#x}.{index}");
        }
    }
}
