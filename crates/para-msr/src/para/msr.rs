// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The state machine of one vCPU's registration.

use std::fmt;

use hypercall_patch::Stub;
use hypercall_patch::memory::{SiteError, Written, check_site};
use para_abi::{MSR_KVM_API_MAGIC, ParaStatePayload, is_para_state_aligned};
use vm_memory::{GuestAddress, GuestAddressSpace};

use super::event::{Fault, FaultReason, Refusal, Refused, Registered, Registration};
use super::page::ParaPage;
use super::state::payload_range;
use crate::{MsrDispatch, MsrDispatchBuilder, MsrHandler, Outcome};

type Observer = Box<dyn FnMut(&Registration) + Send + Sync>;
type Prelude = Box<dyn FnMut() + Send + Sync>;

/// A vCPU's registration. It has only guest-physical addresses, because guest memory is looked up again for
/// every access (H4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ParaRegistration {
    /// Guest-physical address of the para page, a multiple of 4096.
    pub para_state_gpa: u64,
    /// Guest-physical address of the four patched bytes.
    pub hypercall_gpa: u64,
}

/// MSR [`MSR_KVM_API_MAGIC`] of one vCPU.
///
/// `A` provides guest memory for each access: an `Arc` or a reference if the memory map never changes,
/// `GuestMemoryAtomic` if it does. `A` must not grant writes to read-only, MMIO or private memory. Either leave such
/// memory out, or use a [`GuestMemory`](vm_memory::GuestMemory) that checks [`Permissions`](vm_memory::Permissions).
///
/// # Example
/// ```
/// use std::sync::Arc;
///
/// use para_abi::ParaStatePayload;
/// use para_msr::Outcome;
/// use para_msr::para::{MSR_KVM_API_MAGIC, ParaMsr, PioPort, Stub};
/// use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
///
/// let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// let para = ParaMsr::new(memory.clone(), Stub::Pio(PioPort::DEFAULT))
///     .with_observer(|event| println!("vCPU 0: {event}"));
/// let mut msrs = para.into_dispatch();
///
/// // The guest fills its page and executes WRMSR.
/// let page = ParaStatePayload::new(0x2000);
/// memory.write_slice(&page.to_bytes(), GuestAddress(0x1000))?;
/// assert_eq!(msrs.write(MSR_KVM_API_MAGIC, 0x1000), Outcome::Handled(()));
///
/// let mut bytes = [0; 24];
/// memory.read_slice(&mut bytes, GuestAddress(0x1000))?;
/// let page = ParaStatePayload::from_bytes(&bytes);
/// assert_eq!((page.host_version, page.ret), (1, 0));
/// let mut site = [0; 4];
/// memory.read_slice(&mut site, GuestAddress(0x2000))?;
/// assert_eq!(site, [0xe6, 0xf5, 0xc3, 0xcc]); // out 0xf5, al; ret
///
/// // A snapshot finds the handler by its type.
/// let para = msrs.handler::<ParaMsr<Arc<GuestMemoryMmap>>>(MSR_KVM_API_MAGIC);
/// assert!(para.is_some_and(|para| para.save().registration.is_some()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ParaMsr<A> {
    memory: A,
    stub: Stub,
    registered: Option<ParaRegistration>,
    observer: Option<Observer>,
    prelude: Option<Prelude>,
}

impl ParaRegistration {
    /// The addresses of a page and of the four bytes to patch. [`ParaMsr::restore`] checks them.
    pub const fn new(para_state_gpa: u64, hypercall_gpa: u64) -> Self {
        ParaRegistration {
            para_state_gpa,
            hypercall_gpa,
        }
    }
}

impl<A: fmt::Debug> fmt::Debug for ParaMsr<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParaMsr")
            .field("memory", &self.memory)
            .field("stub", &self.stub)
            .field("registered", &self.registered)
            .finish_non_exhaustive()
    }
}

impl<A: GuestAddressSpace> ParaMsr<A> {
    /// The MSR of an unregistered vCPU, whose guest is to call through `stub`.
    pub fn new(memory: A, stub: Stub) -> Self {
        ParaMsr {
            memory,
            stub,
            registered: None,
            observer: None,
            prelude: None,
        }
    }

    /// Calls `observer` with the result of each WRMSR, before the vCPU continues. This is how to get the
    /// result through [`MsrDispatch`](crate::MsrDispatch). It runs on the vCPU's thread, as often as the
    /// guest likes, so limit logging with an [`EventThrottle`](super::EventThrottle).
    #[must_use]
    pub fn with_observer(
        mut self,
        observer: impl FnMut(&Registration) + Send + Sync + 'static,
    ) -> Self {
        self.observer = Some(Box::new(observer));
        self
    }

    /// Calls `prelude` just before a registration is committed or restored, when it can't fail any more and no
    /// vCPU sees the stub yet. The code that answers the stub's calls can get ready there. It isn't called for a
    /// write that faults or is refused. It runs on the vCPU's thread, as often as the guest likes.
    ///
    /// # Example
    /// ```
    /// use para_abi::ParaStatePayload;
    /// use para_msr::para::{ParaMsr, PioPort, Stub};
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicBool, Ordering};
    /// use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
    ///
    /// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
    /// let ready = Arc::new(AtomicBool::new(false));
    /// let flag = Arc::clone(&ready);
    /// let mut para = ParaMsr::new(&memory, Stub::Pio(PioPort::DEFAULT))
    ///     .with_prelude(move || flag.store(true, Ordering::SeqCst));
    /// para.wrmsr(0x1008); // misaligned
    /// assert!(!ready.load(Ordering::SeqCst));
    /// memory.write_slice(&ParaStatePayload::new(0x2000).to_bytes(), GuestAddress(0x1000))?;
    /// para.wrmsr(0x1000);
    /// assert!(ready.load(Ordering::SeqCst));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn with_prelude(mut self, prelude: impl FnMut() + Send + Sync + 'static) -> Self {
        self.prelude = Some(Box::new(prelude));
        self
    }

    /// A table with only this MSR. A VMM that handles other MSRs adds this one to its table with
    /// [`MsrDispatchBuilder::insert`].
    pub fn into_dispatch(self) -> MsrDispatch
    where
        A: Send + Sync + 'static,
    {
        let inserted = MsrDispatchBuilder::new().insert(MSR_KVM_API_MAGIC, self);
        // The first range can't overlap another.
        inserted.unwrap_or_else(|refused| refused.builder).build()
    }

    /// The guest's WRMSR of `value` (EDX:EAX).
    pub fn wrmsr(&mut self, value: u64) -> Registration {
        let memory = self.memory.memory();
        let event = self.register(&*memory, value);
        if let Some(observer) = &mut self.observer {
            observer(&event);
        }
        event
    }

    /// The vCPU or its VM is reset: forgets the registration. Patched bytes stay, because they are guest RAM (H5).
    pub fn reset(&mut self) {
        self.registered = None;
    }

    /// The vCPU's registration, if there is one.
    pub fn registration(&self) -> Option<ParaRegistration> {
        self.registered
    }

    /// The stub that is written to the guest's sites.
    pub fn stub(&self) -> Stub {
        self.stub
    }

    /// The provider of guest memory.
    pub fn memory(&self) -> &A {
        &self.memory
    }

    pub(super) fn set_registration(&mut self, registered: Option<ParaRegistration>) {
        self.registered = registered;
    }

    /// Runs the prelude, before a registration is committed.
    pub(super) fn prepare(&mut self) {
        if let Some(prelude) = &mut self.prelude {
            prelude();
        }
    }

    fn register(&mut self, memory: &A::M, value: u64) -> Registration {
        let fault = |reason| Registration::Fault(Fault { value, reason });
        // Alignment is checked before the page is looked up (R3), and on all 64 bits of the address (H13).
        if !is_para_state_aligned(value) {
            return fault(FaultReason::Misaligned);
        }
        let Some(page) = ParaPage::open(memory, value) else {
            return fault(FaultReason::NotRam);
        };
        let asked = page.copy();
        page.set_host_version();
        match self.commit(memory, value, &asked) {
            Ok(written) => {
                page.accept();
                Registration::Registered(Registered {
                    para_state_gpa: value,
                    hypercall_gpa: asked.hypercall_gpa,
                    guest_version: asked.guest_version,
                    size: asked.size,
                    stub: self.stub,
                    written,
                })
            }
            Err(reason) => {
                page.refuse();
                Registration::Refused(Refused {
                    para_state_gpa: value,
                    hypercall_gpa: asked.hypercall_gpa,
                    guest_version: asked.guest_version,
                    size: asked.size,
                    reason,
                })
            }
        }
    }

    /// Everything between the two answers. All that can fail comes first, so an error changes nothing (R10).
    fn commit(
        &mut self,
        memory: &A::M,
        para_state_gpa: u64,
        asked: &ParaStatePayload,
    ) -> Result<Written, Refusal> {
        if asked.is_newer_than_host() {
            return Err(Refusal::NewerGuest);
        }
        let site = check_site(
            memory,
            GuestAddress(asked.hypercall_gpa),
            Some(payload_range(para_state_gpa)),
        )?;
        self.prepare();
        self.registered = Some(ParaRegistration {
            para_state_gpa,
            hypercall_gpa: asked.hypercall_gpa,
        });
        Ok(site.write(self.stub))
    }
}

impl From<SiteError> for Refusal {
    fn from(reason: SiteError) -> Self {
        Refusal::Site(reason)
    }
}

/// Handles [`MSR_KVM_API_MAGIC`] only. Its state isn't an MSR value; use [`ParaMsr::save`] and [`ParaMsr::restore`].
impl<A: GuestAddressSpace + Send + Sync> MsrHandler for ParaMsr<A> {
    /// #GP(0): the original never implemented it (R12).
    fn read(&mut self, index: u32) -> Outcome<u64> {
        match index {
            MSR_KVM_API_MAGIC => Outcome::GpException,
            _ => Outcome::NotHandled,
        }
    }

    fn write(&mut self, index: u32, value: u64) -> Outcome<()> {
        match index {
            MSR_KVM_API_MAGIC => self.wrmsr(value).outcome(),
            _ => Outcome::NotHandled,
        }
    }

    fn reset(&mut self) {
        ParaMsr::reset(self);
    }
}
