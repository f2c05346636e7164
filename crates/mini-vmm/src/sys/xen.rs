// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Forwarding of hypercalls, which KVM does for VMMs that emulate Xen and kvm-ioctls can't ask for.
#![allow(unsafe_code)]

use kvm_bindings::{KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, KVMIO, kvm_xen_hvm_config};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

ioctl_iow_nr!(KVM_XEN_HVM_CONFIG, KVMIO, 0x7a, kvm_xen_hvm_config);

/// From now on every VMCALL and VMMCALL of `vm` exits (KVM API section 4.39 "KVM_XEN_HVM_CONFIG",
/// `KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL`). `msr`, not 0, becomes the one by which a guest has KVM write a page of
/// hypercalls, unless a filter hides it.
///
/// # Errors
/// What KVM says.
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
