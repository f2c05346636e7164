// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! CPU topology in CPUID: one package, a core per vCPU, a thread per core, and one last-level
//! cache. APIC ids are the vCPUs' indices.
//!
//! Citations: Intel SDM volume 2A, CPUID (leaves 1, 4, 0xB, 0x1F) and volume 3A, section
//! "Hierarchical Mapping of Shared Resources"; AMD APM volume 3, appendix E (leaves 1, 0xB,
//! 0x8000_0001, 0x8000_0008, 0x8000_001D, 0x8000_001E).

use kvm_bindings::kvm_cpuid_entry2;

use super::table::Table;

/// Whose rules the topology leaves follow, by the vendor string in leaf 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vendor {
    /// Intel, and Zhaoxin and Centaur, which follow it.
    Intel,
    /// AMD and Hygon.
    Amd,
    /// Another vendor. Only what all vendors share is changed.
    Other,
}

impl Vendor {
    pub(super) fn of(leaf0: &kvm_cpuid_entry2) -> Self {
        match &vendor_string(leaf0) {
            b"GenuineIntel" | b"CentaurHauls" | b"  Shanghai  " => Vendor::Intel,
            b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
            _ => Vendor::Other,
        }
    }
}

/// The vendor string in leaf 0.
pub(super) fn vendor_string(leaf0: &kvm_cpuid_entry2) -> [u8; 12] {
    let mut name = [0; 12];
    name[..4].copy_from_slice(&leaf0.ebx.to_le_bytes());
    name[4..8].copy_from_slice(&leaf0.edx.to_le_bytes());
    name[8..].copy_from_slice(&leaf0.ecx.to_le_bytes());
    name
}

/// Leaf 1, EDX: hyper-threading, that is, there is more than one logical processor per package.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX: HTT means cores, not threads.
const CMP_LEGACY: u32 = 1 << 1;
/// Level types of leaves 0xB and 0x1F, ECX bits 15:8.
const LEVEL_SMT: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;
/// The lowest cache level that all vCPUs share.
const SHARED_CACHE_LEVEL: u32 = 3;

/// Replaces bits `low..=high` of `register` with `value`.
fn set_bits(register: &mut u32, high: u32, low: u32, value: u32) {
    let mask = (u32::MAX >> (31 - (high - low))) << low;
    *register = *register & !mask | value << low & mask;
}

/// Describes `cpus` cores as vCPU 0 sees them. [`set_apic_id`] adapts the result to another vCPU.
pub(super) fn apply(table: &mut Table, vendor: Vendor, cpus: u8) {
    let cpus = u32::from(cpus);
    // The number of APIC ids that one package spans, and the bits that hold one.
    let span = cpus.next_power_of_two();
    let bits = span.trailing_zeros();

    if let Some(leaf) = table.get_mut(1, 0) {
        let count = if vendor == Vendor::Amd { cpus } else { span };
        set_bits(&mut leaf.ebx, 23, 16, count);
        leaf.edx = leaf.edx & !HTT | if cpus > 1 { HTT } else { 0 };
    }
    extended_topology(table, vendor, cpus, bits);
    match vendor {
        Vendor::Intel => intel(table, span),
        Vendor::Amd => amd(table, cpus, bits),
        Vendor::Other => {}
    }
}

/// Leaves 0xB and 0x1F: a thread level of one thread, and a core level. KVM itself ends the list: for higher subleaves
/// it returns level type 0 and the x2APIC id.
fn extended_topology(table: &mut Table, vendor: Vendor, cpus: u32, bits: u32) {
    let levels = [[0, 1, LEVEL_SMT, 0], [bits, cpus, LEVEL_CORE | 1, 0]];
    let max_leaf = table.max_leaf(0);
    for leaf in [0xb, 0x1f] {
        // Only Intel has leaf 0x1F.
        if max_leaf >= leaf && (leaf == 0xb || vendor == Vendor::Intel) {
            table.replace(leaf, &levels);
        }
    }
}

/// Leaf 4: which vCPUs share which cache, and how many core ids a package spans.
fn intel(table: &mut Table, span: u32) {
    for cache in table.subleaves(4).filter(|cache| cache.eax & 0x1f != 0) {
        let level = cache.eax >> 5 & 7;
        let sharers = if level >= SHARED_CACHE_LEVEL { span } else { 1 };
        set_bits(&mut cache.eax, 25, 14, sharers - 1);
        set_bits(&mut cache.eax, 31, 26, span - 1);
    }
}

/// Core counts, cache sharing and the extended APIC id, in AMD's leaves.
fn amd(table: &mut Table, cpus: u32, bits: u32) {
    if let Some(leaf) = table.get_mut(0x8000_0001, 0) {
        leaf.ecx = leaf.ecx & !CMP_LEGACY | if cpus > 1 { CMP_LEGACY } else { 0 };
    }
    if let Some(leaf) = table.get_mut(0x8000_0008, 0) {
        set_bits(&mut leaf.ecx, 7, 0, cpus - 1);
        set_bits(&mut leaf.ecx, 15, 12, bits);
    }
    for cache in table
        .subleaves(0x8000_001d)
        .filter(|cache| cache.eax & 0x1f != 0)
    {
        let level = cache.eax >> 5 & 7;
        let sharers = if level >= SHARED_CACHE_LEVEL { cpus } else { 1 };
        set_bits(&mut cache.eax, 25, 14, sharers - 1);
    }
    if table.max_leaf(0x8000_0000) >= 0x8000_001e {
        // One thread per core, one node per package. `set_apic_id` sets the ids.
        table.replace(0x8000_001e, &[[0; 4]]);
    }
}

/// Adapts a table that was built for one vCPU to vCPU `id`, in place.
pub(super) fn set_apic_id(entries: &mut [kvm_cpuid_entry2], id: u8) {
    let id = u32::from(id);
    for entry in entries {
        match entry.function {
            1 => set_bits(&mut entry.ebx, 31, 24, id),
            0xb | 0x1f => entry.edx = id,
            0x8000_001e => {
                entry.eax = id;
                set_bits(&mut entry.ebx, 7, 0, id);
            }
            _ => {}
        }
    }
}
