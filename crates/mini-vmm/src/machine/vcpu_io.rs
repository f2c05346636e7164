// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Connects a vCPU's exits to the machine's handlers: bus, MSRs and hypercalls.

use std::sync::Arc;

use log::warn;
use para_msr::Outcome;
use para_msr::para::{ParaMsrState, RestoreError, Restored};
use vcpu_loop::bus::Bus;
use vcpu_loop::kvm::SyncRegisters;
use vcpu_loop::{Hypercall, HypercallAbi, MsrReply, Next, VcpuIo};

use crate::hypercall::calls::{Caller, Hypercalls};
use crate::hypercall::para::{CallRegisters, Gate, Para, VcpuMsrs};
use crate::outcome::OutcomeLatch;

/// One vCPU's view of the machine: the frozen bus, its own MSRs, hypercalls, and the outcome latch.
#[derive(Debug)]
pub struct MachineIo<R = SyncRegisters> {
    /// The vCPU's index.
    pub vcpu: u32,
    /// The devices.
    pub bus: Arc<Bus>,
    /// The MSRs that KVM leaves to user space.
    pub msrs: VcpuMsrs<R>,
    /// Whether hypercalls reach the VMM.
    pub gate: Arc<Gate<R>>,
    /// The hypercall handlers.
    pub calls: Arc<Hypercalls>,
    /// Once it is set, the vCPU leaves the guest.
    pub latch: OutcomeLatch,
}

impl MachineIo {
    /// The handlers for the accesses of `vcpu`.
    pub fn new(vcpu: u32, para: &Para, bus: Arc<Bus>, latch: OutcomeLatch) -> Self {
        MachineIo {
            vcpu,
            bus,
            msrs: para.msrs(vcpu),
            gate: Arc::clone(para.gate()),
            calls: Arc::clone(para.calls()),
            latch,
        }
    }
}

impl<R: CallRegisters> MachineIo<R> {
    /// Stops this vCPU before its next guest instruction, if a device has ended the run.
    fn after(&self, next: Next) -> Next {
        if self.latch.is_set() {
            Next::Pause
        } else {
            next
        }
    }

    /// Also stops this vCPU if its call is not answered yet.
    fn after_call(&self) -> Next {
        match self.calls.holds(self.vcpu) {
            true => Next::Pause,
            false => self.after(Next::Continue),
        }
    }

    /// Converts an answer for the vCPU loop. An unhandled access is #GP, and the loop counts it.
    pub(crate) fn reply<T>(&self, outcome: Outcome<T>) -> MsrReply<T> {
        let reply = match outcome {
            Outcome::Handled(value) => MsrReply::Value(value),
            Outcome::Stop(value) => MsrReply::Pause(Some(value)),
            Outcome::NotHandled => MsrReply::Unclaimed,
            // No handler of this machine returns anything else.
            _ => MsrReply::Fault,
        };
        match self.latch.is_set() {
            true => reply.and_pause(),
            false => reply,
        }
    }

    /// Its registration for hypercalls. No access may be pending.
    pub fn save_para(&mut self) -> ParaMsrState {
        let para = self.msrs.para();
        para.map_or_else(ParaMsrState::default, |para| para.save())
    }

    /// Whether a saved registration can be restored here. Changes nothing.
    ///
    /// # Errors
    /// As [`restore_para`](Self::restore_para).
    pub fn check_para(&mut self, state: &ParaMsrState) -> Result<(), RestoreError> {
        let para = self.msrs.para();
        para.map_or(Ok(()), |para| para.check(state))
    }

    /// Restores a saved registration. If guests can't register here, it is dropped with a warning.
    ///
    /// # Errors
    /// The state has an unknown format, or its guest's calls can't work on this machine. Nothing has changed then.
    pub fn restore_para(&mut self, state: &ParaMsrState) -> Result<Restored, RestoreError> {
        if let Some(para) = self.msrs.para() {
            return para.restore(state);
        }
        if let Some(registration) = state.registration {
            warn!("para registration dropped: {registration}: guests can't register here");
        }
        Ok(Restored::Unregistered)
    }
}

impl<R: CallRegisters> VcpuIo for MachineIo<R> {
    fn pio_read(&mut self, port: u16, data: &mut [u8]) -> Next {
        self.after(self.bus.pio_read(port, data))
    }

    /// A byte to the hypercall port is a call. Any other write there is unclaimed.
    fn pio_write(&mut self, port: u16, data: &[u8]) -> Next {
        if self.gate.is_port(port) && data.len() == 1 && self.gate.port_call(self.vcpu, &self.calls)
        {
            return self.after_call();
        }
        self.after(self.bus.pio_write(port, data))
    }

    /// Never a call, since the registers belong to the string instruction. KVM reports a string of one element as
    /// `out`, so that one is a call with whatever is in the registers. The guest then only gets an answer in RAX.
    fn pio_write_string(&mut self, port: u16, element: &[u8]) -> Next {
        self.after(self.bus.pio_write(port, element))
    }

    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) -> Next {
        self.after(self.bus.mmio_read(addr, data))
    }

    fn mmio_write(&mut self, addr: u64, data: &[u8]) -> Next {
        self.after(self.bus.mmio_write(addr, data))
    }

    fn rdmsr(&mut self, index: u32) -> MsrReply<u64> {
        let outcome = self.msrs.read(index);
        self.reply(outcome)
    }

    fn wrmsr(&mut self, index: u32, data: u64) -> MsrReply<()> {
        let outcome = self.msrs.write(index, data);
        self.reply(outcome)
    }

    /// Hypercalls that KVM forwards through its Xen interface. Numbers, registers and answers are not Xen's.
    fn hypercall(&mut self, call: &mut Hypercall<'_>) -> Next {
        let (HypercallAbi::Xen, Some(cpl)) = (call.abi, call.cpl) else {
            return Next::Unclaimed;
        };
        let caller = Caller {
            vcpu: self.vcpu,
            cpl,
            long_mode: call.long_mode,
        };
        match self.gate.forwarded_call(&caller, &self.calls) {
            Some(result) => *call.ret = result,
            None => return Next::Unclaimed,
        }
        self.after_call()
    }
}
