// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Calls by port I/O: when they are answered, and whose registers they have.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use hypercall_patch::PioPort;
use para_abi::{Convention, Registers, Width};
use vcpu_loop::kvm::{CpuMode, GeneralRegister, SyncRegisters};

use crate::hypercall::calls::{Caller, Hypercalls};

/// A vCPU's registers while one of its exits is answered, without a system call.
pub trait CallRegisters: Send + Sync + 'static {
    /// From the next exit on they are there.
    fn share(&self);
    /// Whether they are those of the exit in hand: they may not be if they were shared while it was on its way.
    fn are_filled(&self) -> bool;
    /// The general registers at the exit, as far as calls use them.
    fn get(&self) -> Registers;
    /// Changes RAX at the next entry.
    fn set_rax(&self, rax: u64);
    /// The mode of the code that exited.
    fn mode(&self) -> CpuMode;
}

impl CallRegisters for SyncRegisters {
    fn share(&self) {
        SyncRegisters::share(self, true);
    }

    #[inline]
    fn get(&self) -> Registers {
        Registers {
            rax: self.general(GeneralRegister::Rax),
            rbx: self.general(GeneralRegister::Rbx),
            rcx: self.general(GeneralRegister::Rcx),
            rdx: self.general(GeneralRegister::Rdx),
            rsi: self.general(GeneralRegister::Rsi),
            rdi: self.general(GeneralRegister::Rdi),
            rbp: self.general(GeneralRegister::Rbp),
            r8: self.general(GeneralRegister::R8),
            r9: self.general(GeneralRegister::R9),
            r10: self.general(GeneralRegister::R10),
        }
    }

    #[inline]
    fn are_filled(&self) -> bool {
        SyncRegisters::are_filled(self)
    }

    fn set_rax(&self, rax: u64) {
        SyncRegisters::set_rax(self, rax);
    }

    fn mode(&self) -> CpuMode {
        SyncRegisters::mode(self)
    }
}

/// Whether hypercalls reach the VMM, and the registers of all vCPUs that may make one.
///
/// It is opened for all vCPUs by the first registration that is accepted, *before* the instructions of a call are
/// written into the guest: a vCPU that did not register itself may call, as it may with the vendor's instruction, and
/// whoever calls because of those instructions has registers that are shared. A write to the port that was on its
/// way already may have none; then it is one that nobody claims.
pub struct Gate<R> {
    /// Outside of the port space where there is none.
    port: u32,
    convention: Convention,
    open: AtomicBool,
    registers: Box<[R]>,
}

impl<R> fmt::Debug for Gate<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("port", &self.port)
            .field("convention", &self.convention)
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl<R: CallRegisters> Gate<R> {
    /// A closed gate of vCPUs with `registers`, in order; `port` where calls may come by port I/O.
    pub fn new(port: Option<PioPort>, convention: Convention, registers: Vec<R>) -> Self {
        Gate {
            port: port.map_or(u32::MAX, |port| u16::from(port).into()),
            convention,
            open: AtomicBool::new(false),
            registers: registers.into_boxed_slice(),
        }
    }

    /// A machine without hypercalls that reach the VMM.
    pub fn shut() -> Self {
        Gate::new(None, Convention::Kvm, Vec::new())
    }

    /// From now on calls are answered. The lock-prefixed stores of this come before those of whatever the caller does
    /// next, so a guest that sees the instructions of a call exits to an open gate.
    pub fn open(&self) {
        if !self.open.load(Ordering::Acquire) {
            self.registers.iter().for_each(R::share);
            self.open.store(true, Ordering::SeqCst);
        }
    }

    /// Whether a byte that is written to `port` may be a call. One comparison for any other port.
    pub fn is_port(&self, port: u16) -> bool {
        u32::from(port) == self.port
    }

    /// Answers a call of `vcpu` by port I/O, if the gate is open and KVM shared the registers of this exit. The call and
    /// its arguments are in the registers; the byte that is written to the port has no meaning.
    #[must_use]
    pub fn port_call(&self, vcpu: u32, calls: &Hypercalls) -> bool {
        let Some(registers) = self.registers.get(vcpu as usize) else {
            return false;
        };
        if !self.open.load(Ordering::Acquire) || !registers.are_filled() {
            return false;
        }
        let CpuMode { cpl, long_mode } = registers.mode();
        let caller = Caller {
            vcpu,
            cpl,
            long_mode,
        };
        registers.set_rax(self.answer(calls, &caller, registers.get()));
        true
    }

    /// Answers a call that KVM forwarded, whose caller it names. The result goes to RAX, which KVM sets.
    pub fn forwarded_call(&self, caller: &Caller, calls: &Hypercalls) -> Option<u64> {
        let registers = self.registers.get(caller.vcpu as usize)?;
        // Where calls are forwarded, the gate is open before vCPUs run.
        debug_assert!(registers.are_filled());
        Some(self.answer(calls, caller, registers.get()))
    }

    /// What RAX is after the call.
    fn answer(&self, calls: &Hypercalls, caller: &Caller, mut registers: Registers) -> u64 {
        let width = match caller.long_mode {
            true => Width::Long,
            false => Width::Legacy,
        };
        let call = self.convention.call(width, &registers);
        let result = calls.call(caller, &call);
        self.convention.set_result(width, &mut registers, result);
        registers.rax
    }
}
