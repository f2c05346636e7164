// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why a machine can't be had.

use std::io;

use super::state;
use crate::devices::{self, RestoreError, SuspendError};
use crate::hypercall::para;
use crate::irq::NoPin;
use crate::{acpi, boot, cpu, memory};

/// Why a machine can't be built or run. All are failures of the host or of the description.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM refused a step of building the machine.
    #[error("KVM can't {step} ({reason}); {}", hint(reason.errno()))]
    Kvm {
        /// What was asked for.
        step: &'static str,
        /// Its answer.
        reason: kvm_ioctls::Error,
    },
    /// KVM has a lower limit on vCPUs than the machine.
    #[error("this host's KVM runs {max} vCPUs at most, not {cpus}; ask for fewer with --cpus")]
    TooManyCpus {
        /// How many were asked for.
        cpus: u8,
        /// How many KVM takes.
        max: usize,
    },
    /// Guest memory can't be had.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// The devices need more than the machine has.
    #[error(transparent)]
    Plan(#[from] NoPin),
    /// The devices can't be had.
    #[error(transparent)]
    Devices(#[from] devices::Error),
    /// The vCPUs have nothing to report by.
    #[error("can't wait for what vCPUs report ({reason}); {}", hint(reason.raw_os_error().unwrap_or(0)))]
    Events {
        /// What the host said.
        reason: io::Error,
    },
    /// The ACPI tables can't be written.
    #[error(transparent)]
    Acpi(#[from] acpi::Error),
    /// The kernel can't be booted.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// The vCPUs can't be what was asked for.
    #[error(transparent)]
    Cpuid(#[from] cpu::Error),
    /// The guest's MSRs and hypercalls can't be as was asked for.
    #[error(transparent)]
    Para(#[from] para::Error),
    /// KVM rejects one of the MSRs that a vCPU starts with.
    #[error("KVM can't set MSR {index:#x} of a vCPU; use a host kernel whose KVM can")]
    Msr {
        /// Its index.
        index: u32,
    },
    /// A vCPU can't be made ready for its thread.
    #[error(transparent)]
    VcpuSetUp(vcpu_loop::kvm::Error),
    /// A vCPU can't be made or controlled.
    #[error(transparent)]
    Vcpu(#[from] vcpu_loop::Error),
    /// What KVM keeps for the whole machine can't be saved or restored.
    #[error(transparent)]
    VmState(#[from] state::Error),
    /// The devices can't be paused or saved.
    #[error(transparent)]
    DeviceSuspend(#[from] SuspendError),
    /// The devices don't take a saved state.
    #[error(transparent)]
    DeviceState(#[from] RestoreError),
}

/// Names the step that KVM refused.
pub(super) fn kvm(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |reason| Error::Kvm { step, reason }
}

/// What helps against a refusal of the host.
fn hint(errno: i32) -> &'static str {
    match errno {
        libc::EMFILE | libc::ENFILE => "raise the limit on open files (ulimit -n)",
        libc::ENOMEM | libc::EAGAIN => "free memory, or raise the limits on memory and threads",
        libc::EBUSY => "another hypervisor may hold the CPU's virtualization, stop it",
        _ => "run `mini-vmm check`, and look at the host's kernel log",
    }
}
