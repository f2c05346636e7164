// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The results of writes to the MSR, for the VMM's logs and policies.
//!
//! All addresses are guest-physical; events never contain host addresses (H11).

use std::fmt;

use hypercall_patch::Stub;
use hypercall_patch::memory::{SiteError, Written};
use para_abi::KVM_PARA_API_VERSION;

use crate::Outcome;

/// The result of one WRMSR of [`MSR_KVM_API_MAGIC`](para_abi::MSR_KVM_API_MAGIC).
///
/// It displays as one log line. A guest can cause any number of them, so limit them with
/// [`EventThrottle`](super::EventThrottle).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a fault must become #GP(0)"]
#[non_exhaustive]
pub enum Registration {
    /// The guest is registered: `ret` is 0, WRMSR succeeds.
    Registered(Registered),
    /// The guest was refused: `ret` is 0xffffffff, WRMSR succeeds, an earlier registration is still valid.
    Refused(Refused),
    /// #GP(0). Guest memory and an earlier registration are unchanged.
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
    /// The structure's size in bytes according to the guest, 4096 in the known guests. It has no effect (H2).
    pub size: u32,
    /// The stub that is at the site now.
    pub stub: Stub,
    /// Whether it had to be written. If vCPUs share a site, it is [`Written::Unchanged`] for all but the first (R11).
    pub written: Written,
}

/// A registration that the guest was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refused {
    /// Guest-physical address of the para page.
    pub para_state_gpa: u64,
    /// Guest-physical address of the four bytes to patch.
    pub hypercall_gpa: u64,
    /// The API version that the guest speaks.
    pub guest_version: u32,
    /// The structure's size in bytes according to the guest.
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
    /// Why it is #GP(0).
    pub reason: FaultReason,
}

/// Why a write is #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultReason {
    /// It isn't a multiple of 4096 (R3).
    Misaligned,
    /// The first 24 bytes there are not RAM that the guest can read and write (R4, H10).
    NotRam,
}

impl Registration {
    /// The outcome of the vCPU's WRMSR.
    pub fn outcome(&self) -> Outcome<()> {
        match self {
            Registration::Registered(_) | Registration::Refused(_) => Outcome::Handled(()),
            Registration::Fault(_) => Outcome::GpException,
        }
    }

    /// The details, if the guest is now registered.
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
            FaultReason::NotRam => "there is no readable and writable RAM",
        };
        write!(
            f,
            "para guest got #GP for a page at {:#x}: {reason}",
            self.value
        )
    }
}
