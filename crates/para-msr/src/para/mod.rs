// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One vCPU's registration with the 2007 MSR based hypercall API.
//!
//! The guest prepares a page, [`kvm_vcpu_para_state`](para_abi::kvm_vcpu_para_state), and writes its
//! guest-physical address to MSR [`MSR_KVM_API_MAGIC`]. The host answers in the page and patches four bytes
//! at the address that the page gives. From then on the guest calls its host there.
//!
//! [`ParaMsr`] is that host. It needs guest memory and a [`Stub`], but no KVM. It does the following, in this order
//! (R numbers refer to `docs/rules.md` in the repository):
//!
//! 1. The address must be page aligned (R3) and the first 24 bytes there readable and writable RAM (R4).
//!    Otherwise it is #GP(0), and nothing is touched.
//! 2. The 24 bytes are copied *once*. All decisions use the copy, because other vCPUs may change the page.
//! 3. `host_version := 1` (R5).
//! 4. A guest newer than the host (R6) is refused, and so is a site that isn't four bytes of RAM in one page,
//!    outside the 24 bytes (R7): `ret := 0xffffffff`, WRMSR succeeds, an earlier registration stays (R10).
//! 5. The registration is stored, the stub is written, then `ret := 0` with release ordering (R8): a vCPU
//!    that sees 0 also sees the stub.
//!
//! All stores go through [`GuestMemory`], so its dirty bitmap marks them. KVM's dirty log doesn't see them,
//! so a migration must merge both.

mod event;
mod msr;
mod page;
mod state;
mod throttle;

pub use hypercall_patch::memory::{SiteError, Written};
pub use hypercall_patch::{CpuidError, ForbiddenPort, PioPort, Stub, UnknownVendor, Vendor};
pub use para_abi::MSR_KVM_API_MAGIC;

pub use event::{Fault, FaultReason, Refusal, Refused, Registered, Registration};
pub use msr::{ParaMsr, ParaRegistration};
pub use state::{Lost, ParaMsrState, RestoreError, Restored, RestoredSite};
pub use throttle::EventThrottle;

#[cfg(doc)]
use vm_memory::GuestMemory;

use crate::filter::MsrFilter;

/// A filter that denies [`MSR_KVM_API_MAGIC`] and leaves everything else to KVM. A VMM that owns more MSRs denies
/// this one in its own filter instead.
///
/// ```
/// let filter = para_msr::para::filter();
/// assert!(!filter.allows_write(0x8765_5678) && !filter.allows_read(0x8765_5678));
/// assert!(filter.allows_read(0x10));
/// ```
pub fn filter() -> MsrFilter {
    MsrFilter::denying(MSR_KVM_API_MAGIC)
}
