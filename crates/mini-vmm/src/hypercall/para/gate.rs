// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Calls through port I/O: when they are answered, and the registers that they use.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use hypercall_patch::PioPort;
use para_abi::{Convention, Registers, Width};
use vcpu_loop::kvm::{CpuMode, GeneralRegister, SyncRegisters};

use crate::hypercall::calls::{Caller, Hypercalls};

/// A vCPU's registers during one of its exits, read and written without a system call.
pub trait CallRegisters: Send + Sync + 'static {
    /// Makes them available from the next exit on.
    fn share(&self);
    /// Whether they belong to the current exit. They don't if that exit was under way when they were first shared.
    fn are_filled(&self) -> bool;
    /// The general registers that calls use, at the exit.
    fn get(&self) -> Registers;
    /// Sets RAX for the next entry.
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

/// Whether hypercalls reach the VMM, and the registers of all vCPUs.
///
/// The first accepted registration opens it for all vCPUs, *before* the call instructions are written to the guest. Any
/// vCPU may then call, as with the vendor's instruction, even if it did not register itself. A vCPU that executes these
/// instructions always has shared registers. A write to the port that was already under way may not; it counts as
/// unclaimed.
pub struct Gate<R> {
    /// A value outside the port space if there is no port.
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
    /// A closed gate for vCPUs with `registers`, in order. `port` is set if calls may use port I/O.
    pub fn new(port: Option<PioPort>, convention: Convention, registers: Vec<R>) -> Self {
        Gate {
            port: port.map_or(u32::MAX, |port| u16::from(port).into()),
            convention,
            open: AtomicBool::new(false),
            registers: registers.into_boxed_slice(),
        }
    }

    /// For a machine where no hypercalls reach the VMM.
    pub fn shut() -> Self {
        Gate::new(None, Convention::Kvm, Vec::new())
    }

    /// Calls are answered from now on. This does locked operations before the caller's next stores. So a guest that
    /// sees the call instructions exits to an open gate.
    pub fn open(&self) {
        if !self.open.load(Ordering::Acquire) {
            self.registers.iter().for_each(R::share);
            self.open.store(true, Ordering::SeqCst);
        }
    }

    /// Whether a byte written to `port` may be a call. Costs one comparison for any other port.
    pub fn is_port(&self, port: u16) -> bool {
        u32::from(port) == self.port
    }

    /// Answers a call of `vcpu` through port I/O, if the gate is open and KVM shared the registers at this exit. The
    /// call and its arguments are in the registers; the byte written to the port has no meaning.
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

    /// Answers a call that KVM forwarded, with the caller that KVM reported. KVM sets RAX to the result.
    pub fn forwarded_call(&self, caller: &Caller, calls: &Hypercalls) -> Option<u64> {
        let registers = self.registers.get(caller.vcpu as usize)?;
        // If calls are forwarded, the gate is open before vCPUs run.
        debug_assert!(registers.are_filled());
        Some(self.answer(calls, caller, registers.get()))
    }

    /// The value of RAX after the call.
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
