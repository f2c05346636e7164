// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One vCPU's MSRs that are answered here.

use std::sync::Arc;

use hypercall_patch::Stub;
use log::{debug, info};
use para_abi::MSR_KVM_API_MAGIC;
use para_msr::para::{ParaMsr, ParaMsrState, Registration, RestoreError, Restored};
use para_msr::{MsrHandler, Outcome};
use vcpu_loop::kvm::SyncRegisters;
use vm_memory::GuestMemoryMmap;

use super::{CallRegisters, Gate, RouteChoice};

/// How many different MSRs a vCPU's refused accesses are logged for.
const REPORTED_MSRS: usize = 64;

/// MSR 0x87655678 of one vCPU, for which a route is chosen when it is written first.
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
    /// The MSR of `vcpu`, whose guest has `memory`.
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

    /// The MSR with its route. Where calls go by port I/O, it opens the gate before the first stub is written.
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

    /// What a snapshot keeps of it. No access may be pending.
    pub fn save(&self) -> ParaMsrState {
        let saved = self.para.as_ref().map(ParaMsr::save);
        saved.unwrap_or_default()
    }

    /// Whether a saved state can be taken back. It changes nothing, but a machine that is left to choose its route may
    /// find out whether the vendor's instruction will do.
    ///
    /// # Errors
    /// The state has a form that isn't known, or its guest's calls can't go this host's way.
    pub fn check(&self, state: &ParaMsrState) -> Result<(), RestoreError> {
        match state.stub_in_memory(&*self.memory)? {
            Some(saved) => self.para_for_saved(saved).check(state),
            None => Ok(()),
        }
    }

    /// Takes a saved state back: the registration is checked again, and this host's instructions are written where
    /// another's were.
    ///
    /// # Errors
    /// As [`check`](Self::check); then nothing has changed.
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

    /// The MSR as it would be for a restored guest whose memory has the stub `saved`.
    fn para_for_saved(&self, saved: Stub) -> ParaMsr<Arc<GuestMemoryMmap>> {
        ParaMsr::new(Arc::clone(&self.memory), self.route.stub_for_saved(saved))
    }
}

/// One line of code each, so that a flood of one kind hides no other.
#[cold]
fn log_event(vcpu: u32, event: &Registration) {
    match event {
        Registration::Registered(_) => info!("vCPU {vcpu}: {event}"),
        Registration::Refused(_) => debug!("vCPU {vcpu}: {event}"),
        _ => debug!("vCPU {vcpu}: {event}"),
    }
}

/// One vCPU's MSRs that KVM leaves to user space. Owned by its thread: no lock.
#[derive(Debug)]
pub struct VcpuMsrs<R = SyncRegisters> {
    vcpu: u32,
    para: Option<ParaHandler<R>>,
    /// Refused accesses are told of: MSRs and instructions that were, in order.
    reported: Option<Vec<(u32, &'static str)>>,
}

impl<R: CallRegisters> VcpuMsrs<R> {
    /// MSRs of `vcpu` with `para`, where guests can register; `report` logs each MSR that nobody has.
    pub fn new(vcpu: u32, para: Option<ParaHandler<R>>, report: bool) -> Self {
        VcpuMsrs {
            vcpu,
            para,
            // All the room that it ever takes: nothing is allocated on an exit.
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

    /// How many MSRs and directions were told of.
    #[cfg(test)]
    pub(super) fn reported(&self) -> usize {
        self.reported.as_ref().map_or(0, Vec::len)
    }

    /// Tells of each MSR once per instruction, and of so many only.
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
