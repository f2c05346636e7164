// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests of a few bytes check, on real KVM, how they were started: mode, registers, boot data.

#![allow(clippy::unwrap_used)] // a test may panic

mod images;

use std::path::Path;

use kvm_ioctls::{Kvm, VcpuExit};
use mini_vmm::boot::{self, BootRequest, Image, Loaded};
use mini_vmm::config::{BootProtocol, Decompress};
use mini_vmm::memory::{self, MappedVm};

use vm_memory::{GuestAddress, GuestMemoryMmap};

use images::{AT, Ph, RAM, elf};

/// The port that the guests write to.
const PORT: u16 = 0x10;

/// 64-bit: writes "HdrS" from the zero page, then the command line's first four bytes through a 64-bit pointer, then
/// the upper half of a 64-bit constant.
const LINUX: &[u8] = &[
    0x8b, 0x86, 0x02, 0x02, 0x00, 0x00, // mov eax, [rsi + 0x202]
    0xe7, 0x10, // out 0x10, eax
    0x8b, 0x9e, 0x28, 0x02, 0x00, 0x00, // mov ebx, [rsi + 0x228] (cmd_line_ptr)
    0x8b, 0x03, // mov eax, [rbx]
    0xe7, 0x10, // out 0x10, eax
    0x48, 0xb8, 0, 0, 0, 0, b'6', b'4', b'b', b'i', // mov rax, imm64
    0x48, 0xc1, 0xe8, 0x20, // shr rax, 32
    0xe7, 0x10, // out 0x10, eax
    0xf4, // hlt
];

/// 32-bit: writes the start info's magic, then the command line's first four bytes, then CR0.
const PVH: &[u8] = &[
    0x8b, 0x03, // mov eax, [ebx]
    0xe7, 0x10, // out 0x10, eax
    0x8b, 0x43, 0x18, // mov eax, [ebx + 24] (cmdline_paddr)
    0x8b, 0x00, // mov eax, [eax]
    0xe7, 0x10, // out 0x10, eax
    0x0f, 0x20, 0xc0, // mov eax, cr0
    0xe7, 0x10, // out 0x10, eax
    0xf4, // hlt
];

fn kvm(test: &str) -> Option<Kvm> {
    if std::env::var_os("MINI_VMM_NO_KVM").is_some_and(|value| value == "1") {
        eprintln!("SKIP: {test}: MINI_VMM_NO_KVM is set");
        return None;
    }
    Kvm::new()
        .inspect_err(|e| eprintln!("SKIP: {test}: /dev/kvm can't be used: {e}"))
        .ok()
}

/// Loads the guest, runs it until its HLT, and returns what it wrote.
fn run(kvm: &Kvm, phs: &[Ph]) -> (Loaded, Vec<[u8; 4]>) {
    let mem = memory::allocate(RAM).unwrap();
    let kernel = Image::from_bytes(elf(AT, phs), Path::new("guest")).unwrap();
    let request = BootRequest {
        kernel: &kernel,
        initrd: None,
        cmdline: "word",
        protocol: BootProtocol::Auto,
        decompress: Decompress::Auto,
        rsdp: None,
        reserved: &[],
    };
    let loaded = boot::load(&mem, &request).unwrap();
    let vm = kvm.create_vm().unwrap();
    let mapped = MappedVm::new(vm, mem).unwrap();
    let mut vcpu = mapped.vm().create_vcpu(0).unwrap();
    let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES);
    vcpu.set_cpuid2(&cpuid.unwrap()).unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    loaded.edit_sregs(&mut sregs);
    vcpu.set_sregs(&sregs).unwrap();
    vcpu.set_regs(&loaded.regs()).unwrap();
    let mut written = Vec::new();
    loop {
        match vcpu.run().unwrap() {
            VcpuExit::IoOut(PORT, data) => written.push(data.try_into().unwrap()),
            VcpuExit::Hlt => return (loaded, written),
            other => panic!("{other:?} after {written:x?}"),
        }
    }
}

#[test]
fn linux_entry_is_in_64_bit_mode_with_its_zero_page() {
    let Some(kvm) = kvm("linux_entry_is_in_64_bit_mode_with_its_zero_page") else {
        return;
    };
    let (_, written) = run(&kvm, &[Ph::load(AT, LINUX)]);
    assert_eq!(written, [*b"HdrS", *b"word", *b"64bi"]);
}

#[test]
fn pvh_entry_is_in_32_bit_mode_with_its_start_info() {
    let Some(kvm) = kvm("pvh_entry_is_in_32_bit_mode_with_its_start_info") else {
        return;
    };
    let (_, written) = run(&kvm, &[Ph::load(AT, PVH), Ph::pvh(AT)]);
    let (magic, cr0) = (0x336e_c578u32.to_le_bytes(), 0x11u32.to_le_bytes());
    assert_eq!(written, [magic, *b"word", cr0]);
}

#[test]
fn memory_on_both_sides_of_the_hole_is_registered() {
    let Some(kvm) = kvm("memory_on_both_sides_of_the_hole_is_registered") else {
        return;
    };
    let mem = memory::allocate(5 << 30).unwrap();
    let vm = kvm.create_vm().unwrap();
    MappedVm::new(vm, mem).unwrap();
    // Less than a page.
    let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 100)]).unwrap();
    let error = MappedVm::new(kvm.create_vm().unwrap(), mem).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("KVM refused 100 bytes of memory at guest address 0x0 ("),
        "{error}"
    );
}
