// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM that handles a few MSRs itself: filter and dispatch, without the 2007 API.
//!
//! `cargo run -p para-msr --example filter_and_dispatch --no-default-features --features kvm`
//!
//! Its guest reads the microcode revision, then writes the MSR with which Hyper-V guests ask for a reset.
// Giving memory to a VM is an unsafe call.
#![allow(unsafe_code)]

use std::error::Error;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use para_msr::filter::{Access, FilterDefault, MsrFilterBuilder};
use para_msr::handlers::{Constant, StopOnWrite, WriteIgnore};
use para_msr::kvm::{Answered, set_in_kvm};
use para_msr::{DispatchError, MsrDispatch, MsrDispatchBuilder, profile};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const IA32_BIOS_SIGN_ID: u32 = 0x8b;
const HV_X64_MSR_RESET: u32 = 0x4000_0003;

/// `mov ecx, 0x8b; rdmsr; mov ebx, edx; mov ecx, 0x40000003; mov eax, 1; wrmsr; mov ebx, 0; hlt`
const CODE: &[u8] = b"\x66\xb9\x8b\x00\x00\x00\x0f\x32\x66\x89\xd3\
    \x66\xb9\x03\x00\x00\x40\x66\xb8\x01\x00\x00\x00\x0f\x30\x66\xbb\x00\x00\x00\x00\xf4";

/// A vCPU's table. Each vCPU has its own.
fn table() -> Result<MsrDispatchBuilder, DispatchError> {
    Ok(MsrDispatchBuilder::new()
        .insert(IA32_BIOS_SIGN_ID, WriteIgnore(Constant::new(0x1234 << 32)))?
        .insert(HV_X64_MSR_RESET, StopOnWrite(WriteIgnore(Constant::new(0))))?)
}

/// Runs the guest until it halts (`false`) or a handler stops it (`true`).
fn run_vcpu(vcpu: &mut VcpuFd, msrs: &mut MsrDispatch) -> Result<bool, Box<dyn Error>> {
    loop {
        match msrs.answer(vcpu.run()?) {
            Ok(Answered::Continue) => {}
            Ok(Answered::Stop) => return Ok(true),
            Ok(Answered::SetInKvm(value)) => _ = set_in_kvm(vcpu, value)?,
            Ok(other) => return Err(format!("{other:?}").into()),
            Err(VcpuExit::Hlt) => return Ok(false),
            Err(other) => return Err(format!("{other:?}").into()),
        }
    }
}

/// Runs the machine. Returns the revision that its guest read, and whether it was stopped.
pub fn run(kvm: &Kvm) -> Result<(u64, bool), Box<dyn Error>> {
    // 1. The VM and its filter: deny what has a handler, and everything that a Linux guest doesn't need.
    let vm = kvm.create_vm()?;
    let open = MsrFilterBuilder::new(FilterDefault::Deny).allow_profile(profile::LINUX);
    let filter = table()?
        .ranges()
        .fold(open, |filter, range| filter.deny(range, Access::Both));
    filter.compile()?.install(&vm)?;

    // 2. Memory, and the vCPU.
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1_0000)])?;
    memory.write_slice(CODE, GuestAddress(0x1000))?;
    let region = kvm_userspace_memory_region {
        memory_size: 0x1_0000,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        ..Default::default()
    };
    // SAFETY: the region is `memory`, which outlives the vCPU.
    unsafe { vm.set_user_memory_region(region) }?;
    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rflags) = (0x1000, 2);
    vcpu.set_regs(&regs)?;

    // 3. Exits.
    let stopped = run_vcpu(&mut vcpu, &mut table()?.build())?;
    Ok((vcpu.get_regs()?.rbx, stopped))
}

/// The tests include this file as a module and don't call this.
#[allow(dead_code)]
fn main() -> Result<(), Box<dyn Error>> {
    let (revision, stopped) = run(&Kvm::new()?)?;
    println!("the guest has microcode {revision:#x}, and was stopped: {stopped}");
    Ok(())
}
