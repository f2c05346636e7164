// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What KVM is told before vCPUs exist: which MSRs the VMM handles, and whether it handles hypercalls.

use kvm_ioctls::VmFd;
use para_abi::MSR_KVM_API_MAGIC;
use para_msr::filter::{Access, FilterDefault, FilterError, MsrFilter, MsrFilterBuilder};
use para_msr::kvm::ExitReasons;
use para_msr::profile;

use super::{RouteError, forward};
use crate::config::{HypercallRoute, MsrPolicy, VmSpec};
use crate::layout::FORWARD_MSR;
use crate::sys::xen;

/// Why KVM can't provide the requested MSR or hypercall handling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// KVM can't install the filter.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// KVM can't forward hypercalls.
    #[error(
        "this host's KVM can't forward hypercalls to the VMM; use --hypercall pio, or a host kernel with \
         CONFIG_KVM_XEN"
    )]
    NoForwarding,
    /// KVM refused to forward them.
    #[error("KVM refused to forward hypercalls to the VMM ({0}); use --hypercall pio")]
    Forwarding(kvm_ioctls::Error),
    /// KVM can't share the registers of a call.
    #[error(
        "this host's KVM can't share a vCPU's registers (KVM_CAP_SYNC_REGS), which hypercalls need; \
         use --hypercall vendor or --para off"
    )]
    NoRegisters,
    /// The route is not available.
    #[error(transparent)]
    Route(#[from] RouteError),
}

/// The result of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstalledMsrs {
    /// Guests can register for hypercalls.
    pub para: bool,
    /// Accesses that are refused are logged.
    pub report: bool,
}

/// What KVM is told about MSRs and hypercalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrPlan {
    para: bool,
    forward: bool,
    policy: MsrPolicy,
    /// Whether a failure is an error, since the machine would differ from the requested one.
    required: bool,
}

impl MsrPlan {
    /// The plan for the machine that `spec` describes.
    pub fn new(spec: &VmSpec) -> Self {
        MsrPlan {
            para: spec.para,
            forward: spec.hypercall == HypercallRoute::Forward,
            policy: spec.msr_policy,
            required: spec.hypercall != HypercallRoute::Auto || spec.msr_policy != MsrPolicy::Allow,
        }
    }

    /// The filter. MSR 0x87655678 is in it for every machine: a host that ignores unknown MSRs (`kvm.ignore_msrs=1`)
    /// would neither pass it on nor refuse it.
    ///
    /// # Errors
    /// None in practice: the ranges fit KVM's 16, and KVM honours every denial.
    pub fn filter(&self) -> Result<MsrFilter, FilterError> {
        let default = match self.policy {
            MsrPolicy::DenyUnknown => FilterDefault::Deny,
            MsrPolicy::Allow | MsrPolicy::Log => FilterDefault::Allow,
        };
        let mut filter = MsrFilterBuilder::new(default).deny(MSR_KVM_API_MAGIC, Access::Both);
        if self.forward {
            filter = filter.deny(FORWARD_MSR, Access::Both);
        }
        if self.policy == MsrPolicy::DenyUnknown {
            filter = filter.allow_profile(profile::LINUX);
        }
        filter.compile()
    }

    /// Which accesses exit to user space. `None` if denied accesses just take #GP.
    pub fn exits(&self) -> Option<ExitReasons> {
        let log = self.policy == MsrPolicy::Log;
        let any = self.para || self.policy != MsrPolicy::Allow;
        any.then_some(ExitReasons::default().unknown(log).invalid(log))
    }

    /// Configures KVM; call it before the first vCPU is created. If KVM lacks a feature that was not explicitly
    /// requested, guests can't register.
    ///
    /// # Errors
    /// KVM lacks a feature that the machine's description requires.
    pub fn install(&self, vm: &VmFd) -> Result<InstalledMsrs, Error> {
        let filter = self.filter()?;
        let installed = match self.exits() {
            Some(reasons) => filter.install_with(vm, reasons),
            None => filter.replace(vm),
        };
        if let Err(error) = installed {
            if self.required {
                return Err(error.into());
            }
            log::info!("guests can't register for hypercalls: {error}");
            return Ok(InstalledMsrs::default());
        }
        if self.forward {
            if !forward::is_offered(|capability| vm.check_extension_raw(capability)) {
                return Err(Error::NoForwarding);
            }
            xen::forward_hypercalls(vm, FORWARD_MSR).map_err(Error::Forwarding)?;
        }
        Ok(InstalledMsrs {
            para: self.para,
            report: self.policy != MsrPolicy::Allow,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(edit: impl FnOnce(&mut VmSpec)) -> MsrPlan {
        let mut spec = VmSpec::new("vmlinux");
        edit(&mut spec);
        MsrPlan::new(&spec)
    }

    #[test]
    fn r12_h15_the_msr_is_ours_or_nobodys_under_every_policy() {
        for policy in [MsrPolicy::Allow, MsrPolicy::DenyUnknown, MsrPolicy::Log] {
            for para in [true, false] {
                let plan = plan(|spec| (spec.msr_policy, spec.para) = (policy, para));
                let filter = plan.filter().unwrap();
                assert!(!filter.allows_read(MSR_KVM_API_MAGIC));
                assert!(!filter.allows_write(MSR_KVM_API_MAGIC));
                // The TSC and EFER: no kernel boots without them.
                assert!(filter.allows_read(0x10) && filter.allows_write(0xc000_0080));
                let unknown = filter.allows_read(0x1234);
                assert_eq!(unknown, policy != MsrPolicy::DenyUnknown);
            }
        }
    }

    #[test]
    fn without_the_msr_it_is_refused_by_kvm_itself() {
        assert_eq!(plan(|spec| spec.para = false).exits(), None);
        let denied = plan(|spec| {
            spec.para = false;
            spec.msr_policy = MsrPolicy::DenyUnknown;
        });
        assert_eq!(denied.exits(), Some(ExitReasons::default()));
    }

    #[test]
    fn only_the_policy_log_has_kvms_own_refusals_exit() {
        for policy in [MsrPolicy::Allow, MsrPolicy::DenyUnknown, MsrPolicy::Log] {
            let log = policy == MsrPolicy::Log;
            let reasons = ExitReasons::default().unknown(log).invalid(log);
            assert_eq!(plan(|spec| spec.msr_policy = policy).exits(), Some(reasons));
        }
    }

    #[test]
    fn forwarding_hides_its_own_msr() {
        let filter = |route| plan(|spec| spec.hypercall = route).filter().unwrap();
        for policy in [MsrPolicy::Allow, MsrPolicy::DenyUnknown, MsrPolicy::Log] {
            let forward = plan(|spec| {
                (spec.hypercall, spec.msr_policy) = (HypercallRoute::Forward, policy);
            });
            let filter = forward.filter().unwrap();
            assert!(!filter.allows_write(FORWARD_MSR) && !filter.allows_read(FORWARD_MSR));
            assert!(forward.exits().is_some(), "or KVM's own #GP is not counted");
        }
        assert!(filter(HypercallRoute::Auto).allows_write(FORWARD_MSR));
        // The range that KVM accepts since Linux 6.15, without its own MSRs.
        assert!((0x4000_0000..0x5000_0000).contains(&FORWARD_MSR));
        assert_ne!(FORWARD_MSR & !0xff, 0x4b56_4d00);
    }
}
