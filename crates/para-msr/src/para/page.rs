// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The first 24 bytes of the page that a guest registers.

use std::sync::atomic::Ordering;

use para_abi::{
    KVM_PARA_API_VERSION, OFFSET_HOST_VERSION, OFFSET_RET, PARA_STATE_PAYLOAD, ParaErrno,
    ParaStatePayload,
};
use vm_memory::bitmap::BS;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice};

/// The payload of a para page, translated once, so that later accesses can't fail or hit other memory.
pub(super) struct ParaPage<'m, M: GuestMemory + ?Sized>(VolatileSlice<'m, BS<'m, M::Bitmap>>);

impl<'m, M: GuestMemory + ?Sized> ParaPage<'m, M> {
    /// The page at `gpa`, if its payload is one piece of readable and writable RAM where a `u32` can be
    /// stored atomically. Changes nothing, and never touches what is after the payload (H2).
    pub(super) fn open(memory: &'m M, gpa: u64) -> Option<Self> {
        let slice = memory
            .get_slices(
                GuestAddress(gpa),
                PARA_STATE_PAYLOAD,
                Permissions::ReadWrite,
            )
            .ok()?
            .next()?
            .ok()?;
        let whole = slice.len() == PARA_STATE_PAYLOAD;
        // Fails if the host's mapping isn't aligned, where the stores below would fail too.
        let aligned = slice.load::<u32>(OFFSET_RET, Ordering::Relaxed).is_ok();
        (whole && aligned).then_some(ParaPage(slice))
    }

    /// The only read of the page (H7).
    pub(super) fn copy(&self) -> ParaStatePayload {
        let mut bytes = [0; PARA_STATE_PAYLOAD];
        self.0.copy_to(&mut bytes);
        ParaStatePayload::from_bytes(&bytes)
    }

    /// R5: tells the guest that there is a host, whatever happens next.
    pub(super) fn set_host_version(&self) {
        self.set(OFFSET_HOST_VERSION, KVM_PARA_API_VERSION);
    }

    /// R6, R7.
    pub(super) fn refuse(&self) {
        self.set(OFFSET_RET, ParaErrno::KVM_EINVAL.as_ret());
    }

    /// R8: the last store of a registration.
    pub(super) fn accept(&self) {
        self.set(OFFSET_RET, 0);
    }

    /// One 32-bit store, which other vCPUs see after all earlier stores.
    fn set(&self, offset: usize, value: u32) {
        let stored = self.0.store(value.to_le(), offset, Ordering::Release);
        debug_assert!(stored.is_ok(), "`open` made sure of bounds and alignment");
    }
}
