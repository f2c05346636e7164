// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory during an event of a device.

#[cfg(any(feature = "block", feature = "net"))]
use std::{ops::Deref, ptr, sync::Arc};

use libc::iovec;
use virtio_transport::memory::View;
#[cfg(any(feature = "block", feature = "net"))]
use vm_memory::GuestAddressSpace;
use vm_memory::bitmap::{BS, BitmapSlice};
use vm_memory::{GuestAddress, GuestMemory, Permissions, VolatileSlice};

/// The current guest memory. `kept` has that of the last call.
#[cfg(any(feature = "block", feature = "net"))]
pub(crate) fn current<M: GuestAddressSpace>(space: &M, kept: &mut Option<Arc<M::T>>) -> Arc<M::T> {
    let memory = space.memory();
    // It rarely changes, and then its address does: the old one still exists.
    let is_kept = |kept: &Arc<M::T>| ptr::eq(&raw const *memory, &raw const ***kept);
    if !kept.as_ref().is_some_and(is_kept) {
        *kept = None;
    }
    Arc::clone(kept.get_or_insert_with(|| Arc::new(memory)))
}

/// Guest memory, for short accesses and for buffers that stay mapped.
///
/// It belongs to this module so that a view is always one of the memory that is kept mapped.
#[cfg(any(feature = "block", feature = "net"))]
pub(crate) struct Guest<'a, T: Deref<Target: GuestMemory>> {
    memory: &'a Arc<T>,
    view: View<'a, T::Target>,
}

#[cfg(any(feature = "block", feature = "net"))]
impl<'a, T: Deref<Target: GuestMemory>> Guest<'a, T> {
    pub(crate) fn new(memory: &'a Arc<T>) -> Self {
        Guest {
            memory,
            view: View::new(&***memory),
        }
    }

    /// For short accesses.
    pub(crate) const fn view(&self) -> &View<'a, T::Target> {
        &self.view
    }

    /// Keeps the memory mapped.
    pub(super) const fn memory(&self) -> &Arc<T> {
        self.memory
    }
}

/// Calls `each` with every piece of a range of guest memory. Returns `false` if the range is not guest memory, or `each`
/// does.
pub(crate) fn pieces<'a, M: GuestMemory + ?Sized>(
    view: &View<'a, M>,
    (address, len): (GuestAddress, usize),
    access: Permissions,
    mut each: impl FnMut(VolatileSlice<'a, BS<'a, M::Bitmap>>) -> bool,
) -> bool {
    if let Some(piece) = view.piece(address, len, access) {
        return each(piece);
    }
    let Ok(slices) = view.memory().get_slices(address, len, access) else {
        return false;
    };
    for slice in slices {
        if !slice.is_ok_and(&mut each) {
            return false;
        }
    }
    true
}

/// A piece for a system call. It is mapped as long as the memory is.
pub(super) fn iovec_of<B: BitmapSlice>(piece: &VolatileSlice<'_, B>) -> iovec {
    iovec {
        iov_base: piece.ptr_guard_mut().as_ptr().cast(),
        iov_len: piece.len(),
    }
}
