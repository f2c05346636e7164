// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A saved vCPU: KVM's part, and the hypercall registration.

use log::{debug, warn};
use para_msr::para::{ParaMsrState, Restored};
use serde::{Deserialize, Serialize};
use vcpu_loop::kvm::VcpuState;
use vcpu_loop::{ManagedVcpu, StateHooks, Unchanged};

use crate::hypercall::para::CallRegisters;
use crate::machine::MachineIo;

/// The state of one vCPU of a machine. It is saved with nothing pending. So a registration is in it either completely
/// or not at all, and a restore doesn't execute its WRMSR again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineVcpuState<S = VcpuState> {
    /// KVM's part.
    pub vcpu: S,
    /// The registration for hypercalls.
    pub para: ParaMsrState,
}

/// Saves and restores a machine's vCPU, KVM's part and its registration, as one state.
///
/// Restore guest memory first: the registration is checked against it, and the call instructions are rewritten if they
/// differ on this host. A registration that can't work on this machine is refused before anything changes. Then the
/// vCPU is restored first, so a state that doesn't fit it changes nothing, either.
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
