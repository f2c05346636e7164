// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's CPUID, made from what KVM supports.
//!
//! Without a PIT, an HPET and a PM timer, a kernel learns from CPUID and kvmclock alone how fast time goes. So the
//! table has the TSC-deadline bit (a local APIC timer without calibration), ARAT (a timer that doesn't stop), the
//! hypervisor bit, KVM's leaves (kvmclock gives the TSC's frequency), and a leaf with the frequencies.
//!
//! Citations: "SDM" is the Intel SDM, volume 2A, CPUID; "APM" the AMD APM, volume 3, appendix E;
//! "KVM CPUID" is Documentation/virt/kvm/x86/cpuid.rst of Linux.

use kvm_bindings::CpuId;

use super::features;
use super::table::Table;
use super::topology::{self, Vendor};
use crate::config::CpuFeature;
use crate::layout;

/// The frequency of the local APIC's timer under KVM, in kHz: one count per nanosecond, unless
/// KVM_CAP_X86_APIC_BUS_CYCLES_NS is used (it isn't).
pub const APIC_TIMER_KHZ: u32 = 1_000_000;

/// Leaf 1, ECX: the local APIC supports x2APIC mode, as KVM's always does (SDM).
const X2APIC: u32 = 1 << 21;
/// Leaf 1, ECX: the local APIC's timer supports TSC-deadline mode (SDM).
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: set under every hypervisor (APM).
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 6, EAX: the local APIC's timer runs in all C-states (SDM).
const ARAT: u32 = 1 << 2;
/// KVM's first leaf, whose EBX is "KVMK" (KVM CPUID).
const KVM_BASE: u32 = 0x4000_0000;
const KVM_SIGNATURE: u32 = u32::from_le_bytes(*b"KVMK");
/// The timing leaf, defined by VMware and adopted by others: EAX is the TSC's frequency and EBX that of the local
/// APIC's timer, in kHz.
const TIMING_LEAF: u32 = 0x4000_0010;
/// The most entries that KVM accepts (`KVM_MAX_CPUID_ENTRIES`).
const MAX_ENTRIES: usize = 256;

/// Why the CPUID table can't be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// KVM's table lacks a leaf that every CPU has.
    #[error("KVM reports no CPUID leaf {0:#x}; use a host kernel whose KVM does")]
    NoLeaf(u32),
    /// The number of vCPUs is out of range.
    #[error("a machine has 1 to {max} vCPUs, not {0}", max = layout::MAX_CPUS)]
    Cpus(u8),
    /// No CPU feature has that name.
    #[error(
        "there is no CPU feature {name:?}; {}",
        if near.is_empty() { "names are those in /proc/cpuinfo".to_owned() }
        else { format!("did you mean {}?", near.join(", ")) }
    )]
    UnknownFeature {
        /// The name that was given.
        name: String,
        /// Known names with a similar spelling, the most similar first.
        near: Vec<&'static str>,
    },
    /// A requested feature is not supported by this host's CPU or KVM.
    #[error("CPU feature {0:?} can't be added: this host's CPU or its KVM lacks it; leave it out")]
    Unsupported(&'static str),
    /// Nested virtualization was requested, but this host doesn't offer it.
    #[error(
        "this host's KVM offers guests no nested virtualization; load kvm_intel or kvm_amd with \
         nested=1, or leave out --nested"
    )]
    NoNested,
    /// A requested feature belongs to nested virtualization, which is off.
    #[error("CPU feature {0:?} belongs to nested virtualization, which is off; add --nested on")]
    NestedOff(&'static str),
    /// A requested feature has state that can't be saved.
    #[error(
        "CPU feature {0:?} has state that this VMM can't save, so guests don't get it; leave it out"
    )]
    Unsaved(&'static str),
    /// A requested feature needs another one that was removed.
    #[error("CPU feature {feature:?} needs {needs:?}, which is taken away; keep both or neither")]
    Dependency {
        /// The requested feature.
        feature: &'static str,
        /// What it needs.
        needs: &'static str,
    },
    /// The table has more entries than KVM accepts.
    #[error(
        "the CPUID table has {0} entries and KVM takes {MAX_ENTRIES}; use an older host kernel"
    )]
    TooManyEntries(usize),
}

/// What the guest's CPUs should be.
#[derive(Clone, Copy, Debug)]
pub struct CpuPlan<'a> {
    /// vCPUs, 1 to [`layout::MAX_CPUS`].
    pub cpus: u8,
    /// Features to add or remove, in order. A later entry overrides an earlier one.
    pub features: &'a [CpuFeature],
    /// Whether the guest sees nested virtualization (VMX or SVM).
    pub nested: bool,
    /// Whether the in-kernel local APIC supports TSC-deadline mode (`KVM_CAP_TSC_DEADLINE_TIMER`). KVM's own table
    /// doesn't tell.
    pub tsc_deadline_timer: bool,
    /// The guest's TSC frequency in kHz (`KVM_GET_TSC_KHZ`), if known.
    pub tsc_khz: Option<u32>,
}

/// Builds the CPUID table of vCPU 0 from the one that KVM supports (`KVM_GET_SUPPORTED_CPUID`). [`set_apic_id`] adapts
/// it to another vCPU.
///
/// Entries that are all zero are left out. KVM returns zeros for a leaf that it doesn't find, and it searches the table
/// linearly at each CPUID exit.
///
/// # Errors
/// When the plan can't be met; see [`Error`].
pub fn build(supported: &CpuId, plan: &CpuPlan) -> Result<CpuId, Error> {
    if plan.cpus == 0 || plan.cpus > layout::MAX_CPUS {
        return Err(Error::Cpus(plan.cpus));
    }
    let mut table = Table::new(supported);
    let vendor = Vendor::of(table.get(0, 0).ok_or(Error::NoLeaf(0))?);

    let leaf1 = table.get_mut(1, 0).ok_or(Error::NoLeaf(1))?;
    leaf1.ecx |= X2APIC | HYPERVISOR;
    leaf1.ecx &= !TSC_DEADLINE;
    if plan.tsc_deadline_timer {
        leaf1.ecx |= TSC_DEADLINE;
    }
    if let Some(leaf6) = table.get_mut(6, 0) {
        leaf6.eax |= ARAT;
    }
    topology::apply(&mut table, vendor, plan.cpus);
    if let Some(tsc_khz) = plan.tsc_khz {
        timing(&mut table, vendor, tsc_khz);
    }
    features::apply_nested(&mut table, vendor, plan.nested)?;
    features::apply(&mut table, vendor, plan)?;

    table
        .0
        .retain(|e| e.eax | e.ebx | e.ecx | e.edx != 0 || e.function == 0x8000_001e);
    topology::set_apic_id(&mut table.0, 0);
    let too_many = |_| Error::TooManyEntries(table.0.len());
    if table.0.len() > MAX_ENTRIES {
        return Err(Error::TooManyEntries(table.0.len()));
    }
    CpuId::from_entries(&table.0).map_err(too_many)
}

/// Adapts a table from [`build`] to vCPU `id`, whose APIC id is the same number.
pub fn set_apic_id(cpuid: &mut CpuId, id: u8) {
    topology::set_apic_id(cpuid.as_mut_slice(), id);
}

/// Adds the frequencies of the TSC and the local APIC's timer.
fn timing(table: &mut Table, vendor: Vendor, tsc_khz: u32) {
    if let Some(base) = table
        .get_mut(KVM_BASE, 0)
        .filter(|base| base.ebx == KVM_SIGNATURE)
    {
        // Old KVMs leave the maximum at 0, which means KVM_BASE + 1 (KVM CPUID).
        base.eax = base.eax.max(TIMING_LEAF);
        table.replace(TIMING_LEAF, &[[tsc_khz, APIC_TIMER_KHZ, 0, 0]]);
    }
    if vendor != Vendor::Intel {
        return;
    }
    if table.max_leaf(0) >= 0x15 {
        // The crystal drives the APIC timer (SDM volume 3A, section "APIC Timer"), so it has the timer's frequency: TSC
        // = ECX * EBX / EAX = 10^9 Hz * tsc_khz / 10^6.
        table.replace(0x15, &[[APIC_TIMER_KHZ, tsc_khz, APIC_TIMER_KHZ * 1000, 0]]);
    }
    if table.max_leaf(0) >= 0x16 {
        // Base, maximum and bus frequency in MHz, for information only (SDM).
        let mhz = (tsc_khz / 1000).min(0xffff);
        table.replace(0x16, &[[mhz, mhz, 100, 0]]);
    }
}

#[cfg(test)]
mod tests;
