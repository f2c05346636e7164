// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ioctls that this crate calls, for seccomp filters.
//!
//! The thread that calls this crate makes them: for [`INSTALL`] and [`SETUP`] the one that creates the VM, for
//! [`SAVED`] the one that saves or restores a vCPU. Answering an exit needs none, unless a handler passes a value to
//! KVM ([`set_in_kvm`](super::set_in_kvm), `KVM_SET_MSRS`).
//!
//! ```
//! use para_msr::kvm::ioctl;
//!
//! assert_eq!(ioctl::KVM_X86_SET_MSR_FILTER, 0x4188_aec6);
//! for request in ioctl::INSTALL {
//!     println!("ioctl(_, {request:#x}, _)");
//! }
//! ```
//!
//! The numbers are from `include/uapi/linux/kvm.h`, for x86-64. A request has 32 bits, so compare the low 32 bits of
//! `ioctl`'s argument.

use kvm_bindings::{KVMIO, kvm_cpuid2, kvm_enable_cap, kvm_msr_filter, kvm_msrs};

/// `KVM_CHECK_EXTENSION`: after a failure, to find out what KVM lacks.
pub const KVM_CHECK_EXTENSION: u64 = request(NONE, 0x03, 0);
/// `KVM_GET_SUPPORTED_CPUID`: the processor's vendor.
pub const KVM_GET_SUPPORTED_CPUID: u64 = request(READ | WRITE, 0x05, size_of::<kvm_cpuid2>());
/// `KVM_ENABLE_CAP`: MSR exits.
pub const KVM_ENABLE_CAP: u64 = request(WRITE, 0xa3, size_of::<kvm_enable_cap>());
/// `KVM_X86_SET_MSR_FILTER`: the filter.
pub const KVM_X86_SET_MSR_FILTER: u64 = request(WRITE, 0xc6, size_of::<kvm_msr_filter>());
/// `KVM_GET_MSRS`.
pub const KVM_GET_MSRS: u64 = request(READ | WRITE, 0x88, size_of::<kvm_msrs>());
/// `KVM_SET_MSRS`.
pub const KVM_SET_MSRS: u64 = request(WRITE, 0x89, size_of::<kvm_msrs>());

/// Used by [`MsrFilter::install`](crate::filter::MsrFilter::install) and
/// [`replace`](crate::filter::MsrFilter::replace), on the VM.
pub const INSTALL: [u64; 3] = [KVM_CHECK_EXTENSION, KVM_ENABLE_CAP, KVM_X86_SET_MSR_FILTER];

/// Used by `setup_para` (feature `para`): the last on `/dev/kvm`, the others on the VM.
pub const SETUP: [u64; 4] = [
    KVM_CHECK_EXTENSION,
    KVM_ENABLE_CAP,
    KVM_X86_SET_MSR_FILTER,
    KVM_GET_SUPPORTED_CPUID,
];

/// Used by [`KvmMsrs`](super::KvmMsrs), on a vCPU.
pub const SAVED: [u64; 2] = [KVM_GET_MSRS, KVM_SET_MSRS];

const NONE: u64 = 0;
const WRITE: u64 = 1;
const READ: u64 = 2;

/// `_IOC` of `include/uapi/asm-generic/ioctl.h`.
const fn request(direction: u64, number: u64, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | (KVMIO as u64) << 8 | number
}
