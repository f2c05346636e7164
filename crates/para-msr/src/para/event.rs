// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a write of the MSR came to, for logs and policies of the VMM.
//!
//! All addresses are guest-physical: where guest memory lies in the host is nobody's business (H11).

use std::fmt;

use hypercall_patch::Stub;
use hypercall_patch::memory::{SiteError, Written};
use para_abi::KVM_PARA_API_VERSION;

use crate::Outcome;

/// What one WRMSR of [`MSR_KVM_API_MAGIC`](para_abi::MSR_KVM_API_MAGIC) came to.
///
/// It displays as one line for a log. A guest can cause any number of them: see
/// [`EventThrottle`](super::EventThrottle).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a fault must become #GP(0)"]
#[non_exhaustive]
pub enum Registration {
    /// The guest may call: `ret` is 0, WRMSR succeeds.
    Registered(Registered),
    /// The guest was told no: `ret` is 0xffffffff, WRMSR succeeds, an earlier registration is still valid.
    Refused(Refused),
    /// #GP(0). Guest memory and an earlier registration are as they were.
    Fault(Fault),
}

/// A registration that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Registered {
    /// Guest-physical address of the para page.
    pub para_state_gpa: u64,
    /// Guest-physical address of the four patched bytes.
    pub hypercall_gpa: u64,
    /// The API version that the guest speaks: 0 or 1.
    pub guest_version: u32,
    /// What the guest gave as the structure's size in bytes; 4096 from the known guests. It means nothing
    /// (H2).
    pub size: u32,
    /// What stands at the site now.
    pub stub: Stub,
    /// Whether it had to be written: [`Written::Unchanged`] for all vCPUs but the first that share a site (R11).
    pub written: Written,
}

/// A registration that the guest was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refused {
    /// Guest-physical address of the para page.
    pub para_state_gpa: u64,
    /// Where the guest wanted its four bytes.
    pub hypercall_gpa: u64,
    /// The API version that the guest speaks.
    pub guest_version: u32,
    /// What the guest gave as the structure's size.
    pub size: u32,
    /// Why it was refused.
    pub reason: Refusal,
}

/// Why a guest is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The guest speaks a newer version of the API than the host (R6, R13).
    NewerGuest,
    /// The four bytes can't be patched (R7, H1, H9, H10).
    Site(SiteError),
}

/// A write that is #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// What the guest wrote: EDX:EAX.
    pub value: u64,
    /// What is wrong with it.
    pub reason: FaultReason,
}

/// Why a write is #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultReason {
    /// No multiple of 4096 (R3).
    Misaligned,
    /// The first 24 bytes there are not RAM that the guest can read and write (R4, H10).
    NotRam,
}

impl Registration {
    /// What the vCPU's WRMSR comes to.
    pub fn outcome(&self) -> Outcome<()> {
        match self {
            Registration::Registered(_) | Registration::Refused(_) => Outcome::Handled(()),
            Registration::Fault(_) => Outcome::GpException,
        }
    }

    /// The details, if the guest is registered by it.
    pub fn registered(&self) -> Option<&Registered> {
        match self {
            Registration::Registered(registered) => Some(registered),
            _ => None,
        }
    }
}

impl fmt::Display for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Registration::Registered(event) => event.fmt(f),
            Registration::Refused(event) => event.fmt(f),
            Registration::Fault(event) => event.fmt(f),
        }
    }
}

impl fmt::Display for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.written {
            Written::Changed => "written to",
            Written::Unchanged => "found at",
        };
        write!(
            f,
            "para guest registered: page {:#x}, API version {}, size {}, \
             \"{}\" {how} {:#x}",
            self.para_state_gpa, self.guest_version, self.size, self.stub, self.hypercall_gpa
        )
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "para guest refused: page {:#x}, API version {}, size {}: ",
            self.para_state_gpa, self.guest_version, self.size
        )?;
        match self.reason {
            Refusal::NewerGuest => write!(
                f,
                "the guest is newer than the host's API version {KVM_PARA_API_VERSION}"
            ),
            Refusal::Site(reason) => reason.fmt(f),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.reason {
            FaultReason::Misaligned => "it is not page aligned",
            FaultReason::NotRam => "there is no RAM for reading and writing",
        };
        write!(
            f,
            "para guest got #GP for a page at {:#x}: {reason}",
            self.value
        )
    }
}
