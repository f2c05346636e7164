// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests that register for hypercalls by MSR 0x87655678, and how their calls reach a handler.
//!
//! The registration is [`para_msr`]'s, the handlers are [`crate::hypercall::calls`]. Here is what joins them to a machine:
//! the [`RouteChoice`] of instructions that a guest is given, the [`Gate`] behind which calls by port I/O are
//! answered, the [`MsrPlan`] of what KVM leaves to user space, each vCPU's [`VcpuMsrs`], and their part of a saved
//! vCPU. Nothing of it costs a guest anything that doesn't register: the probe runs, and KVM shares registers, from
//! the first registration on.

pub(crate) mod forward;
mod gate;
mod machine;
mod msrs;
mod plan;
mod route;

pub(crate) use forward::{FORWARD_MSR, hide_kvm_hypercalls};
pub use gate::{CallRegisters, Gate};
pub(crate) use machine::probe;
pub use machine::{Para, ParaConfig};
pub use msrs::{ParaHandler, VcpuMsrs};
pub use plan::{Error, InstalledMsrs, MsrPlan};
pub use route::{Probe, RouteChoice, RouteError};

#[cfg(test)]
mod tests;
