// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Installing a filter.

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN, kvm_enable_cap,
};
use kvm_ioctls::{Cap, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

#[cfg(doc)]
use super::ioctl;
use crate::filter::{Access, FilterDefault, FilterError, MsrFilter};

/// The accesses for which a vCPU exits to user space instead of raising #GP
/// (`KVM_CAP_X86_USER_SPACE_MSR`, `Documentation/virt/kvm/api.rst`, 7.21).
///
/// ```
/// use para_msr::kvm::ExitReasons;
///
/// assert_eq!(ExitReasons::default().unknown(true).mask(), 6);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExitReasons {
    /// MSRs that KVM doesn't know. With `kvm.ignore_msrs=1` on the host these never exit. To own an MSR,
    /// deny it in the filter instead.
    pub unknown: bool,
    /// Accesses that KVM considers invalid: reserved bits, a disabled feature.
    pub invalid: bool,
}

impl ExitReasons {
    /// Sets whether accesses to MSRs that KVM doesn't know exit.
    #[must_use]
    pub const fn unknown(mut self, exit: bool) -> Self {
        self.unknown = exit;
        self
    }

    /// Sets whether accesses that KVM considers invalid exit.
    #[must_use]
    pub const fn invalid(mut self, exit: bool) -> Self {
        self.invalid = exit;
        self
    }

    /// KVM's mask. It always includes denied accesses, which would otherwise be #GP.
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
    /// Makes denied accesses exit to user space, then installs the filter. It replaces any other filter.
    ///
    /// Call it before creating vCPUs: a vCPU that runs earlier isn't filtered. The capability comes first,
    /// because without it denied accesses are #GP.
    ///
    /// KVM initializes an exit as success, with 0 for a read, so an exit that isn't answered is a wrong answer.
    /// [`MsrDispatch::answer`](crate::MsrDispatch::answer) turns it into #GP where that is right. [`ioctl::INSTALL`]
    /// lists the ioctls that seccomp must allow.
    ///
    /// # Errors
    /// KVM lacks the capability or MSR filters, or refuses one of the calls.
    pub fn install(&self, vm: &VmFd) -> Result<(), FilterError> {
        self.install_with(vm, ExitReasons::default())
    }

    /// The same, with additional exit reasons. They replace those of an earlier call.
    ///
    /// # Errors
    /// KVM lacks the capability or MSR filters, or refuses one of the calls.
    pub fn install_with(&self, vm: &VmFd, reasons: ExitReasons) -> Result<(), FilterError> {
        let reasons = reasons.mask();
        let capability = kvm_enable_cap {
            cap: KVM_CAP_X86_USER_SPACE_MSR,
            args: [u64::from(reasons), 0, 0, 0],
            ..Default::default()
        };
        let enabled = vm.enable_cap(&capability);
        enabled
            .map_err(|source| FilterError::Enable { reasons, source })
            .and_then(|()| self.replace(vm))
            // Checked only after a failure, which saves two system calls at a normal start.
            .map_err(|error| lacking(vm).unwrap_or(error))
    }

    /// Installs only the filter, when [`install`](Self::install) has already enabled the exits. It may
    /// be called while vCPUs run: each access sees the old filter or the new one.
    ///
    /// # Errors
    /// KVM refuses the filter.
    pub fn replace(&self, vm: &VmFd) -> Result<(), FilterError> {
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
                // Whole words, as the kernel reads them; kvm-ioctls itself would accept fewer bytes.
                bitmap: range.bitmap(),
            })
            .collect();
        vm.set_msr_filter(default, &ranges)
            .map_err(|source| FilterError::Install {
                ranges: ranges.len(),
                source,
            })
    }
}

/// The first capability that this KVM lacks.
fn lacking(vm: &VmFd) -> Option<FilterError> {
    let needed = [
        (Cap::X86UserSpaceMsr, "KVM_CAP_X86_USER_SPACE_MSR"),
        (Cap::X86MsrFilter, "KVM_CAP_X86_MSR_FILTER"),
    ];
    // A failed check is negative, and says nothing about the capability.
    let lacks =
        |(cap, name)| (vm.check_extension_int(cap) == 0).then_some(FilterError::Lacks(name));
    needed.into_iter().find_map(lacks)
}

fn flags(access: Access) -> MsrFilterRangeFlags {
    match access {
        Access::Read => MsrFilterRangeFlags::READ,
        Access::Write => MsrFilterRangeFlags::WRITE,
        Access::Both => MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
    }
}
