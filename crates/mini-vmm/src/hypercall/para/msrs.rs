// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One vCPU's MSRs that the VMM handles.

use std::sync::Arc;

use hypercall_patch::Stub;
use log::{debug, info};
use para_abi::MSR_KVM_API_MAGIC;
use para_msr::para::{ParaMsr, ParaMsrState, Registration, RestoreError, Restored};
use para_msr::{MsrHandler, Outcome};
use vcpu_loop::kvm::SyncRegisters;
use vm_memory::GuestMemoryMmap;

use super::{CallRegisters, Gate, RouteChoice};

/// The number of different MSRs whose refused accesses are logged, per vCPU.
const REPORTED_MSRS: usize = 64;

/// MSR 0x87655678 of one vCPU. Its route is chosen at the first write.
pub struct ParaHandler<R> {
    vcpu: u32,
    memory: Arc<GuestMemoryMmap>,
    route: Arc<RouteChoice>,
    gate: Arc<Gate<R>>,
    para: Option<ParaMsr<Arc<GuestMemoryMmap>>>,
}

impl<R> std::fmt::Debug for ParaHandler<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParaHandler")
            .field("vcpu", &self.vcpu)
            .field("route", &self.route)
            .field("para", &self.para)
            .finish_non_exhaustive()
    }
}

impl<R: CallRegisters> ParaHandler<R> {
    /// The MSR of `vcpu`, with the guest's `memory`.
    pub fn new(
        vcpu: u32,
        memory: Arc<GuestMemoryMmap>,
        route: Arc<RouteChoice>,
        gate: Arc<Gate<R>>,
    ) -> Self {
        ParaHandler {
            vcpu,
            memory,
            route,
            gate,
            para: None,
        }
    }

    /// The MSR with its route. If calls use port I/O, it opens the gate before the first stub is written.
    fn para(&mut self) -> &mut ParaMsr<Arc<GuestMemoryMmap>> {
        let ParaHandler {
            vcpu,
            memory,
            route,
            gate,
            para,
        } = self;
        para.get_or_insert_with(|| {
            let stub = route.stub();
            let vcpu = *vcpu;
            let para = ParaMsr::new(Arc::clone(memory), stub)
                .with_observer(move |event| log_event(vcpu, event));
            match stub.port() {
                Some(_) => {
                    let gate = Arc::clone(gate);
                    para.with_prelude(move || gate.open())
                }
                None => para,
            }
        })
    }

    /// Its part of a snapshot. No access may be pending.
    pub fn save(&self) -> ParaMsrState {
        let saved = self.para.as_ref().map(ParaMsr::save);
        saved.unwrap_or_default()
    }

    /// Whether a saved state can be restored. It changes nothing, but with route auto it may run the probe.
    ///
    /// # Errors
    /// The state has an unknown format, or its guest's calls can't work on this host.
    pub fn check(&self, state: &ParaMsrState) -> Result<(), RestoreError> {
        match state.stub_in_memory(&*self.memory)? {
            Some(saved) => self.para_for_saved(saved).check(state),
            None => Ok(()),
        }
    }

    /// Restores a saved state. The registration is checked again, and the call instructions are replaced with this
    /// host's.
    ///
    /// # Errors
    /// As for [`check`](Self::check); nothing has changed then.
    pub fn restore(&mut self, state: &ParaMsrState) -> Result<Restored, RestoreError> {
        if self.para.is_none() && *state == ParaMsrState::default() {
            return Ok(Restored::Unregistered);
        }
        if let Some(saved) = state.stub_in_memory(&*self.memory)? {
            self.para_for_saved(saved).check(state)?;
            self.route.choose_for_saved(saved);
        }
        self.para().restore(state)
    }

    /// The MSR as it would be for a restored guest with the stub `saved` in its memory.
    fn para_for_saved(&self, saved: Stub) -> ParaMsr<Arc<GuestMemoryMmap>> {
        ParaMsr::new(Arc::clone(&self.memory), self.route.stub_for_saved(saved))
    }
}

/// One log statement per kind, so that a flood of one kind is limited on its own.
#[cold]
fn log_event(vcpu: u32, event: &Registration) {
    match event {
        Registration::Registered(_) => info!("vCPU {vcpu}: {event}"),
        Registration::Refused(_) => debug!("vCPU {vcpu}: {event}"),
        _ => debug!("vCPU {vcpu}: {event}"),
    }
}

/// One vCPU's MSRs that KVM leaves to user space. Only its thread uses them, so there is no lock.
#[derive(Debug)]
pub struct VcpuMsrs<R = SyncRegisters> {
    vcpu: u32,
    para: Option<ParaHandler<R>>,
    /// The refused accesses that were logged, in order: MSR and instruction.
    reported: Option<Vec<(u32, &'static str)>>,
}

impl<R: CallRegisters> VcpuMsrs<R> {
    /// The MSRs of `vcpu`. `para` is set if guests can register; with `report`, accesses to unknown MSRs are logged.
    pub fn new(vcpu: u32, para: Option<ParaHandler<R>>, report: bool) -> Self {
        VcpuMsrs {
            vcpu,
            para,
            // Allocated once with its full capacity, so an exit allocates nothing.
            reported: report.then(|| Vec::with_capacity(REPORTED_MSRS)),
        }
    }

    /// RDMSR.
    pub fn read(&mut self, index: u32) -> Outcome<u64> {
        match (index, &self.para) {
            (MSR_KVM_API_MAGIC, Some(_)) => Outcome::GpException,
            _ => {
                self.refused(index, "RDMSR");
                Outcome::NotHandled
            }
        }
    }

    /// WRMSR.
    pub fn write(&mut self, index: u32, value: u64) -> Outcome<()> {
        match (index, &mut self.para) {
            (MSR_KVM_API_MAGIC, Some(para)) => para.para().write(index, value),
            _ => {
                self.refused(index, "WRMSR");
                Outcome::NotHandled
            }
        }
    }

    /// The para MSR, if guests can register.
    pub fn para(&mut self) -> Option<&mut ParaHandler<R>> {
        self.para.as_mut()
    }

    /// The number of logged accesses, by MSR and direction.
    #[cfg(test)]
    pub(super) fn reported(&self) -> usize {
        self.reported.as_ref().map_or(0, Vec::len)
    }

    /// Logs a refused access once for each MSR and instruction, up to [`REPORTED_MSRS`].
    fn refused(&mut self, index: u32, instruction: &'static str) {
        let Some(reported) = &mut self.reported else {
            return;
        };
        if reported.len() < REPORTED_MSRS && !reported.contains(&(index, instruction)) {
            reported.push((index, instruction));
            log_refused(self.vcpu, index, instruction, reported.len());
        }
    }
}

#[cold]
fn log_refused(vcpu: u32, index: u32, instruction: &str, number: usize) {
    let last = match number {
        REPORTED_MSRS => "; further MSRs of this vCPU are not named",
        _ => "",
    };
    info!("vCPU {vcpu}: {instruction} of MSR {index:#x} is #GP{last}");
}
