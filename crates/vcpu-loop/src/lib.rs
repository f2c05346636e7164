// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An event-driven vCPU loop for VMMs on KVM.
pub mod bus;
mod dispatch;
mod error;
mod event;
mod exit;
mod history;
pub mod kick;
#[cfg(feature = "kvm")]
pub mod kvm;

mod report;
#[cfg(any(test, feature = "test-utils"))]
pub mod script;
mod set;
mod state;
mod thread;
mod vcpu;

pub use dispatch::{Access, Flow, Leave, Unclaimed, dispatch};
pub use error::{Error, Result};
pub use event::{VcpuEvent, VcpuEventSender, VcpuEventSubscriber, VcpuEvents, vcpu_events};
pub use exit::{
    DebugExit, Exit, FatalExit, Hypercall, HypercallAbi, HypervExit, INTERNAL_ERROR_WORDS,
    MMIO_MAX, SYSTEM_EVENT_WORDS, SystemEvent,
};
pub use history::{ExitHistory, ExitKind, ExitRecord, HISTORY};
pub use kick::{Kick, KickSignal};
pub use report::{
    CpuDump, DescriptorTable, FailureReason, FailureReport, INSTRUCTION_BYTES, InstructionBytes,
    Registers, Segment,
};
pub use set::VcpuSet;
pub use state::{Request, Response, State, step};
pub use thread::StateHooks;
pub use vcpu::{BoxError, ManagedVcpu, MsrReply, Next, SaveVcpu, Vcpu, VcpuId, VcpuIo};
