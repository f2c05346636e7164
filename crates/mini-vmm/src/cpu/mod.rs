// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a vCPU says of itself and how it starts: CPUID, boot MSRs and the local APIC's wires.
//!
//! All of it is a pure function of what KVM supports and of the plan; the ioctls are the caller's.

pub mod cpuid;
mod features;
pub mod lapic;
pub mod msrs;
mod table;
mod topology;

#[cfg(test)]
mod recorded;

pub use cpuid::{CpuPlan, Error};
