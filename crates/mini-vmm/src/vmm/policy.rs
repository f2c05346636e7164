// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Turns vCPU events into outcomes.

use std::cell::RefCell;
use std::rc::Rc;

use log::{debug, error, info};
use vcpu_loop::{FailureReport, SystemEvent, VcpuEvent};

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
