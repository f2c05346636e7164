// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine: built from its description, run, paused, saved and restored.

mod build;
mod error;
mod host;
mod state;
mod vcpu_io;
mod vcpu_state;

use std::sync::Arc;
use std::time::Duration;

use vcpu_loop::VcpuSet;
use vm_memory::GuestMemoryMmap;

use crate::devices::DeviceSet;
use crate::hypercall::calls::Hypercalls;
use crate::memory::MappedVm;

pub use build::{Images, Loading};
pub use error::Error;
pub use host::Host;
pub use state::{Error as StateError, MachineState, VmState};
pub use vcpu_io::MachineIo;
pub use vcpu_state::MachineVcpuState;
#[cfg(test)]
pub(crate) use vcpu_state::state_hooks;

/// How long vCPUs may take to obey; a host that is this late has other problems.
const VCPU_DEADLINE: Duration = Duration::from_secs(10);
/// A machine whose vCPUs are ready.
#[derive(Debug)]
pub struct Machine {
    /// The vCPUs, paused.
    vcpus: VcpuSet<MachineVcpuState>,
    /// The devices.
    pub devices: DeviceSet,
    /// Who answers its hypercalls.
    pub calls: Arc<Hypercalls>,
    legacy_timer: bool,
    /// Kept for as long as the vCPUs run; dropped after them.
    mapped: MappedVm,
}

impl Machine {
    /// Lets devices take input, and the vCPUs enter the guest.
    ///
    /// # Errors
    /// A vCPU that does not obey in time.
    pub fn start(&self) -> Result<(), Error> {
        self.devices.resume();
        Ok(self.vcpus.resume(VCPU_DEADLINE)?)
    }

    /// Takes the vCPUs out of the guest, with no access pending; then devices take no more input.
    ///
    /// # Errors
    /// A vCPU or a device that does not obey in time. All go on then, as far as they obey.
    pub fn pause(&self) -> Result<(), Error> {
        self.vcpus.pause(VCPU_DEADLINE)?;
        self.devices.pause().map_err(|error| {
            // The first error says more.
            let _ = self.vcpus.resume(VCPU_DEADLINE);
            error.into()
        })
    }

    /// How often each vCPU left the guest, in order.
    pub fn exits(&self) -> Vec<u64> {
        let counters = self.vcpus.ids().filter_map(|id| self.vcpus.exits(id));
        counters.map(|exits| exits.total()).collect()
    }

    /// The states of the vCPUs, which must be paused, in order.
    ///
    /// # Errors
    /// A vCPU that is not paused, or whose state the host does not give.
    pub fn save_vcpus(&self) -> Result<Vec<MachineVcpuState>, Error> {
        Ok(self.vcpus.save(VCPU_DEADLINE)?)
    }

    /// Gives the vCPUs, which must be paused, saved states. Guest memory comes first: registrations for hypercalls are
    /// checked against it, and written anew into it.
    ///
    /// # Errors
    /// A vCPU that is not paused, whose state the host does not take, or whose guest calls by another kind of stub
    /// than this machine's. A vCPU whose state was refused is as it was, others may have theirs; a vCPU that was left
    /// with half a state does not start.
    pub fn restore_vcpus(&self, states: Vec<MachineVcpuState>) -> Result<(), Error> {
        Ok(self.vcpus.restore(states, VCPU_DEADLINE)?)
    }

    /// The state of all but memory, of a machine that is [paused](Self::pause).
    ///
    /// The order: vCPUs come before the interrupt controllers, so that what is on its way from a local APIC's timer is
    /// in one of the two. kvmclock is last.
    ///
    /// # Errors
    /// A vCPU that is not paused, or a state that the host does not give. The machine is as it was.
    pub fn save(&self) -> Result<MachineState, Error> {
        Ok(MachineState {
            vcpus: self.save_vcpus()?,
            devices: self.devices.save()?,
            vm: VmState::save(self.mapped.vm(), self.legacy_timer)?,
        })
    }

    /// Gives the machine, whose vCPUs must be paused, a saved state. Guest memory comes first.
    ///
    /// The order: vCPUs with their local APICs, then the controllers that send to them, then the devices whose lines
    /// end there and may be raised, then kvmclock.
    ///
    /// # Errors
    /// The state does not fit this machine, or the host does not take it. A machine that was left with half a state is
    /// of no use any more: build another one.
    pub fn restore(&self, state: MachineState) -> Result<(), Error> {
        let vm = self.mapped.vm();
        state.vm.check(self.legacy_timer)?;
        self.restore_vcpus(state.vcpus)?;
        state.vm.restore_interrupts(vm)?;
        self.devices.restore(&state.devices)?;
        Ok(state.vm.restore_clock(vm)?)
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        self.mapped.memory()
    }

    /// Takes the vCPUs out of the guest and ends their threads.
    ///
    /// # Errors
    /// A vCPU that does not obey in time.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.vcpus.stop(VCPU_DEADLINE)?;
        Ok(())
    }
}
