// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest's write that is delivered as an event.

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

/// The address of a guest's write, and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// The guest-physical address.
    pub address: u64,
    /// The 32-bit value to match; `None` matches any value of any width.
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
