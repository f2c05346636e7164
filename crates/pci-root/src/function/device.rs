// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is behind a function's BARs.

use super::Function;

/// Whether somebody answers an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an access that nobody claims reads all ones"]
pub enum Reply {
    /// It was answered.
    Done,
    /// Nobody claims it: the guest reads all ones, its write is dropped.
    Unclaimed,
}

/// The device behind a function's BARs.
///
/// It is called on the threads of all vCPUs, brings its own lock, and never waits for another thread. No lock of this
/// crate is held during a call.
pub trait PciDevice: Send + Sync {
    /// The guest reads `data.len()` bytes at `offset` in a BAR: any width, any alignment, but all of it in the BAR, and
    /// nothing of it in MSI-X table or pending bits. `data` is zeros.
    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) -> Reply;

    /// The guest writes, as [`read_bar`](Self::read_bar).
    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) -> Reply;

    /// The guest reads from a [live](crate::Capability::live) capability. `capability` is its number, in the order in
    /// which the capabilities were added, from 0 on and without MSI-X; `offset` is from where it begins, so it is 2 at
    /// least. `data` is zeros.
    fn read_capability(&self, capability: usize, offset: u8, data: &mut [u8]) {
        let _ = (capability, offset, data);
    }

    /// The guest writes into a live capability, as [`read_capability`](Self::read_capability).
    fn write_capability(&self, capability: usize, offset: u8, data: &[u8]) {
        let _ = (capability, offset, data);
    }

    /// The guest moved a BAR, or enabled or disabled the BARs. A device that has registered addresses with the hypervisor,
    /// for example for ioeventfds, takes a lock of its own, asks [`Function::decoded`] and registers what has changed. If
    /// two vCPUs move a BAR, these calls may come in another order than the moves. The last call finds the last address.
    ///
    /// A guest can put two BARs at one address. So it is no failure if the hypervisor refuses an address that another
    /// device has registered: the accesses still arrive here.
    fn moved(&self, function: &Function) {
        let _ = function;
    }
}

/// A device that claims no access, for functions without BARs.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDevice;

impl PciDevice for NoDevice {
    fn read_bar(&self, _: u8, _: u64, _: &mut [u8]) -> Reply {
        Reply::Unclaimed
    }

    fn write_bar(&self, _: u8, _: u64, _: &[u8]) -> Reply {
        Reply::Unclaimed
    }
}
