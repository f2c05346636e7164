// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! CPUID, boot MSRs and local APIC pins of a vCPU.
//!
//! These are pure functions of what KVM supports and of the plan. The caller does the ioctls.

pub mod cpuid;
mod features;
pub mod lapic;
pub mod msrs;
mod table;
mod topology;

#[cfg(test)]
mod recorded;

use kvm_bindings::kvm_cpuid_entry2;

pub use cpuid::{CpuPlan, Error};
pub(crate) use features::{feature_names, has_features};
pub use features::{has_all, missing};
pub(crate) use table::Register;

/// The vendor string in a CPUID table, or an empty one.
pub fn vendor(table: &[kvm_cpuid_entry2]) -> String {
    let leaf0 = table.iter().find(|entry| entry.function == 0);
    leaf0.map_or_else(String::new, |leaf0| {
        String::from_utf8_lossy(&topology::vendor_string(leaf0)).into_owned()
    })
}
