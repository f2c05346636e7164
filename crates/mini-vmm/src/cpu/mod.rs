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

pub use cpuid::{CpuPlan, Error};
