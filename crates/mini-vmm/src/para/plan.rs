// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What KVM is told before a machine has vCPUs: which MSRs are ours, and whether hypercalls are.

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_CAP_XEN_HVM, KVM_MSR_EXIT_REASON_FILTER,
    KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, kvm_enable_cap,
};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use para_abi::MSR_KVM_API_MAGIC;

use super::FORWARD_MSR;
use crate::spec::{HypercallRoute, VmSpec};
use crate::sys::xen;

/// Why KVM can't give a machine the MSRs or hypercalls that were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The filter can't be had.
    #[error(
        "KVM can't leave MSRs to the VMM ({0}); use a host kernel of 5.10 or later, or --para off"
    )]
    Msrs(kvm_ioctls::Error),
    /// There is no forwarding.
    #[error(
        "this host's KVM can't forward hypercalls (it lacks CONFIG_KVM_XEN); use --hypercall pio"
    )]
    NoForwarding,
    /// Forwarding was refused.
    #[error("KVM can't forward hypercalls ({0}); use --hypercall pio")]
    Forwarding(kvm_ioctls::Error),
    /// A call's registers can't be had.
    #[error(
        "this host's KVM can't share a vCPU's registers (KVM_CAP_SYNC_REGS), which hypercalls need; \
         use --hypercall vendor or --para off"
    )]
    NoRegisters,
    /// The route can't be had.
    #[error(transparent)]
    Route(#[from] super::RouteError),
    /// Two handlers want one number.
    #[error(transparent)]
    Handlers(#[from] crate::hypercalls::NumberTaken),
}

/// What came of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstalledMsrs {
    /// Guests can register for hypercalls.
    pub para: bool,
    /// Accesses that are refused are logged.
    pub report: bool,
}

/// What KVM is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrPlan {
    para: bool,
    forward: bool,
    /// Whether the machine is not the one that was described without it.
    required: bool,
}

impl MsrPlan {
    /// The plan of the machine that `spec` describes.
    pub fn new(spec: &VmSpec) -> Self {
        MsrPlan {
            para: spec.para,
            forward: spec.hypercall == HypercallRoute::Forward,
            required: spec.hypercall != HypercallRoute::Auto,
        }
    }

    /// Tells KVM, before the first vCPU is made; returns whether guests can register for hypercalls.
    ///
    /// # Errors
    /// KVM lacks what the machine's description asks for.
    pub fn install(&self, vm: &VmFd) -> Result<InstalledMsrs, Error> {
        let para = self.install_filter(vm)?;
        if self.forward {
            let bits = vm.check_extension_raw(u64::from(KVM_CAP_XEN_HVM));
            if bits & KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL as i32 == 0 {
                return Err(Error::NoForwarding);
            }
            xen::forward_hypercalls(vm, FORWARD_MSR).map_err(Error::Forwarding)?;
        }
        Ok(InstalledMsrs {
            para,
            report: false,
        })
    }

    fn install_filter(&self, vm: &VmFd) -> Result<bool, Error> {
        let capability = kvm_enable_cap {
            cap: KVM_CAP_X86_USER_SPACE_MSR,
            args: [u64::from(KVM_MSR_EXIT_REASON_FILTER), 0, 0, 0],
            ..Default::default()
        };
        let range = |base| MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base,
            msr_count: 1,
            bitmap: &[0; 8],
        };
        let ranges = [range(MSR_KVM_API_MAGIC), range(FORWARD_MSR)];
        let used = if self.forward { 2 } else { 1 };
        let mut result = Ok(());
        if self.para {
            result = vm.enable_cap(&capability);
        }
        let result =
            result.and_then(|()| vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges[..used]));
        match result {
            Ok(()) => Ok(self.para),
            Err(error) if self.required => Err(Error::Msrs(error)),
            Err(error) => {
                log::info!(
                    "guests can't register for hypercalls: {}",
                    Error::Msrs(error)
                );
                Ok(false)
            }
        }
    }
}
