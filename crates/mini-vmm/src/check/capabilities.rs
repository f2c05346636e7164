// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The KVM capabilities that mini-vmm uses, and their purpose.

use kvm_ioctls::{Cap, Kvm};
use serde::Serialize;

/// A KVM capability that mini-vmm uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Capability {
    /// Its name in the KVM API.
    pub name: &'static str,
    /// What mini-vmm uses it for.
    pub purpose: &'static str,
    /// Whether every machine needs it.
    pub required: bool,
    /// KVM's answer: 0 means no. For some capabilities the number says more than yes.
    pub value: i32,
}

/// A row of [`REQUIRED`] or [`OPTIONAL`]: a capability, its name, its purpose.
type Row = (Cap, &'static str, &'static str);

/// The capabilities that every machine needs.
const REQUIRED: [Row; 7] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "guest memory"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID", "CPUID of vCPUs"),
    (
        Cap::Irqchip,
        "KVM_CAP_IRQCHIP",
        "local APICs and IOAPIC in the kernel",
    ),
    (Cap::Irqfd, "KVM_CAP_IRQFD", "device interrupts"),
    (
        Cap::SetTssAddr,
        "KVM_CAP_SET_TSS_ADDR",
        "real mode on older Intel CPUs",
    ),
    (
        Cap::SetIdentityMapAddr,
        "KVM_CAP_SET_IDENTITY_MAP_ADDR",
        "real mode on older Intel CPUs",
    ),
    (
        Cap::ImmediateExit,
        "KVM_CAP_IMMEDIATE_EXIT",
        "stopping a vCPU without losing the request",
    ),
];

/// The capabilities that are used if available.
const OPTIONAL: [Row; 4] = [
    (
        Cap::TscDeadlineTimer,
        "KVM_CAP_TSC_DEADLINE_TIMER",
        "an APIC timer without calibration",
    ),
    (
        Cap::GetTscKhz,
        "KVM_CAP_GET_TSC_KHZ",
        "the TSC's frequency in CPUID",
    ),
    (Cap::Pit2, "KVM_CAP_PIT2", "--legacy-timer"),
    (
        Cap::KvmclockCtrl,
        "KVM_CAP_KVMCLOCK_CTRL",
        "pausing without a lockup report in the guest",
    ),
];

/// Whether every machine needs the capability with this number.
pub(crate) fn is_required(number: u32) -> bool {
    REQUIRED.iter().any(|(cap, ..)| *cap as u32 == number)
}

/// Every capability that is used, with this KVM's answer.
pub(super) fn all(kvm: &Kvm) -> Vec<Capability> {
    let ask = |required| {
        move |&(cap, name, purpose): &Row| {
            let value = kvm.check_extension_int(cap).max(0);
            Capability {
                name,
                purpose,
                required,
                value,
            }
        }
    };
    REQUIRED
        .iter()
        .map(ask(true))
        .chain(OPTIONAL.iter().map(ask(false)))
        .collect()
}

/// The first required capability that this KVM lacks.
pub(super) fn missing(kvm: &Kvm) -> Option<Capability> {
    let lacked = REQUIRED.iter().find(|(cap, ..)| !kvm.check_extension(*cap));
    lacked.map(|&(_, name, purpose)| Capability {
        name,
        purpose,
        required: true,
        value: 0,
    })
}
