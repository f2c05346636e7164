// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The traits between the loop, the vCPU and the VMM.

use std::sync::Arc;

use crate::exit::{Exit, Hypercall, HypervExit};
pub use crate::id::{BoxError, VcpuId};
use crate::kick::Kick;
use crate::report::CpuDump;

/// A vCPU that runs guest code until an exit.
///
/// Both methods first deliver the reply to the previous exit. [`Exit::Interrupted`] means that *nothing is pending*
/// and that the kick which caused it is cleared. After `Interrupted`, the caller checks its mailbox; it answers any
/// other exit.
pub trait Vcpu {
    /// A host failure. Guest mistakes are exits or replies, never errors.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Enters the guest.
    ///
    /// # Errors
    /// The host refused to run the vCPU.
    fn run(&mut self) -> Result<Exit<'_>, Self::Error>;

    /// Finishes the previous exit and runs no further guest instruction. It exits again if the same instruction
    /// makes another access; repeat until [`Exit::Interrupted`].
    ///
    /// # Errors
    /// The host refused to run the vCPU.
    fn complete(&mut self) -> Result<Exit<'_>, Self::Error>;
}

/// A vCPU whose state can be saved and restored.
pub trait SaveVcpu: Vcpu {
    /// The saved state, plain data.
    type State: Send + 'static;

    /// Reads the state. Only legal after [`Exit::Interrupted`] (or before the first `run`).
    ///
    /// # Errors
    /// The host refused one of the reads.
    fn save(&mut self) -> Result<Self::State, Self::Error>;

    /// Finishes an incomplete access, so that a [`restore`](SaveVcpu::restore) can follow. Does nothing if nothing is
    /// pending.
    ///
    /// KVM can't drop an access. It can only finish it with the reply in the run page, and that may write guest memory.
    /// So the order is: abandon, replace guest memory, restore. A [`VcpuSet`](crate::VcpuSet) does this itself: its
    /// vCPUs have nothing pending once they are paused or have ended.
    ///
    /// # Errors
    /// The host refused to run the vCPU, or the access never ends. In both cases it is still pending.
    fn abandon(&mut self) -> Result<(), Self::Error>;

    /// Replaces the state. Nothing may be pending: see [`abandon`](SaveVcpu::abandon).
    ///
    /// # Errors
    /// An access is pending, the state doesn't fit, or the host refused one of the writes. Unless
    /// [`left_unchanged`](SaveVcpu::left_unchanged) says otherwise, the vCPU must not run before a `restore`
    /// succeeds.
    fn restore(&mut self, state: &Self::State) -> Result<(), Self::Error>;

    /// Whether a `restore` that failed with `error` changed nothing, so that the vCPU can continue with its old state.
    fn left_unchanged(error: &Self::Error) -> bool {
        let _ = error;
        false
    }
}

/// What a [`VcpuSet`](crate::VcpuSet) also needs: to kick the vCPU, to tell it of pauses, and to dump its registers.
pub trait ManagedVcpu: SaveVcpu {
    /// The handle with which other threads take this vCPU out of the guest.
    fn kicker(&self) -> Arc<dyn Kick>;

    /// Called when the vCPU was paused, or stopped while it ran. Nothing is pending, and no guest code runs until it is
    /// resumed.
    ///
    /// # Errors
    /// The host refused; the vCPU fails.
    fn paused(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Called before the vCPU runs: for the first time, after a pause, or after a restore.
    ///
    /// # Errors
    /// The host refused; the vCPU fails.
    fn resuming(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Registers and the bytes at the instruction pointer, for a report. `None` if they can't be read.
    fn dump(&mut self) -> Option<CpuDump> {
        None
    }
}

/// What happens after an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub enum Next {
    /// Run the guest.
    Continue,
    /// Complete the access, then pause the vCPU, for example after a power-off. The vCPU sends an event, and stays
    /// paused until that is [acknowledged](crate::VcpuSet::acknowledge).
    Pause,
    /// No device answered. A read returns all ones, the access is counted, and the guest continues.
    Unclaimed,
}

/// The answer to an MSR access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub enum MsrReply<T> {
    /// The access succeeds with this value.
    Value(T),
    /// The access takes #GP.
    Fault,
    /// No handler answered: #GP, and the access is counted.
    Unclaimed,
    /// [`MsrReply::Value`], or [`MsrReply::Fault`] without a value, followed by a [`Next::Pause`].
    Pause(Option<T>),
}

impl<T> MsrReply<T> {
    /// The same answer to the guest, and a pause.
    pub fn and_pause(self) -> Self {
        match self {
            MsrReply::Value(value) => MsrReply::Pause(Some(value)),
            MsrReply::Fault | MsrReply::Unclaimed => MsrReply::Pause(None),
            MsrReply::Pause(_) => self,
        }
    }
}

/// What a vCPU needs from the VMM. Every method's default leaves the access unclaimed.
///
/// Each vCPU's thread owns one object, so the object's own state needs no lock. Methods must not wait for the thread
/// that controls the vCPUs: a pause would deadlock until its deadline. If the vCPU is kicked during a blocking system
/// call, the call returns `EINTR`, because the signal's handler is installed without `SA_RESTART`. Repeat it, as `std`
/// does in `read_exact` and `write_all`.
pub trait VcpuIo {
    /// One port read of 1, 2 or 4 bytes; `data` holds all ones. A string instruction calls once per element.
    fn pio_read(&mut self, port: u16, data: &mut [u8]) -> Next {
        let _ = (port, data);
        Next::Unclaimed
    }

    /// One port write of 1, 2 or 4 bytes. A string instruction calls once per element, through
    /// [`pio_write_string`](VcpuIo::pio_write_string).
    fn pio_write(&mut self, port: u16, data: &[u8]) -> Next {
        let _ = (port, data);
        Next::Unclaimed
    }

    /// One element of a string instruction's port write, 1, 2 or 4 bytes; [`pio_write`](VcpuIo::pio_write)
    /// by default. For ports that must tell `out` from a string instruction, such as a hypercall port that reads
    /// registers. A string instruction that exits with a single element looks like `out`.
    fn pio_write_string(&mut self, port: u16, element: &[u8]) -> Next {
        self.pio_write(port, element)
    }

    /// One memory read of up to 8 bytes; `data` holds all ones.
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) -> Next {
        let _ = (addr, data);
        Next::Unclaimed
    }

    /// One memory write of up to 8 bytes.
    fn mmio_write(&mut self, addr: u64, data: &[u8]) -> Next {
        let _ = (addr, data);
        Next::Unclaimed
    }

    /// A read of an MSR that KVM leaves to user space.
    fn rdmsr(&mut self, index: u32) -> MsrReply<u64> {
        let _ = index;
        MsrReply::Unclaimed
    }

    /// A write of an MSR that KVM leaves to user space.
    fn wrmsr(&mut self, index: u32, data: u64) -> MsrReply<()> {
        let _ = (index, data);
        MsrReply::Unclaimed
    }

    /// A hypercall of any ABI; `*call.ret` holds [`HypercallAbi::unknown`](crate::HypercallAbi::unknown).
    fn hypercall(&mut self, call: &mut Hypercall<'_>) -> Next {
        let _ = call;
        Next::Unclaimed
    }

    /// A Hyper-V notification other than a hypercall.
    fn hyperv(&mut self, exit: &mut HypervExit<'_>) -> Next {
        let _ = exit;
        Next::Unclaimed
    }

    /// The guest ended a level-triggered interrupt (split irqchip).
    fn ioapic_eoi(&mut self, vector: u8) -> Next {
        let _ = vector;
        Next::Unclaimed
    }

    /// Any exit that has no method above and need not end the vCPU: [`Exit::MemoryFault`], [`Exit::Other`],
    /// [`Exit::Notify`], [`Exit::BusLock`], [`Exit::InterruptWindow`], [`Exit::SetTpr`], [`Exit::TprAccess`], and exits
    /// that later versions add. If the exit needs a reply, write it in place. If unclaimed, the first two end the
    /// vCPU with a [`FatalExit`](crate::FatalExit), and the guest continues after the others.
    fn other_exit(&mut self, exit: &mut Exit<'_>) -> Next {
        let _ = exit;
        Next::Unclaimed
    }
}
