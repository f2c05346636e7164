// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether a saved machine can go on on this host.

use kvm_bindings::kvm_cpuid_entry2;

use super::MachineState;
use crate::cpu;

/// Why a saved machine can't go on here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// Its CPUs are another vendor's.
    #[error(
        "the saved machine has CPUs of {saved:?} and this host has CPUs of {here:?}; restore it on a host with those of \
         {saved:?}"
    )]
    Vendor {
        /// The vendor string of the saved machine.
        saved: String,
        /// That of this host.
        here: String,
    },
    /// Its CPUs have features that this host can't offer.
    #[error(
        "the saved machine uses CPU features that this host lacks: {}; restore it on a host that has them, or hide them \
         from the start (--cpu-features)",
        .0.join(", ")
    )]
    Features(Vec<&'static str>),
    /// Two of its CPUs differ in vendor or features, which no machine's do.
    #[error(
        "the saved machine's vCPUs differ in their CPUID; the state is damaged, take a new one"
    )]
    Mixed,
}

/// Checks the CPUs of `state` with `here`, which has all that this host can offer such a machine.
///
/// # Errors
/// [`Misfit`].
pub(super) fn check_cpus(state: &MachineState, here: &[kvm_cpuid_entry2]) -> Result<(), Misfit> {
    let (saved, host) = (state.cpu_vendor(), cpu::vendor(here));
    if saved != host {
        return Err(Misfit::Vendor { saved, here: host });
    }
    for vcpu in &state.vcpus {
        let table = &vcpu.vcpu.cpuid;
        if cpu::vendor(table) != saved {
            return Err(Misfit::Mixed);
        }
        let missing = cpu::missing(table, here);
        if !missing.is_empty() {
            return Err(Misfit::Features(missing));
        }
    }
    Ok(())
}
