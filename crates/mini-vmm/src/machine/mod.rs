// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine: built from its description, run, paused, saved and restored.

mod build;
mod error;
mod fit;
mod host;
mod images;
mod state;
mod tsc;
mod vcpu_io;
mod vcpu_state;

use std::sync::Arc;
use std::time::Duration;

use vcpu_loop::kvm::KvmVcpu;
use vcpu_loop::{ExitCounters, VcpuSet};
use vm_memory::GuestMemoryMmap;

use crate::acpi;
use crate::devices::DeviceSet;
use crate::hypercall::calls::{Caller, Hypercalls};
use crate::memory::{MappedVm, Served};

pub use build::Loading;
pub use error::Error;
pub use fit::Misfit;
pub use host::Host;
pub use images::{ImageError, Images};
pub use state::{Clock, Error as StateError, Frozen, MachineState, VmState};
pub use vcpu_io::MachineIo;
pub use vcpu_state::MachineVcpuState;
#[cfg(test)]
pub(crate) use vcpu_state::state_hooks;

/// How long vCPUs may take to obey. A host this slow has other problems.
const VCPU_DEADLINE: Duration = Duration::from_secs(10);
/// A machine whose vCPUs are ready.
#[derive(Debug)]
pub struct Machine {
    /// The vCPUs, paused.
    vcpus: VcpuSet<MachineVcpuState>,
    /// The devices.
    pub devices: DeviceSet,
    /// The handlers of its hypercalls.
    pub calls: Arc<Hypercalls>,
    legacy_timer: bool,
    /// Kept while the vCPUs run; dropped after them.
    mapped: MappedVm,
    /// Kept as long as the memory.
    served: Option<Served>,
}

impl Machine {
    /// Lets devices take input and the vCPUs enter the guest.
    ///
    /// # Errors
    /// A vCPU did not obey in time. All others are paused again then, as far as they obey.
    pub fn start(&self) -> Result<(), Error> {
        self.devices.resume();
        self.vcpus.resume(VCPU_DEADLINE).inspect_err(|_| {
            // The first error says more.
            let _ = self.vcpus.pause(VCPU_DEADLINE);
            let _ = self.devices.pause();
        })?;
        Ok(())
    }

    /// Takes the vCPUs out of the guest with no access pending. Then stops the input of the devices.
    ///
    /// # Errors
    /// A vCPU or a device did not obey in time. All others run again then.
    pub fn pause(&self) -> Result<(), Error> {
        let vcpus = self.vcpus.pause(VCPU_DEADLINE).map_err(Error::from);
        vcpus
            .and_then(|()| Ok(self.devices.pause()?))
            .inspect_err(|_| {
                // The first error says more.
                let _ = self.vcpus.resume(VCPU_DEADLINE);
            })
    }

    /// The number of exits of each vCPU, in order.
    pub fn exits(&self) -> Vec<u64> {
        let counters = self.exit_counters();
        counters.iter().map(|exits| exits.total()).collect()
    }

    /// The counters of each vCPU, in order.
    pub fn exit_counters(&self) -> Vec<Arc<ExitCounters>> {
        let ids = self.vcpus.ids();
        ids.filter_map(|id| self.vcpus.exits(id)).collect()
    }

    /// The states of the vCPUs, in order. They must be paused.
    ///
    /// # Errors
    /// A vCPU is not paused, or the host doesn't return its state.
    pub fn save_vcpus(&self) -> Result<Vec<MachineVcpuState>, Error> {
        Ok(self.vcpus.save(VCPU_DEADLINE)?)
    }

    /// Restores saved states to the vCPUs, which must be paused. Restore guest memory first: hypercall registrations
    /// are checked against it and written to it again.
    ///
    /// # Errors
    /// A vCPU is not paused, the host rejects its state, or its guest calls with a different kind of stub than this
    /// machine's. A vCPU whose state was rejected is unchanged; others may already have theirs. A vCPU with a partly
    /// restored state does not start.
    pub fn restore_vcpus(&self, states: Vec<MachineVcpuState>) -> Result<(), Error> {
        Ok(self.vcpus.restore(states, VCPU_DEADLINE)?)
    }

    /// Answers the call of a paused vCPU that waits for it: 0, or an error. The vCPU can be resumed afterwards.
    ///
    /// # Errors
    /// The vCPU did not obey in time, or the host doesn't change its registers.
    pub fn answer(&self, caller: &Caller, answer: u64) -> Result<(), Error> {
        self.vcpus.acknowledge(caller.vcpu, VCPU_DEADLINE)?;
        if answer == 0 {
            // Its RAX is 0 already.
            return Ok(());
        }
        let rax = match caller.long_mode {
            true => answer,
            false => answer & u64::from(u32::MAX),
        };
        let set = move |vcpu: &mut KvmVcpu| {
            let mut registers = vcpu.fd().get_regs()?;
            registers.rax = rax;
            vcpu.fd().set_regs(&registers)
        };
        let set = self.vcpus.with_vcpu(caller.vcpu, set, VCPU_DEADLINE)?;
        set.map_err(error::kvm("answer a hypercall"))
    }

    /// The state of all but memory. The machine must be [paused](Self::pause).
    ///
    /// The order: the interval timer, the interrupt controllers that it sends to, and the local APICs that these send
    /// to, with their vCPUs. So an interrupt on its way is saved where it arrives. kvmclock is last.
    ///
    /// # Errors
    /// A vCPU is not paused, or the host doesn't return a state. The machine is unchanged.
    pub fn save(&self) -> Result<MachineState, Error> {
        let vm = self.mapped.vm();
        let mut state = MachineState {
            vm: VmState::save_interrupts(vm, self.legacy_timer)?,
            vcpus: self.save_vcpus()?,
            devices: self.devices.save()?,
        };
        state.vm.save_clock(vm)?;
        Ok(state)
    }

    /// Restores a saved state to the machine, whose vCPUs must be paused. Restore guest memory first.
    ///
    /// The order: vCPUs with their local APICs, then the interrupt controllers that send to them, then the devices,
    /// which may raise their lines, then kvmclock. Last, the guest gets a new generation ID.
    ///
    /// # Errors
    /// The state doesn't fit this machine, or the host rejects it. A machine with a partly restored state is unusable:
    /// build another one.
    pub fn restore(&self, state: MachineState) -> Result<(), Error> {
        self.restore_with(state, Clock::Stands)
    }

    /// As [`restore`](Self::restore), with a choice for kvmclock.
    ///
    /// # Errors
    /// As [`restore`](Self::restore).
    pub fn restore_with(&self, state: MachineState, clock: Clock) -> Result<(), Error> {
        let vm = self.mapped.vm();
        state.vm.check(self.legacy_timer)?;
        state.vm.check_clock(clock)?;
        self.restore_vcpus(state.vcpus)?;
        state.vm.restore_interrupts(vm)?;
        self.devices.restore(&state.devices)?;
        state.vm.restore_clock(vm, clock)?;
        self.renew()
    }

    /// Gives the guest a new generation ID, and tells it: others may go on from the same state.
    fn renew(&self) -> Result<(), Error> {
        acpi::renew_generation(self.memory())?;
        let Some(generation) = &self.devices.offers().generation else {
            return Ok(());
        };
        // Not by an eventfd, which KVM would handle later: the guest is to be interrupted before its next instruction.
        let gsi = generation.announce();
        let vm = self.mapped.vm();
        vm.set_irq_line(gsi, true)
            .and_then(|()| vm.set_irq_line(gsi, false))
            .map_err(error::kvm("interrupt the guest"))
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        self.mapped.memory()
    }

    /// The bytes of memory that the guest shares, which is no part of [`memory`](Self::memory).
    pub fn shared_memory(&self) -> Option<u64> {
        self.mapped.shared_size()
    }

    /// Whether another process brings pages of the memory that are not there yet.
    pub const fn has_served_memory(&self) -> bool {
        self.served.is_some()
    }

    /// Takes the vCPUs out of the guest and ends their threads.
    ///
    /// # Errors
    /// A vCPU did not obey in time.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.vcpus.stop(VCPU_DEADLINE)?;
        Ok(())
    }
}
