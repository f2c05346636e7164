// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Saving a registration and restoring it, maybe on another host.

use std::fmt;
use std::ops::Range;

use hypercall_patch::Stub;
use hypercall_patch::memory::{Site, SiteError, Written, check_site};
use para_abi::{PARA_STATE_PAYLOAD, is_para_state_aligned};
use vm_memory::bitmap::BS;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemory};

use super::msr::{ParaMsr, ParaRegistration};
use super::page::ParaPage;

/// The saved state of a [`ParaMsr`].
///
/// Untrusted plain data: it has no effect until [`ParaMsr::restore`] has checked it against guest memory.
/// The restore reads the stub from guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ParaMsrState {
    /// The version of this structure: [`ParaMsrState::VERSION`].
    pub version: u32,
    /// The vCPU's registration, if there is one.
    pub registration: Option<ParaRegistration>,
    /// The stub that the host gave the guest, if it is registered. The guest can write other bytes to the site: a
    /// stub of the other kind there is not from the host, and no reason to refuse the restore. If this is `None`, the
    /// bytes at the site decide.
    #[cfg_attr(feature = "serde", serde(default))]
    pub stub: Option<Stub>,
}

impl ParaMsrState {
    /// The version of the format. No other version is read.
    pub const VERSION: u32 = 1;

    /// The state of a registered vCPU whose stub is unknown: see [`with_stub`](Self::with_stub).
    pub const fn registered(registration: ParaRegistration) -> Self {
        ParaMsrState {
            version: Self::VERSION,
            registration: Some(registration),
            stub: None,
        }
    }

    /// The same state for a guest that got this stub.
    #[must_use]
    pub const fn with_stub(mut self, stub: Option<Stub>) -> Self {
        self.stub = stub;
        self
    }

    /// The stub in the saved guest's memory. A VMM that has not chosen its own stub yet can choose one of the same
    /// kind. `None` if the guest isn't registered, if its registration is no longer valid, or if it put other bytes
    /// there. `memory` must be restored already.
    ///
    /// # Errors
    /// [`RestoreError::Version`] if the state's version is unknown.
    ///
    /// # Example
    /// ```
    /// use para_msr::para::{ParaMsr, ParaMsrState, ParaRegistration, PioPort, Stub};
    /// use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
    ///
    /// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
    /// memory.write_slice(&Stub::Vmx.bytes(), GuestAddress(0x2000))?;
    /// let registration = ParaRegistration::new(0x1000, 0x2000);
    /// let state = ParaMsrState::registered(registration);
    ///
    /// let mine = match state.stub_in_memory(&memory)? {
    ///     Some(Stub::Pio(_)) => Stub::Pio(PioPort::DEFAULT),
    ///     _ => Stub::Svm,
    /// };
    /// assert!(ParaMsr::new(&memory, mine).restore(&state).is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stub_in_memory<M: GuestMemory + ?Sized>(
        &self,
        memory: &M,
    ) -> Result<Option<Stub>, RestoreError> {
        Ok(match self.judge(memory)? {
            Judged::Holds { in_memory, .. } => in_memory,
            Judged::Unregistered | Judged::Lost { .. } => None,
        })
    }

    /// Checks the state against guest memory. Changes nothing.
    fn judge<'a, M: GuestMemory + ?Sized>(
        &self,
        memory: &'a M,
    ) -> Result<Judged<'a, M>, RestoreError> {
        if self.version != Self::VERSION {
            let found = self.version;
            return Err(RestoreError::Version { found });
        }
        let Some(registration) = self.registration else {
            return Ok(Judged::Unregistered);
        };
        let site = match check_again(memory, &registration) {
            Ok(site) => site,
            Err(reason) => {
                return Ok(Judged::Lost {
                    registration,
                    reason,
                });
            }
        };
        let bytes = site.bytes();
        let is_given = |stub: &Stub| {
            let given = self.stub.unwrap_or(*stub);
            given.ret_offset() == stub.ret_offset()
        };
        Ok(Judged::Holds {
            registration,
            site,
            bytes,
            in_memory: Stub::identify(&bytes).filter(is_given),
        })
    }
}

/// A saved registration, checked against guest memory.
enum Judged<'a, M: GuestMemory + ?Sized> {
    Unregistered,
    Lost {
        registration: ParaRegistration,
        reason: Lost,
    },
    Holds {
        registration: ParaRegistration,
        site: Site<'a, BS<'a, M::Bitmap>>,
        bytes: [u8; Stub::LEN],
        /// The stub that the guest got, unless it put something else there.
        in_memory: Option<Stub>,
    },
}

impl Default for ParaMsrState {
    /// The state of an unregistered vCPU.
    fn default() -> Self {
        ParaMsrState {
            version: Self::VERSION,
            registration: None,
            stub: None,
        }
    }
}

/// Why a state can't be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The state's version is unknown.
    #[error(
        "the saved para state has version {found} and only version {} is known, \
         restore it with the release that saved it",
        ParaMsrState::VERSION
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// One of the guest's stub and this host's stub is native and the other uses port I/O. Their `ret`s are at
    /// different offsets ([`Stub::ret_offset`]), so code that was saved in the stub would continue in the middle of
    /// an instruction. That may be a vCPU right after its call, or guest code that was interrupted there, whose
    /// address is on a stack that the VMM can't find.
    #[error(
        "the guest was saved with the hypercall stub \"{from}\" at guest address {gpa:#x}, which \"{to}\" can't \
         replace while the guest may be running it; restore on a host with the same kind of stub"
    )]
    OtherKind {
        /// Guest-physical address of the stub.
        gpa: u64,
        /// The guest's stub.
        from: Stub,
        /// This host's stub.
        to: Stub,
    },
}

/// The result of restoring a state. Displays as one log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the registration may have been dropped"]
#[non_exhaustive]
pub enum Restored {
    /// The vCPU was not registered.
    Unregistered,
    /// The vCPU is registered again.
    Registered {
        /// Its registration.
        registration: ParaRegistration,
        /// What happened to its four bytes.
        site: RestoredSite,
    },
    /// The registration doesn't fit guest memory, so the vCPU is no longer registered. Guest memory was not touched.
    Dropped {
        /// The dropped registration.
        registration: ParaRegistration,
        /// Why it was dropped.
        reason: Lost,
    },
}

/// What happened to the four bytes of a restored registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestoredSite {
    /// This host's stub was already there.
    Unchanged,
    /// Another host's stub of the same kind (native or port I/O) was there and was replaced.
    Repatched {
        /// The stub that was replaced.
        from: Stub,
    },
    /// There is no stub, so the bytes were left alone. The guest itself wrote them after it registered,
    /// and a stub would destroy them. A call there would not have reached the old host either.
    Foreign {
        /// The bytes.
        bytes: [u8; Stub::LEN],
    },
}

/// Why a restored registration was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lost {
    /// The para page's address isn't page aligned: the state is damaged.
    PageMisaligned,
    /// The para page is not readable and writable RAM.
    PageNotRam,
    /// The four bytes can't be patched.
    Site(SiteError),
}

impl<A: GuestAddressSpace> ParaMsr<A> {
    /// Saves the vCPU's registration. Call it when no WRMSR is pending (see `vcpu-loop`'s
    /// `complete`), otherwise a restored vCPU executes it again.
    pub fn save(&self) -> ParaMsrState {
        let registration = self.registration();
        ParaMsrState {
            version: ParaMsrState::VERSION,
            registration,
            stub: registration.map(|_| self.stub()),
        }
    }

    /// Checks whether [`restore`](Self::restore) would refuse a state, for a VMM that restores other parts first.
    /// Changes nothing. Guest memory must be restored already.
    ///
    /// # Errors
    /// Those of [`restore`](Self::restore).
    pub fn check(&self, state: &ParaMsrState) -> Result<(), RestoreError> {
        let memory = self.memory().memory();
        self.agree(&state.judge(&*memory)?)
    }

    /// Whether this host's stub can replace the saved guest's.
    fn agree<M: GuestMemory + ?Sized>(&self, judged: &Judged<'_, M>) -> Result<(), RestoreError> {
        match judged {
            Judged::Holds {
                registration,
                in_memory: Some(from),
                ..
            } if from.ret_offset() != self.stub().ret_offset() => Err(RestoreError::OtherKind {
                gpa: registration.hypercall_gpa,
                from: *from,
                to: self.stub(),
            }),
            _ => Ok(()),
        }
    }

    /// Restores a saved registration, after guest memory and before the vCPU runs.
    ///
    /// It is checked like a new one, but the para page isn't written, because the guest has its answer. A stub
    /// of another vendor or with another port is replaced by this host's. An earlier registration of this vCPU
    /// is dropped.
    ///
    /// # Errors
    /// [`RestoreError::Version`] if the state's version is unknown, [`RestoreError::OtherKind`] if the guest's stub
    /// is of another kind than this host's. Then nothing has changed.
    ///
    /// # Example
    /// ```
    /// use para_msr::para::{ParaMsr, ParaMsrState, ParaRegistration, Restored, RestoredSite, Stub};
    /// use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
    ///
    /// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
    /// memory.write_slice(&Stub::Vmx.bytes(), GuestAddress(0x2000))?; // saved on an Intel host
    /// let registration = ParaRegistration::new(0x1000, 0x2000);
    /// let state = ParaMsrState::registered(registration);
    ///
    /// let mut para = ParaMsr::new(&memory, Stub::Svm);
    /// let site = RestoredSite::Repatched { from: Stub::Vmx };
    /// assert_eq!(para.restore(&state)?, Restored::Registered { registration, site });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn restore(&mut self, state: &ParaMsrState) -> Result<Restored, RestoreError> {
        let memory = self.memory().memory();
        let judged = state.judge(&*memory)?;
        self.agree(&judged)?;
        Ok(match judged {
            Judged::Unregistered => {
                self.set_registration(None);
                Restored::Unregistered
            }
            Judged::Lost {
                registration,
                reason,
            } => {
                self.set_registration(None);
                Restored::Dropped {
                    registration,
                    reason,
                }
            }
            Judged::Holds {
                registration,
                site,
                bytes,
                in_memory,
            } => {
                self.prepare();
                self.set_registration(Some(registration));
                let written = in_memory.map(|from| (from, site.write(self.stub())));
                let site = match written {
                    None => RestoredSite::Foreign { bytes },
                    Some((_, Written::Unchanged)) => RestoredSite::Unchanged,
                    Some((from, Written::Changed)) => RestoredSite::Repatched { from },
                };
                Restored::Registered { registration, site }
            }
        })
    }
}

/// The bytes of an aligned page that a stub must not overlap (H9).
pub(super) fn payload_range(para_state_gpa: u64) -> Range<u64> {
    para_state_gpa..para_state_gpa + PARA_STATE_PAYLOAD as u64
}

/// The four bytes of a registration, if it is still valid.
fn check_again<'a, M: GuestMemory + ?Sized>(
    memory: &'a M,
    registration: &ParaRegistration,
) -> Result<Site<'a, BS<'a, M::Bitmap>>, Lost> {
    let para_state_gpa = registration.para_state_gpa;
    if !is_para_state_aligned(para_state_gpa) {
        return Err(Lost::PageMisaligned);
    }
    if ParaPage::open(memory, para_state_gpa).is_none() {
        return Err(Lost::PageNotRam);
    }
    let site = GuestAddress(registration.hypercall_gpa);
    Ok(check_site(
        memory,
        site,
        Some(payload_range(para_state_gpa)),
    )?)
}

impl From<SiteError> for Lost {
    fn from(reason: SiteError) -> Self {
        Lost::Site(reason)
    }
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Restored::Unregistered => f.write_str("no para registration to restore"),
            Restored::Registered { registration, site } => {
                write!(f, "para registration restored: {registration}, {site}")
            }
            Restored::Dropped {
                registration,
                reason,
            } => write!(f, "para registration dropped: {registration}: {reason}"),
        }
    }
}

impl fmt::Display for ParaRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "page {:#x}, hypercall site {:#x}",
            self.para_state_gpa, self.hypercall_gpa
        )
    }
}

impl fmt::Display for RestoredSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RestoredSite::Unchanged => f.write_str("which has this host's stub"),
            RestoredSite::Repatched { from } => {
                write!(f, "where this host's stub replaces \"{from}\"")
            }
            RestoredSite::Foreign {
                bytes: [a, b, c, d],
            } => write!(
                f,
                "where the guest has since written {a:02x} {b:02x} {c:02x} {d:02x}, left alone"
            ),
        }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lost::PageMisaligned => f.write_str("the page is not page aligned"),
            Lost::PageNotRam => f.write_str("the page is not readable and writable RAM"),
            Lost::Site(reason) => reason.fmt(f),
        }
    }
}
