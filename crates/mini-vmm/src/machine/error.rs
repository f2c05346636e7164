// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why a machine can't be built or run.

use std::io;

use super::{Misfit, state};
use crate::devices::{self, RestoreError, SuspendError};
use crate::hypercall::para;
use crate::irq::NoPin;
use crate::{acpi, boot, cpu, memory, mptable};

/// Why a machine can't be built or run. The cause is the host or the description.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM refused a step of building the machine.
    #[error("KVM can't {step} ({reason}); {}", hint(reason.errno()))]
    Kvm {
        /// The step.
        step: &'static str,
        /// KVM's error.
        reason: kvm_ioctls::Error,
    },
    /// KVM supports fewer vCPUs than requested.
    #[error("this host's KVM runs {max} vCPUs at most, not {cpus}; ask for fewer with --cpus")]
    TooManyCpus {
        /// How many were requested.
        cpus: u8,
        /// How many KVM supports.
        max: usize,
    },
    /// Guest memory can't be allocated.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// The devices need more interrupt lines than the machine has.
    #[error(transparent)]
    Plan(#[from] NoPin),
    /// The devices can't be created.
    #[error(transparent)]
    Devices(#[from] devices::Error),
    /// The channel for vCPU events can't be created.
    #[error("can't wait for what vCPUs report ({reason}); {}", hint(reason.raw_os_error().unwrap_or(0)))]
    Events {
        /// The host's error.
        reason: io::Error,
    },
    /// The ACPI tables can't be written.
    #[error(transparent)]
    Acpi(#[from] acpi::Error),
    /// The MPtable can't be written.
    #[error(transparent)]
    MpTable(#[from] mptable::Error),
    /// The kernel can't be booted.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// The CPUID table can't be built.
    #[error(transparent)]
    Cpuid(#[from] cpu::Error),
    /// The requested MSR and hypercall handling is not available.
    #[error(transparent)]
    Para(#[from] para::Error),
    /// KVM rejects one of the boot MSRs.
    #[error("KVM can't set MSR {index:#x} of a vCPU; use a host kernel whose KVM can")]
    Msr {
        /// Its index.
        index: u32,
    },
    /// An MSR that the description changes can't be changed.
    #[error(
        "MSR {index:#x} can't be changed, because this host's KVM {what}; leave it out of what is changed"
    )]
    MsrChange {
        /// Its index.
        index: u32,
        /// What KVM does.
        what: &'static str,
    },
    /// KVM lacks a capability that the description wants.
    #[error(
        "this host's KVM has no capability {number}, which the machine's description wants; use another host kernel"
    )]
    Capability {
        /// Its number.
        number: u32,
    },
    /// A vCPU can't be prepared for its thread.
    #[error(transparent)]
    VcpuSetUp(vcpu_loop::kvm::Error),
    /// A vCPU can't be started or controlled.
    #[error(transparent)]
    Vcpu(#[from] vcpu_loop::Error),
    /// A saved machine can't go on on this host.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// The VM-wide state in KVM can't be saved or restored.
    #[error(transparent)]
    VmState(#[from] state::Error),
    /// The devices can't be paused or saved.
    #[error(transparent)]
    DeviceSuspend(#[from] SuspendError),
    /// The devices reject a saved state.
    #[error(transparent)]
    DeviceState(#[from] RestoreError),
}

/// Adds the step that KVM refused to its error.
pub(super) fn kvm(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |reason| Error::Kvm { step, reason }
}

/// What to do about a refusal of the host.
fn hint(errno: i32) -> &'static str {
    match errno {
        libc::EMFILE | libc::ENFILE => "raise the limit on open files (ulimit -n)",
        libc::ENOMEM | libc::EAGAIN => "free memory, or raise the limits on memory and threads",
        libc::EBUSY => "another hypervisor may hold the CPU's virtualization, stop it",
        _ => "run `mini-vmm check`, and look at the host's kernel log",
    }
}
