// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Registers in the run page on real KVM. Without a usable /dev/kvm each test prints SKIP.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Machine, kvm};
use vcpu_loop::kvm::{CpuMode, GeneralRegister};
use vcpu_loop::{Exit, Vcpu};

#[test]
fn registers_are_shared_at_an_exit() {
    let Some(kvm) = kvm("registers_are_shared_at_an_exit") else {
        return;
    };
    // mov bx, 0x1234; out 0x80, al; mov ax, bx; out 0x80, ax; hlt
    let machine = Machine::new(&kvm, b"\xbb\x34\x12\xe6\x80\x89\xd8\xe7\x80\xf4");
    let mut vcpu = machine.vcpu(0);
    let Some(registers) = vcpu.sync_registers() else {
        return;
    };
    assert!(matches!(vcpu.run().unwrap(), Exit::PioOut { .. }));
    let mut regs = registers.get();
    assert_eq!(regs.rbx & 0xffff, 0x1234);
    for (register, value) in [
        (GeneralRegister::Rax, regs.rax),
        (GeneralRegister::Rbx, regs.rbx),
        (GeneralRegister::Rcx, regs.rcx),
        (GeneralRegister::Rdx, regs.rdx),
        (GeneralRegister::Rsi, regs.rsi),
        (GeneralRegister::Rdi, regs.rdi),
        (GeneralRegister::Rbp, regs.rbp),
        (GeneralRegister::R8, regs.r8),
        (GeneralRegister::R9, regs.r9),
        (GeneralRegister::R10, regs.r10),
    ] {
        assert_eq!(registers.general(register), value, "{register:?}");
    }
    regs.rbx = 0x4321;
    registers.set(&regs);
    match vcpu.run().unwrap() {
        Exit::PioOut { data, .. } => assert_eq!(data, 0x4321u16.to_le_bytes()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_answer_in_rax_leaves_the_other_registers() {
    let Some(kvm) = kvm("an_answer_in_rax_leaves_the_other_registers") else {
        return;
    };
    // mov bx, 0x1234; out 0x80, al; out 0x80, ax; mov ax, bx; out 0x80, ax; hlt
    let code = b"\xbb\x34\x12\xe6\x80\xe7\x80\x89\xd8\xe7\x80\xf4";
    let machine = Machine::new(&kvm, code);
    let mut vcpu = machine.vcpu(0);
    let Some(registers) = vcpu.sync_registers() else {
        return;
    };
    assert!(matches!(vcpu.run().unwrap(), Exit::PioOut { .. }));
    registers.set_rax(0x5678);
    for expected in [0x5678u16, 0x1234] {
        match vcpu.run().unwrap() {
            Exit::PioOut { data, .. } => assert_eq!(data, expected.to_le_bytes()),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn registers_are_shared_from_the_exit_that_asks_on() {
    let Some(kvm) = kvm("registers_are_shared_from_the_exit_that_asks_on") else {
        return;
    };
    // mov bx, 0x1234; out 0x80, al; out 0x80, al; out 0x80, al; hlt
    let code = b"\xbb\x34\x12\xe6\x80\xe6\x80\xe6\x80\xf4";
    let machine = Machine::new(&kvm, code);
    let mut vcpu = machine.vcpu(0);
    let Some(registers) = vcpu.unshared_registers() else {
        return;
    };
    assert!(matches!(vcpu.run().unwrap(), Exit::PioOut { .. }));
    registers.share(false);
    assert!(!registers.are_filled(), "asked for after the exit");
    assert_eq!(registers.get().rbx, 0);
    assert!(matches!(vcpu.run().unwrap(), Exit::PioOut { .. }));
    assert!(registers.are_filled());
    assert_eq!(registers.get().rbx & 0xffff, 0x1234);
    registers.share(true);
    assert!(!registers.are_filled(), "without the mode");
    assert!(matches!(vcpu.run().unwrap(), Exit::PioOut { .. }));
    assert!(registers.are_filled());
    let cpl = vcpu.fd().get_sregs().unwrap().ss.dpl;
    let real_mode = CpuMode {
        cpl,
        long_mode: false,
    };
    assert_eq!(registers.mode(), real_mode);
}
