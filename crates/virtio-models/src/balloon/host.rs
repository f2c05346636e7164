// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the guest's pages go.

use std::ops::Range;

use vm_memory::GuestAddressSpace;

/// Gives memory back to the host. Called on the device's thread.
pub trait Host<M: GuestAddressSpace>: Send {
    /// Gives the pages of `ranges` back to the host. They are guest-physical addresses in bytes: whole pages of
    /// [`PAGE_SIZE`](super::PAGE_SIZE), in order, apart from each other. They may lie outside of guest memory, and are
    /// ignored there.
    ///
    /// Afterwards, each page reads as zeros or is as it was. The guest may use it at any time, as before.
    ///
    /// Returns how many bytes it gave back.
    fn give_back(&mut self, memory: &M::M, ranges: &[Range<u64>]) -> u64;
}
