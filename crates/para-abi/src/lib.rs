// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ABI between paravirtual guests and hosts: types and numbers, no policy, no dependencies.
//!
//! In 2007 KVM got a hypercall API that a guest turns on by writing an MSR: "KVM: add MSR based hypercall
//! API". It was removed within a year. It lets a guest find its host and call it with code that the *host*
//! chooses, which is useful to a VMM in user space. This crate has that ABI for both sides, and the constants
//! of related paravirtual interfaces.
//!
//! 1. A vCPU fills a page, [`kvm_vcpu_para_state`], with its API version and the address of a stub, and
//!    presets the two fields that the host answers in.
//! 2. It writes the page's guest-physical address to the MSR [`MSR_KVM_API_MAGIC`]. #GP means that there is
//!    no host of this ABI, or that the address is misaligned or isn't memory.
//! 3. The host writes `host_version`. Then it either refuses with `ret` =
//!    -[`KVM_EINVAL`](ParaErrno::KVM_EINVAL), or replaces the first four bytes of the stub and writes `ret` = 0.
//! 4. From then on the guest calls the stub, with registers as a [`Convention`] says.
//!
//! | module or type | what it is |
//! |---|---|
//! | [`kvm_vcpu_para_state`], [`ParaStatePayload`] | the page, and a copy of its 24 meaningful bytes |
//! | [`ParaErrno`], [`KvmErrno`] | the errors of registrations and of calls: same names, different values |
//! | [`Convention`], [`Layout`], [`Registers`], [`Call`] | the register conventions, as data and as functions |
//! | [`Registration`] | the result of a registration, as the guest sees it |
//! | [`STUB_UNPATCHED`] | the guest's stub before the host patches it |
//! | [`kvm`], [`xen`], [`hyperv`] | MSRs, CPUID leaves, features and call numbers of other interfaces |
//! | [`vmm`] | numbers for calls to a VMM in user space |
//! | `guest` (feature `guest`, x86-64) | what a Rust kernel needs to register and to call |
//!
//! `include/para_abi.h` is the guest's side for C. All `unsafe` is in `src/guest.rs`; without the feature
//! `guest` it is forbidden.
//!
//! # Example: the host's side of a call
//!
//! ```
//! use para_abi::{Convention, KvmErrno, Registers, Width, vmm};
//!
//! fn hypercall(convention: Convention, width: Width, registers: &mut Registers) {
//!     let call = convention.call(width, registers);
//!     let result = match call.nr {
//!         vmm::VMM_HC_NOP => 0,
//!         _ => KvmErrno::KVM_ENOSYS.as_ret(),
//!     };
//!     convention.set_result(width, registers, result);
//! }
//!
//! let mut registers = Registers { rax: vmm::VMM_HC_NOP, ..Registers::default() };
//! hypercall(Convention::Kvm, Width::Long, &mut registers);
//! assert_eq!(registers.rax, 0);
//! registers.rax = 77;
//! hypercall(Convention::Kvm, Width::Long, &mut registers);
//! assert_eq!(registers.rax as i64, -1000);
//! ```
#![no_std]
#![cfg_attr(not(feature = "guest"), forbid(unsafe_code))]
#![cfg_attr(not(test), deny(clippy::too_many_lines))]

#[cfg(test)]
extern crate std;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod convention;
mod cpuid;
mod errno;
#[cfg(all(feature = "guest", target_arch = "x86_64"))]
pub mod guest;
pub mod hyperv;
pub mod kvm;
mod registration;
mod state;
mod stub;
pub mod vmm;
pub mod xen;

pub use convention::{Call, Convention, Layout, Register, Registers, Width};
pub use cpuid::{signature_bytes, signature_registers};
pub use errno::{KvmErrno, ParaErrno};
pub use registration::{GpFault, Registration};
pub use state::{
    KVM_PARA_API_VERSION, MSR_KVM_API_MAGIC, OFFSET_GUEST_VERSION, OFFSET_HOST_VERSION,
    OFFSET_HYPERCALL_GPA, OFFSET_RET, OFFSET_SIZE, PARA_PRESET, PARA_STATE_PAYLOAD,
    PARA_STATE_SIZE, ParaStatePayload, is_para_state_aligned, kvm_vcpu_para_state,
};
pub use stub::{STUB_LEN, STUB_PATCH_LEN, STUB_UNPATCHED, STUB_UNPATCHED_RESULT};
