// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest's write that is an event and nothing else.

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

/// Where a guest writes, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// The guest-physical address.
    pub address: u64,
    /// The 32 bits that are written; `None` for anything of any width.
    pub data: Option<u32>,
}

impl Doorbell {
    pub(super) fn connect(self, vm: &VmFd, event: &EventFd) -> errno::Result<()> {
        let address = IoEventAddress::Mmio(self.address);
        match self.data {
            Some(data) => vm.register_ioevent(event, &address, data),
            None => vm.register_ioevent(event, &address, NoDatamatch),
        }
    }

    pub(super) fn disconnect(self, vm: &VmFd, event: &EventFd) -> errno::Result<()> {
        let address = IoEventAddress::Mmio(self.address);
        match self.data {
            Some(data) => vm.unregister_ioevent(event, &address, data),
            None => vm.unregister_ioevent(event, &address, NoDatamatch),
        }
    }
}
