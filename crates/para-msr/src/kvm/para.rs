// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sets a KVM VM up for the 2007 API.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Kvm, VmFd};

use super::Errno;
use crate::filter::FilterError;
use crate::para::{self, CpuidError, Stub, Vendor};

/// Why a VM's guest can't have the 2007 API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParaSetupError {
    /// The MSR can't be made to exit.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// KVM didn't return its CPUID table.
    #[error("KVM refused to list its CPUID ({0}): let seccomp pass KVM_GET_SUPPORTED_CPUID")]
    Cpuid(Errno),
    /// The processor's hypercall instruction isn't known.
    #[error(transparent)]
    Vendor(#[from] CpuidError),
}

/// Makes the API's MSR exit and returns the stub for this host: its vendor's instruction, which KVM answers. Call it
/// before creating the first vCPU. Each vCPU then needs a [`ParaMsr`](para::ParaMsr) with this stub.
///
/// This is for a VMM that handles no other MSR and serves no calls through port I/O. Other VMMs add
/// [`MSR_KVM_API_MAGIC`](para::MSR_KVM_API_MAGIC) to their own filter and choose the stub themselves. The ioctls are
/// in [`ioctl::SETUP`](super::ioctl::SETUP).
///
/// # Errors
/// KVM has no MSR filters or refuses this one, or the processor's vendor is unknown.
///
/// ```no_run
/// use kvm_ioctls::Kvm;
/// use para_msr::para::ParaMsr;
/// # use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// # let memory = std::sync::Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// let kvm = Kvm::new()?;
/// let vm = kvm.create_vm()?;
/// let stub = para_msr::kvm::setup_para(&kvm, &vm)?;
/// let vcpu = vm.create_vcpu(0)?;
/// let msrs = ParaMsr::new(memory.clone(), stub).into_dispatch();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn setup_para(kvm: &Kvm, vm: &VmFd) -> Result<Stub, ParaSetupError> {
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
    let vendor = vendor(&cpuid.map_err(ParaSetupError::Cpuid)?)?;
    para::filter().install(vm)?;
    Ok(Stub::native(vendor))
}

/// The vendor in a CPUID table. For the host's processor, use the table that KVM supports
/// (`Kvm::get_supported_cpuid`). Call it once per VM. It reads no file, so it works in a sandbox.
///
/// # Errors
/// The table has no leaf 0 or names an unknown vendor.
///
/// ```no_run
/// use kvm_ioctls::Kvm;
/// use para_msr::para::Stub;
///
/// let cpuid = Kvm::new()?.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?;
/// let stub = Stub::native(para_msr::kvm::vendor(&cpuid)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn vendor(cpuid: &CpuId) -> Result<Vendor, CpuidError> {
    let entries = cpuid.as_slice().iter();
    Vendor::from_cpuid(entries.map(|e| (e.function, e.ebx, e.ecx, e.edx)))
}
