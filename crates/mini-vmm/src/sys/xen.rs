// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Forwarding of hypercalls. It is part of KVM's support for VMMs that emulate Xen, and kvm-ioctls has no call for it.
#![allow(unsafe_code)]

use kvm_bindings::{KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, KVMIO, kvm_xen_hvm_config};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

ioctl_iow_nr!(KVM_XEN_HVM_CONFIG, KVMIO, 0x7a, kvm_xen_hvm_config);

/// Makes every VMCALL and VMMCALL of `vm` exit (KVM API section 4.39 "KVM_XEN_HVM_CONFIG",
/// `KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL`). `msr` must not be 0. A guest's write to it makes KVM write a hypercall page,
/// unless a filter hides it.
///
/// # Errors
/// KVM's error.
pub fn forward_hypercalls(vm: &VmFd, msr: u32) -> Result<(), kvm_ioctls::Error> {
    let config = kvm_xen_hvm_config {
        flags: KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL,
        msr,
        ..Default::default()
    };
    // SAFETY: KVM reads exactly one `kvm_xen_hvm_config`, and no other memory: its blobs have size 0.
    match unsafe { ioctl_with_ref(vm, KVM_XEN_HVM_CONFIG(), &config) } {
        0 => Ok(()),
        _ => Err(kvm_ioctls::Error::last()),
    }
}
