// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! System calls that no crate wraps safely.
//!
//! All of mini-vmm's `unsafe` is here, each block with the reason why it is sound; the rest of the crate denies it.
#![allow(unsafe_code)]

pub(crate) mod terminal;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{Address, GuestMemoryRegion, GuestRegionMmap};

/// Makes `region` a memory slot of the virtual machine (KVM API section 4.35).
pub(crate) fn set_memory_slot(
    vm: &VmFd,
    slot: u32,
    region: &GuestRegionMmap,
) -> Result<(), kvm_ioctls::Error> {
    let slot = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    };
    // SAFETY: address and size are those of one live mapping, which holds guest memory and nothing else and is only
    // accessed as volatile. `memory::register`, the only caller, hands the duty to keep it mapped while the virtual
    // machine lives to the machine's owner.
    unsafe { vm.set_user_memory_region(slot) }
}
