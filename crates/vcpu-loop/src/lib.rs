// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An event-driven vCPU loop for VMMs on KVM: exits, dispatch, kicks, pause, save, stop, and failures.
//!
//! A VMM implements [`VcpuIo`], which handles the guest's accesses, and gives vCPUs to a [`VcpuSet`], which runs each
//! on its own thread. Everything else arrives as [`VcpuEvent`]s in the VMM's event loop. The loop itself has no port
//! numbers and no MSR policy, prints nothing, and never ends the process.
//!
//! | module or type | is |
//! |---|---|
//! | [`Exit`] | why the vCPU left the guest, with the slots for replies |
//! | [`Vcpu`], [`SaveVcpu`], [`ManagedVcpu`] | what the loop needs from a vCPU |
//! | [`VcpuIo`], [`dispatch`] | what a vCPU needs from the VMM, and how exits get there |
//! | [`VcpuSet`], [`State`], [`step`], [`occur`] | control: ask all, then wait for all, with a deadline |
//! | [`kick`] | how a request reaches a running guest, and why none is lost |
//! | [`VcpuEvent`], [`FailureReport`] | what the VMM is told |
//! | [`bus`] | a frozen device bus, also for `vm-device`'s traits (feature `vm-device`) |
//! | `kvm` (feature `kvm`) | `KvmVcpu` and its saved state |
//! | `script` (feature `test-utils`) | a scripted vCPU, stricter than KVM, for tests without /dev/kvm |
//!
//! All `unsafe` is in `src/sys/`.
//!
//! # Example
//!
//! A scripted guest writes a port, then halts. On KVM only the first line of `main` differs (see
//! `examples/real_mode.rs`).
//!
#![cfg_attr(feature = "test-utils", doc = "```")]
#![cfg_attr(not(feature = "test-utils"), doc = "```ignore")]
//! use std::time::Duration;
//! use vcpu_loop::script::{ScriptedVcpu, Step};
//! use vcpu_loop::{Next, VcpuEvent, VcpuIo, VcpuSet, vcpu_events};
//!
//! struct Console;
//!
//! impl VcpuIo for Console {
//!     fn pio_write(&mut self, port: u16, data: &[u8]) -> Next {
//!         if port != 0x3f8 {
//!             return Next::Unclaimed;
//!         }
//!         print!("{}", String::from_utf8_lossy(data));
//!         Next::Continue
//!     }
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let vcpu = ScriptedVcpu::new([Step::PioOut { port: 0x3f8, size: 1, data: b"hi".to_vec() }, Step::Hlt]);
//!     let deadline = Duration::from_secs(1);
//!     let (sender, events) = vcpu_events()?;
//!     let mut vcpus = VcpuSet::new(sender);
//!     vcpus.spawn(0, vcpu, Console)?;
//!     vcpus.resume(deadline)?;
//!     assert!(matches!(events.recv_timeout(deadline), Some(VcpuEvent::Halted { .. })));
//!     vcpus.stop(deadline)?;
//!     Ok(())
//! }
//! ```
//!
//! # The life of a vCPU
//!
//! - Its thread starts *paused*. [`VcpuSet::resume`] makes it *running*.
//! - While it runs, it obeys requests only after [`Exit::Interrupted`], when nothing is pending. So a vCPU is never
//!   paused in the middle of an instruction, and a paused vCPU can always be saved.
//! - A device's [`Next::Pause`], a breakpoint or a full dirty ring makes it *paused by itself*. It can't be resumed
//!   before [`VcpuSet::acknowledge`]. Otherwise, a snapshot's pause and resume could undo a power-off.
//! - A triple fault, a system event or a fatal exit makes it *ended*: it still answers requests, but needs a
//!   [`VcpuSet::restore`] to run again.
//! - A host failure or a panic of a device makes it *failed*: it can only be stopped.
//!
//! Each of the last three sends an event; triple faults, fatal exits and failures come with a report.
//!
//! The loop catches panics, so build the VMM with unwinding (`panic = "unwind"`, the default).
#![cfg_attr(not(test), deny(clippy::too_many_lines))]

#[cfg(all(feature = "kvm", not(target_arch = "x86_64")))]
compile_error!(
    "the `kvm` feature is for x86-64 hosts, build for x86_64 or without default features"
);

mod builder;
pub mod bus;
mod counters;
mod dispatch;
mod doorbell;
mod error;
mod event;
mod exit;
mod guest;
mod handle;
mod history;
mod hooks;
mod id;
pub mod kick;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
pub mod kvm;
mod report;
mod runner;
#[cfg(any(test, feature = "test-utils"))]
pub mod script;
mod set;
mod spawn;
mod state;
#[cfg(feature = "event-manager")]
mod subscriber;
/// The model of kicks (`tests/model.rs`) replaces these by loom's.
mod sync {
    pub(crate) use std::sync::{Mutex, MutexGuard, atomic};
}
mod sys;
mod thread;
mod vcpu;

pub use builder::{SpawnError, Stopped, StoppedVcpu, VcpuBuilder};
pub use counters::ExitCounters;
pub use dispatch::{Access, Flow, Leave, Unclaimed, dispatch};
pub use error::{Error, Result, StartError, Unchanged};
pub use event::{VcpuEvent, VcpuEventSender, VcpuEvents, vcpu_events};
pub use exit::{
    CoalescedWrite, CoalescedWrites, DebugExit, Exit, FatalExit, Hypercall, HypercallAbi,
    HypervExit, INTERNAL_ERROR_WORDS, MMIO_MAX, MemoryFault, OtherExit, SYSTEM_EVENT_WORDS,
    SystemEvent,
};
pub use history::{ExitHistory, ExitKind, ExitRecord, HISTORY};
pub use hooks::StateHooks;
pub use kick::{Kick, KickSignal};
pub use report::{
    CpuDump, DescriptorTable, FailureReason, FailureReport, INSTRUCTION_BYTES, InstructionBytes,
    Registers, Segment,
};
pub use runner::VcpuRunner;
pub use set::VcpuSet;
pub use state::{Incident, Request, Response, State, occur, step};
#[cfg(feature = "event-manager")]
pub use subscriber::VcpuEventSubscriber;
pub use vcpu::{BoxError, ManagedVcpu, MsrReply, Next, SaveVcpu, Vcpu, VcpuId, VcpuIo};
