// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! KVM calls that have no safe wrapper.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, Xsave, kvm_device_attr, kvm_sregs2,
};
use kvm_ioctls::{Kvm, VcpuFd};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};

ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// `KVM_GET_SREGS2`.
pub(crate) fn get_sregs2(fd: &VcpuFd) -> io::Result<kvm_sregs2> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: KVM writes exactly one `kvm_sregs2`.
    match unsafe { ioctl_with_mut_ref(fd, KVM_GET_SREGS2(), &mut sregs) } {
        0 => Ok(sregs),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `KVM_SET_SREGS2`.
pub(crate) fn set_sregs2(fd: &VcpuFd, sregs: &kvm_sregs2) -> io::Result<()> {
    // SAFETY: KVM reads exactly one `kvm_sregs2`.
    match unsafe { ioctl_with_ref(fd, KVM_SET_SREGS2(), sregs) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn os_error(error: vmm_sys_util::errno::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

/// Another descriptor of the same file.
pub(crate) fn duplicate(fd: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open as long as `fd` is borrowed, which is longer than this.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }.try_clone_to_owned()
}

/// Another descriptor of `/dev/kvm`. It needs no path, so it works in a jail without `/dev/kvm`.
pub(crate) fn duplicate_kvm(kvm: &Kvm) -> io::Result<Kvm> {
    let fd = duplicate(kvm)?.into_raw_fd();
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { Kvm::from_raw_fd(fd) })
}

/// The attribute `KVM_VCPU_TSC_OFFSET` with its value at `offset`.
fn tsc_offset_at(offset: *const u64) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: offset as u64,
        ..Default::default()
    }
}

/// `KVM_GET_DEVICE_ATTR` of `KVM_VCPU_TSC_OFFSET`.
pub(crate) fn tsc_offset(vcpu: &impl AsRawFd) -> io::Result<u64> {
    let mut offset = 0u64;
    let attribute = tsc_offset_at(&raw mut offset);
    // SAFETY: KVM reads the attribute and writes the 8 bytes that this one has to `addr`, which is
    // `offset`, alive and not otherwise used until the call returns.
    match unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attribute) } {
        0 => Ok(offset),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `KVM_SET_DEVICE_ATTR` of `KVM_VCPU_TSC_OFFSET`.
pub(crate) fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> io::Result<()> {
    // SAFETY: KVM reads the attribute and the 8 bytes at `addr`, which is `offset`, alive until the call returns.
    match unsafe {
        ioctl_with_ref(
            vcpu,
            KVM_SET_DEVICE_ATTR(),
            &tsc_offset_at(&raw const offset),
        )
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `KVM_GET_XSAVE2`, or `KVM_GET_XSAVE` if the area has the classic 4096 bytes.
///
/// `xsave` must have the size that `KVM_CAP_XSAVE2` returned after this vCPU was created, see `KvmHost::xsave_size`.
pub(crate) fn get_xsave(fd: &VcpuFd, xsave: &mut Xsave) -> io::Result<()> {
    if xsave.as_slice().is_empty() {
        let classic = fd.get_xsave().map_err(os_error)?;
        // SAFETY: only the fixed part is replaced; the length of the flexible part stays 0.
        unsafe { xsave.as_mut_fam_struct() }.xsave = classic;
        return Ok(());
    }
    // SAFETY: KVM writes as many bytes as `KVM_CAP_XSAVE2` returns. That is fixed once a vCPU exists, and the caller
    // gave `xsave` this size.
    unsafe { fd.get_xsave2(xsave) }.map_err(os_error)
}

/// `KVM_SET_XSAVE`; `xsave` is sized as for [`get_xsave`].
pub(crate) fn set_xsave(fd: &VcpuFd, xsave: &Xsave) -> io::Result<()> {
    // SAFETY: KVM reads at most as many bytes as `KVM_CAP_XSAVE2` returns. That is fixed once a vCPU exists, and the
    // caller gave `xsave` this size.
    unsafe { fd.set_xsave2(xsave) }.map_err(os_error)
}

/// The fixed part of an XSAVE area, as words.
pub(crate) fn xsave_region(xsave: &mut Xsave) -> &mut [u32; 1024] {
    // SAFETY: the flexible part's length isn't changed.
    &mut unsafe { xsave.as_mut_fam_struct() }.xsave.region
}
