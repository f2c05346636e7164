// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! KVM: installing a filter, and reading and writing a vCPU's MSRs.

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN, Msrs, kvm_enable_cap, kvm_msr_entry,
};
use kvm_ioctls::{Cap, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};

use crate::filter::{Access, FilterDefault, MsrFilter};
use crate::saved::{MsrAccess, MsrValue};

/// A call that KVM refused.
pub type Errno = kvm_ioctls::Error;

/// Why a filter isn't in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// This KVM lacks a capability.
    #[error("this KVM lacks {0}, which came with Linux 5.10: update the host's kernel")]
    Lacks(&'static str),
    /// MSR exits weren't switched on.
    #[error("KVM refused MSR exits for the reasons {reasons:#x}, ask for fewer")]
    Enable {
        /// The mask.
        reasons: u32,
        /// Why.
        source: Errno,
    },
    /// The filter wasn't taken.
    #[error(
        "KVM refused an MSR filter of {ranges} ranges, check that the host has memory for its bitmaps"
    )]
    Filter {
        /// How many ranges it has.
        ranges: usize,
        /// Why.
        source: Errno,
    },
}

/// For which accesses a vCPU exits to user space, instead of #GP
/// (`KVM_CAP_X86_USER_SPACE_MSR`, `Documentation/virt/kvm/api.rst`, 7.21).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitReasons {
    /// MSRs that KVM doesn't know. With `kvm.ignore_msrs=1` on the host these never come, so own an MSR by
    /// denying it in the filter instead.
    pub unknown: bool,
    /// Accesses that KVM finds invalid: reserved bits, a disabled feature.
    pub invalid: bool,
}

impl ExitReasons {
    /// KVM's mask. Denied accesses are always in it: without, they would be #GP.
    pub const fn mask(self) -> u32 {
        let unknown = if self.unknown {
            KVM_MSR_EXIT_REASON_UNKNOWN
        } else {
            0
        };
        let invalid = if self.invalid {
            KVM_MSR_EXIT_REASON_INVAL
        } else {
            0
        };
        KVM_MSR_EXIT_REASON_FILTER | unknown | invalid
    }
}

impl MsrFilter {
    /// Makes denied accesses exit to user space, then installs the filter, in place of any other one.
    ///
    /// The order is: capability, filter, vCPUs. A filter without the capability turns denied accesses to #GP,
    /// and a vCPU that runs before both isn't filtered.
    ///
    /// An exit is prepared as success, with 0 for a read: whoever handles it sets `error` to 1 for every
    /// [`Outcome`](crate::Outcome) that isn't [`Handled`](crate::Outcome::Handled).
    ///
    /// # Errors
    /// KVM lacks one of both, or refuses it.
    pub fn install(&self, vm: &VmFd) -> Result<(), InstallError> {
        self.install_with(vm, ExitReasons::default())
    }

    /// The same, with exits for more than what the filter denies. The reasons replace those of an earlier call.
    ///
    /// # Errors
    /// KVM lacks one of both, or refuses it.
    pub fn install_with(&self, vm: &VmFd, reasons: ExitReasons) -> Result<(), InstallError> {
        if !vm.check_extension(Cap::X86UserSpaceMsr) {
            return Err(InstallError::Lacks("KVM_CAP_X86_USER_SPACE_MSR"));
        }
        if !vm.check_extension(Cap::X86MsrFilter) {
            return Err(InstallError::Lacks("KVM_CAP_X86_MSR_FILTER"));
        }
        let reasons = reasons.mask();
        let capability = kvm_enable_cap {
            cap: KVM_CAP_X86_USER_SPACE_MSR,
            args: [u64::from(reasons), 0, 0, 0],
            ..Default::default()
        };
        vm.enable_cap(&capability)
            .map_err(|source| InstallError::Enable { reasons, source })?;
        self.replace(vm)
    }

    /// Installs the filter alone, where an earlier one has switched the exits on. Also while vCPUs run:
    /// each access sees the old filter or the new one.
    ///
    /// # Errors
    /// KVM refuses the filter.
    pub fn replace(&self, vm: &VmFd) -> Result<(), InstallError> {
        let default = match self.default_action() {
            FilterDefault::Allow => MsrFilterDefaultAction::ALLOW,
            FilterDefault::Deny => MsrFilterDefaultAction::DENY,
        };
        let ranges: Vec<MsrFilterRange<'_>> = self
            .ranges()
            .iter()
            .map(|range| MsrFilterRange {
                flags: flags(range.access()),
                base: range.base(),
                msr_count: range.count(),
                // Whole words, as the kernel reads them; kvm-ioctls itself would be content with fewer bytes.
                bitmap: range.bitmap(),
            })
            .collect();
        vm.set_msr_filter(default, &ranges)
            .map_err(|source| InstallError::Filter {
                ranges: ranges.len(),
                source,
            })
    }
}

fn flags(access: Access) -> MsrFilterRangeFlags {
    match access {
        Access::Read => MsrFilterRangeFlags::READ,
        Access::Write => MsrFilterRangeFlags::WRITE,
        Access::Both => MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
    }
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
