// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device behind a function's BARs.

use super::Function;

/// Whether an access was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an unclaimed access reads all ones"]
pub enum Reply {
    /// It was answered.
    Done,
    /// No device claims it: a read returns all ones, a write is dropped.
    Unclaimed,
}

/// The device behind a function's BARs.
///
/// It is called on the threads of all vCPUs. It must do its own locking, and must not wait for another thread. This
/// crate holds no lock during a call.
pub trait PciDevice: Send + Sync {
    /// The guest reads `data.len()` bytes at `offset` in a BAR: any width, any alignment, but entirely in the BAR, and
    /// outside of MSI-X table and pending bits. `data` is zeros.
    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) -> Reply;

    /// The guest writes, with the same rules as for [`read_bar`](Self::read_bar).
    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) -> Reply;

    /// The guest reads from a [live](crate::Capability::live) capability. `capability` counts the added capabilities
    /// from 0, without MSI-X. `offset` counts from the capability's start, so it is at least 2. `data` is zeros.
    fn read_capability(&self, capability: usize, offset: u8, data: &mut [u8]) {
        let _ = (capability, offset, data);
    }

    /// The guest writes to a live capability, with the same rules as for [`read_capability`](Self::read_capability).
    fn write_capability(&self, capability: usize, offset: u8, data: &[u8]) {
        let _ = (capability, offset, data);
    }

    /// The guest moved a BAR, or enabled or disabled the BARs. A device may have registered addresses with the
    /// hypervisor, for example for ioeventfds. It then takes its own lock, calls [`Function::decoded`], and registers
    /// what has changed. If two vCPUs move a BAR, these calls may come in another order than the moves, but the last
    /// call sees the last address.
    ///
    /// A guest can set two BARs to the same address. So it is not an error if the hypervisor refuses an address that
    /// another device has registered: the accesses still arrive here.
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
