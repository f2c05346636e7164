// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ABI between paravirtual guests and hosts: types and numbers, no policy.
//!
#![no_std]
#![cfg_attr(not(feature = "guest"), forbid(unsafe_code))]

#[cfg(test)]
extern crate std;

mod convention;
mod errno;
mod state;
pub mod vmm;

pub use convention::{Call, Convention, Layout, Register, Registers, Width};
pub use errno::{KvmErrno, ParaErrno};
pub use state::{
    KVM_PARA_API_VERSION, MSR_KVM_API_MAGIC, OFFSET_GUEST_VERSION, OFFSET_HOST_VERSION,
    OFFSET_HYPERCALL_GPA, OFFSET_RET, OFFSET_SIZE, PARA_PRESET, PARA_STATE_PAYLOAD,
    PARA_STATE_SIZE, ParaStatePayload, is_para_state_aligned, kvm_vcpu_para_state,
};
