// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The registration of one vCPU by the 2007 MSR based hypercall API.
//!
//! The guest prepares a page, [`kvm_vcpu_para_state`](para_abi::kvm_vcpu_para_state), and writes its
//! guest-physical address to MSR [`MSR_KVM_API_MAGIC`]. The host answers in the page and patches four bytes
//! at the address that the page names: from then on the guest calls its host there.
//!
//! [`ParaMsr`] is that host. It knows guest memory and a [`Stub`], no KVM. What it does, in this order (the numbers R are
//! those of the repository's `docs/rules.md`):
//!
//! 1. The address must be page aligned (R3) and its first 24 bytes RAM that can be read and written (R4);
//!    otherwise #GP(0), and nothing was touched.
//! 2. The 24 bytes are copied *once*; only the copy is decided on, whatever other vCPUs do to the page.
//! 3. `host_version := 1` (R5).
//! 4. A guest newer than the host (R6), or a site that is not four bytes of RAM in one page apart from the 24
//!    bytes (R7), is refused: `ret := 0xffffffff`, WRMSR succeeds, an earlier registration stays (R10).
//! 5. The registration is stored, the stub is written, then `ret := 0` with release order (R8): a vCPU that
//!    sees 0 sees the stub.
//!
//! All stores go through [`GuestMemory`] and so mark its dirty bitmap, but KVM's dirty log doesn't know them:
//! whoever migrates must merge both.

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

/// The filter of a VM that answers for [`MSR_KVM_API_MAGIC`] and leaves all else to KVM. A VMM that owns more MSRs
/// denies it in its own filter instead.
///
/// ```
/// let filter = para_msr::para::filter();
/// assert!(!filter.allows_write(0x8765_5678) && !filter.allows_read(0x8765_5678));
/// assert!(filter.allows_read(0x10));
/// ```
pub fn filter() -> MsrFilter {
    MsrFilter::denying(MSR_KVM_API_MAGIC)
}
