// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Turns vCPU events into outcomes.

use std::cell::RefCell;
use std::error::Error;
use std::io;
use std::rc::Rc;

use log::{debug, error, info};
use vcpu_loop::{FailureReason, FailureReport, SystemEvent, VcpuEvent};

use crate::config::OnReboot;
use crate::outcome::{Outcome, OutcomeLatch};

/// The machine's reaction to vCPU events.
pub(super) struct VcpuPolicy {
    pub on_reboot: OnReboot,
    pub latch: OutcomeLatch,
    /// Takes the report of a failure if that is the outcome.
    pub report: Rc<RefCell<Option<Box<FailureReport>>>>,
}

impl VcpuPolicy {
    pub fn apply(&self, event: VcpuEvent) {
        match event {
            // PCs wire the processor's shutdown signal to reset, and `reboot=t` relies on it.
            VcpuEvent::Shutdown { report } if self.on_reboot == OnReboot::Reset => {
                info!("triple fault on vCPU {}", report.id);
                self.latch.set(Outcome::Reset);
            }
            VcpuEvent::Shutdown { report } | VcpuEvent::Fatal { report } => self.fail(report),
            VcpuEvent::SystemEvent { event, .. } => self.system_event(event),
            // A device set the outcome, and the vCPU that accessed it left the guest.
            VcpuEvent::Paused { id } => debug!("vCPU {id} left the guest"),
            // These don't happen with in-kernel interrupt controllers, no debugger and no dirty ring.
            other => {
                error!(
                    "vCPU {} stopped for an unexpected reason: {other:?}",
                    other.id()
                );
                self.latch.set(Outcome::VcpuFailure);
            }
        }
    }

    /// Keeps the report if the failure is the outcome. Otherwise it is a consequence of another outcome.
    fn fail(&self, report: Box<FailureReport>) {
        if self.latch.set(Outcome::VcpuFailure) {
            if lacks_page(&report.reason) {
                error!(
                    "the host lacks a page of memory that the guest needs: a file that is guest memory (--shared-memory, \
                     or a snapshot's) has become shorter, or the host's memory has failed; restore the file, and start again"
                );
            }
            *self.report.borrow_mut() = Some(report);
        }
    }

    /// Handles `KVM_EXIT_SYSTEM_EVENT` (KVM API).
    fn system_event(&self, event: SystemEvent) {
        self.latch.set(match event.kind {
            kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Outcome::PowerOff,
            kvm_bindings::KVM_SYSTEM_EVENT_RESET => Outcome::Reset,
            kvm_bindings::KVM_SYSTEM_EVENT_CRASH => Outcome::GuestPanic,
            kind => {
                error!("KVM reports system event {kind}, which this machine can't have");
                Outcome::VcpuFailure
            }
        });
    }
}

/// Whether KVM could not get a page of the process's memory (KVM API, `KVM_RUN`: EFAULT).
fn lacks_page(reason: &FailureReason) -> bool {
    let FailureReason::Host(error) = reason else {
        return false;
    };
    let mut cause: Option<&(dyn Error + 'static)> = Some(&**error);
    while let Some(error) = cause {
        let host = error.downcast_ref::<io::Error>();
        if host.is_some_and(|host| host.raw_os_error() == Some(libc::EFAULT)) {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_gone_is_told_from_other_failures() {
        let host = |errno| FailureReason::Host(Box::new(io::Error::from_raw_os_error(errno)));
        assert!(lacks_page(&host(libc::EFAULT)));
        assert!(!lacks_page(&host(libc::EINVAL)));
        assert!(!lacks_page(&FailureReason::TripleFault));
        let call = vcpu_loop::kvm::Error::Call {
            call: "KVM_RUN",
            source: io::Error::from_raw_os_error(libc::EFAULT),
        };
        assert!(lacks_page(&FailureReason::Host(Box::new(call))));
    }
}
