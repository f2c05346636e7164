// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A saved vCPU: KVM's part and ours.

use log::{debug, warn};
use para_msr::para::{ParaMsrState, Restored};
use serde::{Deserialize, Serialize};
use vcpu_loop::kvm::VcpuState;
use vcpu_loop::{ManagedVcpu, StateHooks, Unchanged};

use crate::hypercall::para::CallRegisters;
use crate::machine::MachineIo;

/// The state of one vCPU of a machine. It was taken with nothing pending: a registration is wholly in it or not at
/// all, and no WRMSR is executed again by who restores it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineVcpuState<S = VcpuState> {
    /// What KVM has.
    pub vcpu: S,
    /// The registration for hypercalls.
    pub para: ParaMsrState,
}

/// How a machine's vCPU and what it answers itself become one state, and back.
///
/// Guest memory is restored before: the registration is checked against it, and the instructions of a call are written
/// anew where the saving host had others. A guest whose calls can't go this machine's way is refused before anything
/// changes; then the vCPU comes first, so that a state that doesn't fit it changes nothing, either.
pub fn state_hooks<V, R>() -> StateHooks<V, MachineIo<R>, MachineVcpuState<V::State>>
where
    V: ManagedVcpu,
    R: CallRegisters,
{
    StateHooks::new(
        |vcpu: &mut V, io: &mut MachineIo<R>| {
            Ok(MachineVcpuState {
                vcpu: vcpu.save()?,
                para: io.save_para(),
            })
        },
        |vcpu: &mut V, io: &mut MachineIo<R>, state: MachineVcpuState<V::State>| {
            io.check_para(&state.para)
                .map_err(|error| Unchanged(error.into()))?;
            vcpu.restore(&state.vcpu)?;
            match io.restore_para(&state.para)? {
                Restored::Unregistered => {}
                restored @ Restored::Registered { .. } => debug!("{restored}"),
                other => warn!("{other}"),
            }
            Ok(())
        },
    )
}
