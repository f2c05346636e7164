// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The id of a vCPU, and the error type of the caller's code.

/// Any error from the caller's code.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// A vCPU's number within its VM (KVM's `vcpu_id`, on x86 the initial APIC id).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuId(pub u32);

impl std::fmt::Display for VcpuId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl From<u32> for VcpuId {
    fn from(id: u32) -> Self {
        VcpuId(id)
    }
}
