// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The steps of a script, and the replies that its guest gets.

use crate::exit::{DebugExit, FatalExit, HypercallAbi, MemoryFault, SystemEvent};

/// What the scripted guest does next.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Step {
    /// `count` port reads of `size` bytes by one instruction.
    PioIn {
        /// Port.
        port: u16,
        /// Bytes per access.
        size: u8,
        /// Accesses.
        count: usize,
    },
    /// Port writes of `size` bytes each by one instruction.
    PioOut {
        /// Port.
        port: u16,
        /// Bytes per access.
        size: u8,
        /// All bytes.
        data: Vec<u8>,
    },
    /// A memory read.
    MmioRead {
        /// Address.
        addr: u64,
        /// Bytes.
        len: usize,
    },
    /// A memory write.
    MmioWrite {
        /// Address.
        addr: u64,
        /// Bytes.
        data: Vec<u8>,
    },
    /// `rdmsr`.
    Rdmsr {
        /// MSR.
        index: u32,
    },
    /// `wrmsr`.
    Wrmsr {
        /// MSR.
        index: u32,
        /// Value.
        data: u64,
    },
    /// A hypercall.
    Hypercall {
        /// Calling convention.
        abi: HypercallAbi,
        /// Number.
        number: u64,
    },
    /// A write to a Hyper-V SynIC register.
    HypervSynic {
        /// MSR.
        msr: u32,
    },
    /// `hlt`.
    Hlt,
    /// SEV-ES AP reset hold.
    ApResetHold,
    /// Triple fault.
    Shutdown,
    /// A system event.
    SystemEvent(SystemEvent),
    /// A debug exit.
    Debug(DebugExit),
    /// End of an interrupt.
    IoapicEoi {
        /// Vector.
        vector: u8,
    },
    /// The dirty ring is full.
    DirtyRingFull,
    /// The interrupt window opened.
    InterruptWindow,
    /// CR8 was lowered.
    SetTpr,
    /// The TPR was accessed.
    TprAccess,
    /// A bus lock.
    BusLock,
    /// No event window for too long, but the guest can continue.
    Notify,
    /// A fault on guest memory.
    MemoryFault(MemoryFault),
    /// An exit without its own variant ([`Exit::Other`](crate::Exit::Other)).
    Other {
        /// KVM's exit reason.
        reason: u32,
        /// The exit's data.
        data: Vec<u8>,
    },
    /// A signal that is not a kick.
    Signal,
    /// An exit that ends the vCPU.
    Fatal(FatalExit),
    /// The host fails the call.
    HostError,
    /// Another exit of the same instruction, once the previous step's exit is completed.
    Then(Box<Step>),
    /// Guest code without exits, until a kick. After the last step, the guest spins too.
    Spin,
}

impl Step {
    /// Makes this another exit of the previous step's instruction.
    pub fn then(self) -> Step {
        Step::Then(Box::new(self))
    }
}

/// A reply that the guest got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To a port read.
    PioIn(Vec<u8>),
    /// To a port write, which completed.
    PioOut,
    /// To a memory read.
    MmioRead(Vec<u8>),
    /// To a memory write, which completed.
    MmioWrite,
    /// To `rdmsr`: the value, or #GP.
    Rdmsr(Option<u64>),
    /// To `wrmsr`: success, or #GP.
    Wrmsr(Option<()>),
    /// To a hypercall.
    Hypercall(u64),
    /// To a Hyper-V notification, which completed.
    Hyperv,
    /// To [`Step::Other`]: the exit's data.
    Other(Vec<u8>),
}
