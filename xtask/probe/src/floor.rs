// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The floor: no VMM can do less.

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_INVAL, KVM_MSR_EXIT_REASON_UNKNOWN,
    kvm_enable_cap, kvm_segment,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

use crate::guest::{self, End, Work};
use crate::{Error, sys};

pub const HOLE_START: usize = 3 << 30;
pub const HOLE_END: u64 = 4 << 30;

pub fn main(arguments: &[&str]) -> Result<(), Error> {
    let (mib, cpus, work) = match arguments {
        [mib, cpus] => (mib, cpus, Work::Nothing),
        [mib, cpus, work, count] => {
            let count = count.parse()?;
            let work = match *work {
                "nothing" => Work::Nothing,
                "port" => Work::Port(count),
                "mmio" => Work::Mmio(count),
                "msr" => Work::Msr(count),
                "hypercall" => Work::Hypercall(count),
                _ => return Err("the work is nothing, port, mmio, msr or hypercall".into()),
            };
            (mib, cpus, work)
        }
        _ => return Err("floor takes MIB CPUS [WORK COUNT]".into()),
    };
    let (memory, cpus) = (mib.parse::<usize>()? << 20, cpus.parse::<u64>()?);
    let code = guest::code(work, End::Acpi);
    let vm = Kvm::new()?.create_vm()?;
    let low = memory.min(HOLE_START);
    sys::give_memory(&vm, 0, 0, low, Some((guest::ENTRY as usize, &code)))?;
    if memory > low {
        sys::give_memory(&vm, 1, HOLE_END, memory - low, None)?;
    }
    vm.create_irq_chip()?;
    if matches!(work, Work::Msr(_) | Work::Hypercall(_)) {
        let reasons = KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN;
        let mut cap = kvm_enable_cap {
            cap: KVM_CAP_X86_USER_SPACE_MSR,
            ..Default::default()
        };
        cap.args[0] = u64::from(reasons);
        vm.enable_cap(&cap)?;
    }
    let mut first = vm.create_vcpu(0)?;
    let others: Result<Vec<VcpuFd>, _> = (1..cpus).map(|id| vm.create_vcpu(id)).collect();
    let _others = others?;
    protected_mode(&first)?;
    serve(&mut first)
}

/// Flat 32-bit protected mode at the entry.
pub fn protected_mode(vcpu: &VcpuFd) -> Result<(), Error> {
    let mut sregs = vcpu.get_sregs()?;
    let data = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 0x18,
        type_: 3,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: 0x10,
        type_: 11,
        ..data
    };
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data;
    }
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_bindings::kvm_regs {
        rip: u64::from(guest::ENTRY),
        rflags: 2,
        ..Default::default()
    })?;
    Ok(())
}

/// The bare loop with which the exits of a VMM are compared.
fn serve(vcpu: &mut VcpuFd) -> Result<(), Error> {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(port, _)) if port == guest::ACPI_OFF.0 => return Ok(()),
            Ok(VcpuExit::IoOut(guest::SCRATCH | guest::CALL_PORT, _)) => {}
            Ok(VcpuExit::MmioWrite(..)) => {}
            Ok(VcpuExit::X86Wrmsr(exit)) if exit.index == guest::MSR => *exit.error = 0,
            Ok(other) => return Err(format!("an unexpected exit: {other:?}").into()),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(error.into()),
        }
    }
}
