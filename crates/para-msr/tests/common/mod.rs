// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A tiny real-mode machine on KVM that accesses MSRs, and the skip without KVM.
// Giving memory to a VM is an unsafe call, the only one in these tests.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)]
// Each test file uses only part of this.
#![allow(dead_code)]

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, MsrExitReason, VcpuExit, VcpuFd, VmFd};
use para_msr::kvm::{Answered, set_in_kvm};
use para_msr::{MsrDispatch, MsrDispatchBuilder};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Opens KVM, or prints why it can't.
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

/// A step for the guest.
#[derive(Clone, Copy, Debug)]
pub enum Do {
    Read(u32),
    Write(u32, u64),
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// An exit, with its reason.
    Exit(u32, MsrExitReason),
    /// The guest read this.
    Value(u64),
    /// The guest's write succeeded.
    Written,
    /// The guest got #GP.
    Gp,
    /// A handler stopped the vCPU, before the access was completed.
    Stopped,
}

pub use Seen::*;

/// The guest's #GP handler. It reports the fault and skips the two bytes of RDMSR or WRMSR. The code
/// after the instruction runs as usual.
const GP_HANDLER: &[u8] = &[
    0xe6, 0x13, // out 0x13, al
    0x55, 0x89, 0xe5, // push bp; mov bp, sp
    0x83, 0x46, 0x02, 0x02, // add word [bp + 2], 2
    0x5d, 0xcf, // pop bp; iret
];

fn code(steps: &[Do]) -> Vec<u8> {
    let mut code = Vec::new();
    let imm = |opcode: u8, value: u32| [&[0x66, opcode][..], &value.to_le_bytes()].concat();
    for step in steps {
        match *step {
            Do::Read(index) => {
                code.extend(imm(0xb9, index)); // mov ecx, index
                code.extend([0x0f, 0x32]); // rdmsr
                code.extend([0x66, 0xe7, 0x20]); // out 0x20, eax
                code.extend([0x66, 0x89, 0xd0]); // mov eax, edx
                code.extend([0x66, 0xe7, 0x21]); // out 0x21, eax
            }
            Do::Write(index, value) => {
                code.extend(imm(0xb9, index)); // mov ecx, index
                code.extend(imm(0xb8, value as u32)); // mov eax, low
                code.extend(imm(0xba, (value >> 32) as u32)); // mov edx, high
                code.extend([0x0f, 0x30]); // wrmsr
                code.extend([0xe6, 0x22]); // out 0x22, al
            }
        }
    }
    code.push(0xf4); // hlt
    code
}

/// A VM with 64 KiB of RAM from 0.
pub struct Machine {
    pub vm: VmFd,
    memory: GuestMemoryMmap,
}

impl Machine {
    pub fn new(kvm: &Kvm) -> Self {
        const RAM: usize = 0x1_0000;
        let vm = kvm.create_vm().unwrap();
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let region = kvm_userspace_memory_region {
            memory_size: RAM as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap() as u64,
            ..Default::default()
        };
        // SAFETY: the region is `memory`, which lives as long as the VM, because it stays in `self`.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        Machine { vm, memory }
    }

    pub fn vcpu(&self, id: u64) -> VcpuFd {
        let vcpu = self.vm.create_vcpu(id).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).unwrap();
        vcpu
    }

    /// Runs all steps. `msrs` answers accesses that exit.
    pub fn run(&self, vcpu: &mut VcpuFd, msrs: &mut MsrDispatch, steps: &[Do]) -> Vec<Seen> {
        self.memory
            .write_slice(GP_HANDLER, GuestAddress(0x500))
            .unwrap();
        self.memory
            .write_obj(0x500u32, GuestAddress(13 * 4))
            .unwrap();
        self.memory
            .write_slice(&code(steps), GuestAddress(0x1000))
            .unwrap();
        let mut regs = vcpu.get_regs().unwrap();
        (regs.rip, regs.rsp, regs.rflags) = (0x1000, 0x8000, 2);
        vcpu.set_regs(&regs).unwrap();
        let (mut seen, mut low, mut failed) = (Vec::new(), 0, false);
        loop {
            let exit = vcpu.run().unwrap();
            match &exit {
                VcpuExit::X86Rdmsr(exit) => seen.push(Exit(exit.index, exit.reason)),
                VcpuExit::X86Wrmsr(exit) => seen.push(Exit(exit.index, exit.reason)),
                _ => {}
            }
            let other = match msrs.answer(exit) {
                Ok(Answered::Continue) => continue,
                Ok(Answered::SetInKvm(value)) => {
                    set_in_kvm(vcpu, value).unwrap();
                    continue;
                }
                Ok(_) => {
                    seen.push(Stopped);
                    return seen;
                }
                Err(other) => other,
            };
            match other {
                VcpuExit::IoOut(0x13, _) => {
                    seen.push(Gp);
                    failed = true;
                }
                VcpuExit::IoOut(0x20, data) => low = u32::from_le_bytes(data.try_into().unwrap()),
                VcpuExit::IoOut(0x21, data) => {
                    let high = u32::from_le_bytes(data.try_into().unwrap());
                    if !std::mem::take(&mut failed) {
                        seen.push(Value(u64::from(high) << 32 | u64::from(low)));
                    }
                }
                VcpuExit::IoOut(0x22, _) => {
                    if !std::mem::take(&mut failed) {
                        seen.push(Written);
                    }
                }
                VcpuExit::Hlt => return seen,
                other => panic!("{other:?} after {seen:x?}"),
            }
        }
    }
}

pub fn filtered(index: u32) -> Seen {
    Exit(index, MsrExitReason::Filter)
}

pub fn nobody() -> MsrDispatch {
    MsrDispatchBuilder::new().build()
}
