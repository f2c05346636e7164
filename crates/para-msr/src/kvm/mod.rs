// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! KVM: installing a filter, answering exits, and reading and writing a vCPU's MSRs.
//!
//! | item | what it is |
//! |---|---|
//! | [`MsrFilter::install`](crate::filter::MsrFilter::install) | enables the capability and installs the filter, before the first vCPU |
//! | [`MsrDispatch::answer`](crate::MsrDispatch::answer), [`set_in_kvm`] | answer an exit of `kvm-ioctls` |
//! | [`KvmMsrs`] | `KVM_GET_MSRS` and `KVM_SET_MSRS`, to save and restore |
//! | `setup_para`, `vendor` (feature `para`) | sets a VM up for the 2007 API; the vendor that decides the hypercall instruction |
//! | [`ioctl`] | the ioctls that a seccomp filter must allow |

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

/// A vCPU's MSRs through `KVM_GET_MSRS` and `KVM_SET_MSRS`. Filters don't apply to these.
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
    // This fails only if the list is too long, which is E2BIG in KVM.
    const E2BIG: i32 = 7;
    Msrs::from_entries(&entries).map_err(|_| Errno::new(E2BIG))
}
