// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vCPU's TSC offset, which kvm-ioctls can't ask for.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// Reads the difference between a vCPU's TSC and the host's (KVM API, "Generic vcpu interface",
/// `KVM_VCPU_TSC_OFFSET`; since Linux 5.16).
#[derive(Debug)]
pub struct TscOffset {
    vcpu: OwnedFd,
}

impl TscOffset {
    /// The offset of `vcpu`, which is not in the guest, if this KVM tells it.
    pub fn of(vcpu: &VcpuFd) -> Option<Self> {
        // SAFETY: the descriptor is open as long as `vcpu` is borrowed, which is longer than this.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let vcpu = fd.try_clone_to_owned().ok()?;
        let offset = TscOffset { vcpu };
        offset.read().is_ok().then_some(offset)
    }

    /// The guest's TSC less the host's, modulo 2^64, now. It waits while the vCPU is in the guest, so
    /// call it on the vCPU's own thread.
    ///
    /// # Errors
    /// What KVM says.
    pub fn read(&self) -> io::Result<u64> {
        let mut offset = 0u64;
        let attribute = kvm_device_attr {
            group: KVM_VCPU_TSC_CTRL,
            attr: u64::from(KVM_VCPU_TSC_OFFSET),
            addr: &raw mut offset as u64,
            ..Default::default()
        };
        // SAFETY: KVM reads the attribute and writes the 8 bytes that this one has to `addr`, which is
        // `offset`, alive and not otherwise used until the call returns.
        let result = unsafe { ioctl_with_ref(&self.vcpu, KVM_GET_DEVICE_ATTR(), &attribute) };
        match result {
            0 => Ok(offset),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
