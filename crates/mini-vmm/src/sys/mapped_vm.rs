// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtual machine together with the memory that it maps.
#![allow(unsafe_code)]

use std::mem;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

/// KVM refused a memory slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("KVM refused {size} bytes of memory at guest address {start:#x} ({reason})")]
pub struct SlotError {
    /// The guest-physical address where the slot starts.
    pub start: u64,
    /// Its size in bytes.
    pub size: u64,
    /// KVM's error.
    pub reason: kvm_ioctls::Error,
}

/// Creates a virtual machine. KVM then takes all locks of the address space, which a signal may interrupt, so the call
/// is repeated.
///
/// # Errors
/// KVM's error, other than an interruption.
pub fn create_vm(kvm: &Kvm) -> Result<VmFd, kvm_ioctls::Error> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result,
        }
    }
}

/// A virtual machine and its memory. The memory stays mapped as long as KVM may access it: the memory slots are removed
/// before it is unmapped, even if a vCPU outlives this.
#[derive(Debug)]
pub struct MappedVm {
    vm: Arc<VmFd>,
    memory: GuestMemoryMmap,
    /// What else the guest has, if there is more.
    shared: Option<Arc<GuestRegionMmap>>,
    /// The number of slots set, from slot 0.
    slots: u32,
}

impl MappedVm {
    /// Gives `memory` to `vm`, which must have none yet: one slot per region, from slot 0 (KVM API section 4.35).
    ///
    /// # Errors
    /// [`SlotError`] with the region that KVM refused.
    pub fn new(vm: VmFd, memory: GuestMemoryMmap) -> Result<Self, SlotError> {
        MappedVm::with_shared(vm, memory, None)
    }

    /// As [`new`](Self::new), with a region more that [`memory`](Self::memory) does not have.
    ///
    /// # Errors
    /// [`SlotError`] with the region that KVM refused.
    pub fn with_shared(
        vm: VmFd,
        memory: GuestMemoryMmap,
        shared: Option<GuestRegionMmap>,
    ) -> Result<Self, SlotError> {
        let mut mapped = MappedVm {
            vm: Arc::new(vm),
            memory,
            shared: shared.map(Arc::new),
            slots: 0,
        };
        for region in mapped.memory.iter().chain(mapped.shared.as_deref()) {
            let (start, size) = (region.start_addr().raw_value(), region.len());
            let slot = kvm_userspace_memory_region {
                slot: mapped.slots,
                flags: 0,
                guest_phys_addr: start,
                memory_size: size,
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: address and size are those of one live mapping, which holds guest memory and nothing else and
            // is only accessed as volatile. It is in `memory` or `shared`, which are unmapped only after `drop` took the slot away.
            unsafe { mapped.vm.set_user_memory_region(slot) }.map_err(|reason| SlotError {
                start,
                size,
                reason,
            })?;
            mapped.slots += 1;
        }
        Ok(mapped)
    }

    /// The virtual machine. A clone keeps it alive, but not its memory.
    pub fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// The bytes of what else the guest has.
    pub fn shared_size(&self) -> Option<u64> {
        self.shared.as_ref().map(|region| region.len())
    }

    /// Its memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }
}

impl Drop for MappedVm {
    fn drop(&mut self) {
        for slot in 0..self.slots {
            // A size of 0 deletes the slot.
            let none = kvm_userspace_memory_region {
                slot,
                ..Default::default()
            };
            // SAFETY: KVM gets no memory by this.
            if unsafe { self.vm.set_user_memory_region(none) }.is_err() {
                // KVM may still use the memory, so it stays mapped until the process ends.
                mem::forget((self.memory.clone(), self.shared.clone()));
                return;
            }
        }
    }
}
