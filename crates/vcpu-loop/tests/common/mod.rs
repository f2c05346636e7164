// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A tiny real-mode machine on KVM, and the rule for skipping.
#![allow(clippy::unwrap_used)]
// Giving memory to a VM takes an unsafe call, the only one of the tests.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, kvm_dtable, kvm_enable_cap, kvm_segment,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{
    Kvm, MsrExitReason, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd,
};
use vcpu_loop::kvm::{KvmHost, KvmVcpu, VcpuState};
use vcpu_loop::{VcpuEvents, VcpuSet, vcpu_events};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Only a hang takes this long, even on a slow machine.
#[allow(dead_code, reason = "not every test has threads")]
pub const SOON: Duration = Duration::from_secs(600);
/// `out 0x80, al; jmp -4`
#[allow(dead_code, reason = "not every test has endless exits")]
pub const STORM: &[u8] = b"\xe6\x80\xeb\xfc";
/// Where code starts.
pub const ENTRY: u64 = 0x1000;
/// All of RAM: 64 KiB from 0. Segment 0xa000 is MMIO.
pub const RAM: usize = 0x1_0000;
/// An MSR that KVM doesn't know. A filter sends its accesses to user space.
#[allow(dead_code, reason = "not every test has MSRs")]
pub const MSR: u32 = 0x8765_5678;

/// Opens KVM, or prints to stderr why it can't.
pub fn kvm(test: &str) -> Option<Kvm> {
    let reason = match std::env::var_os("MINI_VMM_NO_KVM") {
        Some(value) if value == "1" => "MINI_VMM_NO_KVM=1".to_owned(),
        _ => match Kvm::new() {
            Ok(kvm) => return Some(kvm),
            Err(error) => format!("/dev/kvm: {error}"),
        },
    };
    eprintln!("SKIP: {test}: {reason}");
    None
}

/// Whether long variants are wanted; if not, prints that `test` has one.
#[allow(dead_code, reason = "not every test has a long variant")]
pub fn is_long(test: &str) -> bool {
    let long = std::env::var_os("MINI_VMM_TEST_LONG").is_some_and(|value| value == "1");
    if !long {
        eprintln!("LONG: {test}");
    }
    long
}

/// No vCPUs yet, and their events.
#[allow(dead_code, reason = "not every test has threads")]
pub fn set() -> (VcpuSet<VcpuState>, VcpuEvents) {
    let (sender, events) = vcpu_events().unwrap();
    (VcpuSet::new(sender), events)
}

/// A VM with RAM. Its vCPUs share the ownership of the memory.
pub struct Machine {
    pub vm: VmFd,
    pub memory: GuestMemoryMmap,
    pub host: Arc<KvmHost>,
}

impl Machine {
    pub fn new(kvm: &Kvm, code: &[u8]) -> Self {
        let vm = kvm.create_vm().unwrap();
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        memory.write_slice(code, GuestAddress(ENTRY)).unwrap();
        let region = kvm_userspace_memory_region {
            memory_size: RAM as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap() as u64,
            ..Default::default()
        };
        // SAFETY: the region is `memory`, whose ownership every vCPU shares through its reader.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        Machine {
            vm,
            memory,
            host: KvmHost::probe(kvm).unwrap(),
        }
    }

    /// Sends accesses of [`MSR`] to user space: the capability first, then the filter.
    #[allow(dead_code, reason = "not every test has MSRs")]
    pub fn own_msr(&self) {
        let reasons = MsrExitReason::Filter | MsrExitReason::Unknown | MsrExitReason::Inval;
        let mut cap = kvm_enable_cap {
            cap: KVM_CAP_X86_USER_SPACE_MSR,
            ..Default::default()
        };
        cap.args[0] = u64::from(reasons.bits());
        self.vm.enable_cap(&cap).unwrap();
        let range = MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base: MSR,
            msr_count: 1,
            bitmap: &[0; 8],
        };
        self.vm
            .set_msr_filter(MsrFilterDefaultAction::ALLOW, &[range])
            .unwrap();
    }

    /// A vCPU in real mode at [`ENTRY`], with flat segments at 0.
    pub fn vcpu(&self, id: u64) -> KvmVcpu {
        let memory = self.memory.clone();
        let read = move |gpa: u64, buf: &mut [u8]| memory.read(buf, GuestAddress(gpa)).unwrap_or(0);
        let vcpu = KvmVcpu::new(self.vm.create_vcpu(id).unwrap(), &self.host)
            .unwrap()
            .with_memory(read);
        let mut sregs = vcpu.fd().get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.fd().set_sregs(&sregs).unwrap();
        let mut regs = vcpu.fd().get_regs().unwrap();
        (regs.rip, regs.rflags, regs.rsp) = (ENTRY, 2, 0x8000);
        vcpu.fd().set_regs(&regs).unwrap();
        vcpu
    }

    /// As [`Machine::vcpu`], in 32-bit protected mode without an IDT: any exception is a triple fault.
    #[allow(dead_code, reason = "not every test has triple faults")]
    pub fn protected_mode_vcpu(&self, id: u64) -> KvmVcpu {
        let vcpu = self.vcpu(id);
        let mut sregs = vcpu.fd().get_sregs().unwrap();
        sregs.cr0 |= 1;
        let flat = kvm_segment {
            limit: u32::MAX,
            present: 1,
            s: 1,
            db: 1,
            g: 1,
            ..Default::default()
        };
        sregs.cs = kvm_segment {
            selector: 8,
            type_: 11,
            ..flat
        };
        for data in [
            &mut sregs.ds,
            &mut sregs.es,
            &mut sregs.fs,
            &mut sregs.gs,
            &mut sregs.ss,
        ] {
            *data = kvm_segment {
                selector: 16,
                type_: 3,
                ..flat
            };
        }
        sregs.idt = kvm_dtable::default();
        vcpu.fd().set_sregs(&sregs).unwrap();
        vcpu
    }
}
