// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests that register for hypercalls through MSR 0x87655678, and how their calls reach a handler.
//!
//! [`para_msr`] does the registration, and [`crate::hypercall::calls`] has the handlers. This module connects them to a
//! machine: [`RouteChoice`] chooses the guest's call instructions, [`Gate`] enables calls through port I/O, [`MsrPlan`]
//! says which MSRs KVM leaves to user space, and [`VcpuMsrs`] are each vCPU's MSRs and their part of its saved state. A
//! guest that doesn't register costs nothing: the probe runs, and KVM shares registers, only after the first
//! registration.

pub(crate) mod forward;
mod gate;
mod machine;
mod msrs;
mod plan;
mod route;

pub(crate) use forward::hide_kvm_hypercalls;
pub use gate::{CallRegisters, Gate};
pub(crate) use machine::probe;
pub use machine::{Para, ParaConfig};
pub use msrs::{ParaHandler, VcpuMsrs};
pub use plan::{Error, InstalledMsrs, MsrPlan};
pub use route::{Probe, RouteChoice, RouteError};

#[cfg(test)]
mod tests;
