// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! KVM: installing a filter, answering exits, and reading and writing a vCPU's MSRs.
//!
//! | item | is |
//! |---|---|
//! | [`MsrFilter::install`](crate::filter::MsrFilter::install) | capability and filter, before the first vCPU |
//! | [`MsrDispatch::answer`](crate::MsrDispatch::answer), [`set_in_kvm`] | an exit of `kvm-ioctls`, from the access to its result |
//! | [`KvmMsrs`] | `KVM_GET_MSRS` and `KVM_SET_MSRS`, to save and restore |
//! | `setup_para`, `vendor` (feature `para`) | what a VM needs for the 2007 API, and whose hypercall instruction it is |
//! | [`ioctl`] | what a seccomp filter must let pass |

mod exit;
mod install;
pub mod ioctl;
#[cfg(feature = "para")]
mod para;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

pub use exit::{Answered, set_in_kvm};
pub use install::ExitReasons;
#[cfg(feature = "para")]
pub use para::{ParaSetupError, setup_para, vendor};

use crate::saved::{MsrAccess, MsrValue};

/// A call that KVM refused.
pub type Errno = kvm_ioctls::Error;

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
