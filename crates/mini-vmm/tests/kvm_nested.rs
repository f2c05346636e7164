// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--nested`: a guest can use nested virtualization only if allowed.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use bare::lab::low;
use bare::{Asm, Vm, guest, has_kvm, is_emulated};
use kvm_ioctls::Kvm;
use mini_vmm::layout::{self, MIB};

/// Where execution continues after a fault.
const RESUME: u64 = 4 * MIB;
/// A page for instructions that need one.
const PAGE: u64 = 5 * MIB;

const EFER: u32 = 0xc000_0080;
const FEATURE_CONTROL: u32 = 0x3a;
const VMX_BASIC: u32 = 0x480;

/// The extension that this host's KVM offers guests.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Offered {
    vmx: bool,
    svm: bool,
}

fn offered() -> Offered {
    let kvm = Kvm::new().unwrap();
    let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES);
    let cpuid = cpuid.unwrap();
    let has = |function, bit: u32| {
        let mut entries = cpuid.as_slice().iter();
        entries.any(|e| e.function == function && e.ecx & 1 << bit != 0)
    };
    Offered {
        vmx: has(1, 5),
        svm: has(0x8000_0001, 2),
    }
}

/// An exception handler: prints a letter and continues after the attempt.
fn caught(letter: &str) -> Asm {
    guest(|asm| {
        asm.print(letter);
        asm.raw(&[0x48, 0xc7, 0xc4]).raw(&low(layout::BOOT_STACK)); // mov rsp, stack
        asm.raw(&[0xff, 0x24, 0x25]).raw(&low(RESUME)); // jmp [RESUME]
    })
}

/// Runs `code` and prints a dot, or the letter of the exception that it caused.
fn attempt(asm: &mut Asm, code: impl FnOnce(&mut Asm)) {
    let body = guest(|asm| {
        code(asm);
        asm.print(".");
    });
    let store = guest(|asm| {
        asm.raw(&[0x48, 0x89, 0x04, 0x25]).raw(&low(RESUME)); // mov [RESUME], rax
    });
    let behind = store.code().len() + body.code().len();
    asm.raw(&[0x48, 0x8d, 0x05])
        .raw(&(behind as u32).to_le_bytes()); // lea rax, [rip + behind]
    asm.raw(store.code()).raw(body.code());
}

/// Prints whether a bit is set in CPUID's ECX.
fn show_bit(asm: &mut Asm, function: u64, bit: u32) {
    asm.rax(function).ecx(0).raw(&[0x0f, 0xa2]); // cpuid
    asm.raw(&[0x89, 0xc8, 0x25])
        .raw(&(1u32 << bit).to_le_bytes()); // mov eax, ecx; and eax, bit
    asm.compare_eax(0).raw(&[0x0f, 0x95, 0xc0, 0x04, b'0']); // setne al; add al, '0'
    asm.port(layout::SERIAL).raw(&[0xee]);
}

/// What a guest sees in CPUID, then what happens when it uses it: control bits and MSRs, then instructions.
fn walk(asm: &mut Asm) {
    asm.idt(&[(6, caught("U")), (13, caught("G"))]);
    show_bit(asm, 1, 5);
    show_bit(asm, 0x8000_0001, 2);
    attempt(asm, |asm| {
        // mov rax, cr4; bts rax, 13 (VMXE); mov cr4, rax
        asm.raw(&[
            0x0f, 0x20, 0xe0, 0x48, 0x0f, 0xba, 0xe8, 13, 0x0f, 0x22, 0xe0,
        ]);
    });
    attempt(asm, |asm| {
        asm.rdmsr(VMX_BASIC);
    });
    attempt(asm, |asm| {
        asm.wrmsr(FEATURE_CONTROL, 0b101); // locked, VMXON allowed
    });
    attempt(asm, |asm| {
        asm.rdmsr(EFER).raw(&[0x0f, 0xba, 0xe8, 12, 0x0f, 0x30]); // bts eax, 12 (SVME); wrmsr
    });
}

/// `vmxon`, `vmptrld`, `vmlaunch`, `vmread`, `vmxoff`, `invept`
const OF_VMX: [&[u8]; 6] = [
    &[0xf3, 0x0f, 0xc7, 0x37],
    &[0x0f, 0xc7, 0x37],
    &[0x0f, 0x01, 0xc2],
    &[0x0f, 0x78, 0xc0],
    &[0x0f, 0x01, 0xc4],
    &[0x66, 0x0f, 0x38, 0x80, 0x07],
];
/// `vmrun`, `skinit`. On a CPU with virtual VMLOAD, VMSAVE, STGI and CLGI, KVM lets the guest execute these; they
/// affect only their own vCPU. KVM doesn't refuse INVLPGA, which does no more than INVLPG.
const OF_SVM: [&[u8]; 2] = [&[0x0f, 0x01, 0xd8], &[0x0f, 0x01, 0xde]];

#[test]
fn guests_have_no_nested_virtualization_by_default() {
    let test = "guests_have_no_nested_virtualization_by_default";
    let mut instructions = OF_VMX.iter().chain(&OF_SVM).collect::<Vec<_>>();
    if is_emulated() {
        eprintln!("SKIP: {test}: part: this KVM's emulator knows no instruction of VMX or SVM");
        instructions.clear();
    }
    let guest = guest(|asm| {
        walk(asm);
        for instruction in &instructions {
            attempt(asm, |asm| {
                asm.rax(PAGE).rdi(PAGE).raw(instruction);
            });
        }
        asm.power_off();
    });
    let expected = format!("00GGGG{}", "U".repeat(instructions.len()));
    for args in [&[][..], &["--nested", "off"]] {
        let Some(mut vm) = Vm::new(test, &guest) else {
            return;
        };
        vm.args(args).run().expect(0).printed(&expected);
    }
}

#[test]
fn guests_have_nested_virtualization_on_request() {
    let test = "guests_have_nested_virtualization_on_request";
    if !has_kvm(test) {
        return;
    }
    let expected = match offered() {
        Offered { vmx: true, .. } => "10...G",
        Offered { svm: true, .. } => "01GGG.",
        _ => {
            eprintln!("SKIP: {test}: this KVM offers no nested virtualization");
            return;
        }
    };
    let guest = guest(|asm| {
        walk(asm);
        asm.power_off();
    });
    if let Some(mut vm) = Vm::new(test, &guest) {
        vm.args(["--nested", "on"])
            .run()
            .expect(0)
            .printed(expected);
    }
}

#[test]
fn nested_virtualization_that_kvm_lacks_is_an_error() {
    let test = "nested_virtualization_that_kvm_lacks_is_an_error";
    let guest = guest(|asm| asm.fail(1));
    let Some(mut vm) = Vm::new(test, &guest) else {
        return;
    };
    if offered()
        != (Offered {
            vmx: false,
            svm: false,
        })
    {
        eprintln!("SKIP: {test}: this KVM offers nested virtualization");
        return;
    }
    let ended = vm.args(["--nested", "on"]).run();
    ended
        .expect(1)
        .says(&["no nested virtualization", "leave out --nested"]);
}
