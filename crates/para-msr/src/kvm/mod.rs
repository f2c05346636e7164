// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! KVM: installing a filter, answering exits, and reading and writing a vCPU's MSRs.
//!
//! | item | is |
//! |---|---|
//! | [`MsrFilter::install`](crate::filter::MsrFilter::install) | capability and filter, before the first vCPU |
//! | [`MsrDispatch::answer`](crate::MsrDispatch::answer), [`set_in_kvm`] | an exit of `kvm-ioctls`, from the access to its result |
//! | [`KvmMsrs`] | `KVM_GET_MSRS` and `KVM_SET_MSRS`, to save and restore |
//! | `vendor` (feature `para`) | whose hypercall instruction KVM's processor has |
//! | [`ioctl`] | what a seccomp filter must let pass |

mod exit;
mod install;
pub mod ioctl;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

pub use exit::{Answered, set_in_kvm};
pub use install::ExitReasons;

use crate::saved::{MsrAccess, MsrValue};

/// A call that KVM refused.
pub type Errno = kvm_ioctls::Error;

/// The vendor that a CPUID table shows: of the host's processor, for the table that KVM supports
/// (`Kvm::get_supported_cpuid`). Ask once per VM. It reads no file, so it works in a sandbox.
///
/// # Errors
/// The table has no leaf 0, or names a vendor that isn't known.
///
/// ```no_run
/// use kvm_ioctls::Kvm;
/// use para_msr::para::Stub;
///
/// let cpuid = Kvm::new()?.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?;
/// let stub = Stub::native(para_msr::kvm::vendor(&cpuid)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[cfg(feature = "para")]
pub fn vendor(cpuid: &kvm_bindings::CpuId) -> Result<crate::para::Vendor, crate::para::CpuidError> {
    let entries = cpuid.as_slice().iter();
    crate::para::Vendor::from_cpuid(entries.map(|e| (e.function, e.ebx, e.ecx, e.edx)))
}

/// A vCPU's MSRs through `KVM_GET_MSRS` and `KVM_SET_MSRS`. A filter doesn't hold for these.
#[derive(Debug)]
pub struct KvmMsrs<'a>(pub &'a VcpuFd);

impl MsrAccess for KvmMsrs<'_> {
    type Error = Errno;

    fn get(&mut self, values: &mut [MsrValue]) -> Result<usize, Errno> {
        let mut block = block(values)?;
        let done = self.0.get_msrs(&mut block)?.min(values.len());
        for (value, entry) in values.iter_mut().zip(block.as_slice()).take(done) {
            value.value = entry.data;
        }
        Ok(done)
    }

    fn set(&mut self, values: &[MsrValue]) -> Result<usize, Errno> {
        self.0.set_msrs(&block(values)?)
    }
}

fn block(values: &[MsrValue]) -> Result<Msrs, Errno> {
    let entries: Vec<kvm_msr_entry> = values
        .iter()
        .map(|msr| kvm_msr_entry {
            index: msr.index,
            data: msr.value,
            ..Default::default()
        })
        .collect();
    // Only a list that is too long can fail here, for which KVM has an error number.
    const E2BIG: i32 = 7;
    Msrs::from_entries(&entries).map_err(|_| Errno::new(E2BIG))
}
