// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What KVM does with the other vendor's hypercall instruction, with its fix-up and without
//! (`KVM_X86_QUIRK_FIX_HYPERCALL_INSN`). This is why the stub gets the instruction of the CPU that it runs on.

#![allow(clippy::unwrap_used)] // a test may panic

use std::path::Path;

use hypercall_patch::Stub;
use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS2, KVM_MAX_CPUID_ENTRIES, KVM_X86_QUIRK_FIX_HYPERCALL_INSN,
    kvm_enable_cap, kvm_regs,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use mini_vmm::check::open_kvm;
use mini_vmm::memory::MappedVm;
use para_abi::kvm::KVM_HC_VAPIC_POLL_IRQ;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Addresses of the stub, the code that calls it and the #UD handler. Real mode's vectors are at 0.
const STUB: u64 = 0x1000;
const CODE: u64 = 0x2000;
const HANDLER: u64 = 0x3000;
const STACK: u64 = 0x5000;
const MEMORY: usize = 0x6000;

/// The value that the #UD handler sets in BX.
const FAULTED: u64 = 0xdead;

/// A guest in real mode that calls its stub once.
struct Guest {
    mapped: MappedVm,
    vcpu: VcpuFd,
}

/// The end of a call.
#[derive(Debug, PartialEq)]
enum End {
    Answer(u64),
    InvalidOpcode,
}

impl Guest {
    fn new(kvm: &Kvm, stub: Stub, fix_up: bool) -> Guest {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let mapped = MappedVm::new(kvm.create_vm().unwrap(), memory).unwrap();
        if !fix_up {
            let mut quirk = kvm_enable_cap {
                cap: KVM_CAP_DISABLE_QUIRKS2,
                ..Default::default()
            };
            quirk.args[0] = KVM_X86_QUIRK_FIX_HYPERCALL_INSN.into();
            mapped.vm().enable_cap(&quirk).unwrap();
        }
        let memory = mapped.memory();
        memory
            .write_slice(&stub.bytes(), GuestAddress(STUB))
            .unwrap();
        // call STUB; hlt
        let distance = (STUB as u16).wrapping_sub(CODE as u16 + 3).to_le_bytes();
        memory
            .write_slice(&[0xe8, distance[0], distance[1], 0xf4], GuestAddress(CODE))
            .unwrap();
        // mov bx, FAULTED; hlt
        let faulted = (FAULTED as u16).to_le_bytes();
        memory
            .write_slice(&[0xbb, faulted[0], faulted[1], 0xf4], GuestAddress(HANDLER))
            .unwrap();
        // Vector 6: offset, then segment 0.
        memory
            .write_obj(HANDLER as u32, GuestAddress(6 * 4))
            .unwrap();
        let vcpu = mapped.vm().create_vcpu(0).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        for segment in [&mut sregs.cs, &mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
            (segment.base, segment.selector) = (0, 0);
        }
        vcpu.set_sregs(&sregs).unwrap();
        let regs = kvm_regs {
            rip: CODE,
            rsp: STACK,
            rax: KVM_HC_VAPIC_POLL_IRQ,
            rflags: 2,
            ..Default::default()
        };
        vcpu.set_regs(&regs).unwrap();
        Guest { mapped, vcpu }
    }

    fn call(&mut self) -> (End, [u8; 4]) {
        let exit = self.vcpu.run().unwrap();
        assert!(matches!(exit, VcpuExit::Hlt), "{exit:?}");
        let regs = self.vcpu.get_regs().unwrap();
        let end = match regs.rbx {
            FAULTED => End::InvalidOpcode,
            _ => End::Answer(regs.rax),
        };
        let mut bytes = [0; 4];
        let memory = self.mapped.memory();
        memory.read_slice(&mut bytes, GuestAddress(STUB)).unwrap();
        (end, bytes)
    }
}

/// KVM, this CPU's stub and the other vendor's. `None` if hypercalls don't complete.
fn here(test: &str) -> Option<(Kvm, Stub, Stub)> {
    if std::env::var_os("MINI_VMM_NO_KVM").is_some() {
        eprintln!("SKIP: {test}: MINI_VMM_NO_KVM is set");
        return None;
    }
    let kvm = match open_kvm(Path::new("/dev/kvm")) {
        Ok(kvm) => kvm,
        Err(error) => {
            eprintln!("SKIP: {test}: /dev/kvm: {error}");
            return None;
        }
    };
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    if !cpu
        .split_whitespace()
        .any(|flag| ["vmx", "svm"].contains(&flag))
    {
        eprintln!("SKIP: {test}: this CPU has no vmx or svm");
        return None;
    }
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    let native = Stub::native(para_msr::kvm::vendor(&cpuid).unwrap());
    let other = match native {
        Stub::Vmx => Stub::Svm,
        _ => Stub::Vmx,
    };
    Some((kvm, native, other))
}

#[test]
fn the_fix_up_writes_the_hosts_instruction() {
    let Some((kvm, native, other)) = here("the_fix_up_writes_the_hosts_instruction") else {
        return;
    };
    let (end, bytes) = Guest::new(&kvm, other, true).call();
    assert_eq!((end, bytes), (End::Answer(0), native.bytes()));
}

#[test]
fn without_the_fix_up_the_other_vendors_is_no_instruction() {
    let Some((kvm, native, other)) = here("without_the_fix_up_the_other_vendors_is_no_instruction")
    else {
        return;
    };
    let (end, bytes) = Guest::new(&kvm, other, false).call();
    assert_eq!((end, bytes), (End::InvalidOpcode, other.bytes()));
    // The host's own instruction needs no fix-up.
    let (end, bytes) = Guest::new(&kvm, native, false).call();
    assert_eq!((end, bytes), (End::Answer(0), native.bytes()));
}
