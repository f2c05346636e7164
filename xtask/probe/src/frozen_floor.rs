// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The floor of a restore: a VM, a mapped file, the state that any machine has, and one instruction of its guest.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs,
    kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::floor::{HOLE_END, HOLE_START, protected_mode};
use crate::guest::{self, End, Work};
use crate::{Error, sys};

/// The interrupt controllers, by KVM's numbers.
const CHIPS: u32 = 3;

/// Directory and bytes of memory.
fn parse<'a>(words: &[&'a str]) -> Result<(&'a Path, usize), Error> {
    let &[directory, mib] = words else {
        return Err("say freeze-floor or thaw-floor DIRECTORY MIB".into());
    };
    Ok((Path::new(directory), mib.parse::<usize>()? << 20))
}

/// Saves a guest after its first sign. It never writes to memory.
pub fn freeze(words: &[&str]) -> Result<(), Error> {
    let (directory, size) = parse(words)?;
    fs::create_dir_all(directory)?;
    let memory = File::create(directory.join("memory"))?;
    let code = guest::code(Work::Signs, End::Acpi);
    memory.write_all_at(&code, guest::ENTRY.into())?;
    memory.set_len(size as u64)?;
    let kvm = Kvm::new()?;
    let (vm, mut vcpu) = create(&kvm, &File::open(directory.join("memory"))?, size)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    protected_mode(&vcpu)?;
    run_to_sign(&mut vcpu)?;
    fs::write(directory.join("state"), save(&kvm, &vm, &vcpu)?)?;
    Ok(())
}

/// Lets the guest go on, and passes its next sign on.
pub fn thaw(words: &[&str]) -> Result<(), Error> {
    let (directory, size) = parse(words)?;
    let state = fs::read(directory.join("state"))?;
    let memory = File::open(directory.join("memory"))?;
    let (vm, mut vcpu) = create(&Kvm::new()?, &memory, size)?;
    restore(&mut Reader(&state), &vm, &vcpu)?;
    run_to_sign(&mut vcpu)?;
    std::io::stdout().write_all(&[guest::SIGN])?;
    Ok(())
}

fn create(kvm: &Kvm, memory: &File, size: usize) -> Result<(VmFd, VcpuFd), Error> {
    let vm = kvm.create_vm()?;
    let low = size.min(HOLE_START);
    sys::give_file(&vm, 0, 0, low, (memory, 0))?;
    if size > low {
        sys::give_file(&vm, 1, HOLE_END, size - low, (memory, low as u64))?;
    }
    vm.create_irq_chip()?;
    let vcpu = vm.create_vcpu(0)?;
    Ok((vm, vcpu))
}

fn run_to_sign(vcpu: &mut VcpuFd) -> Result<(), Error> {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(guest::SERIAL, _)) => return Ok(()),
            Ok(other) => return Err(format!("an unexpected exit: {other:?}").into()),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// KVM's structures one after another, lists with their length before them.
fn save(kvm: &Kvm, vm: &VmFd, vcpu: &VcpuFd) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES)?;
    put_all(&mut bytes, cpuid.as_slice());
    put_all(&mut bytes, &readable_msrs(kvm, vcpu)?);
    bytes.extend(vcpu.get_mp_state()?.as_bytes());
    bytes.extend(vcpu.get_regs()?.as_bytes());
    bytes.extend(vcpu.get_sregs()?.as_bytes());
    bytes.extend(vcpu.get_xsave()?.as_bytes());
    bytes.extend(vcpu.get_xcrs()?.as_bytes());
    bytes.extend(vcpu.get_debug_regs()?.as_bytes());
    bytes.extend(vcpu.get_lapic()?.as_bytes());
    bytes.extend(vcpu.get_vcpu_events()?.as_bytes());
    for chip_id in 0..CHIPS {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        vm.get_irqchip(&mut chip)?;
        bytes.extend(chip.as_bytes());
    }
    bytes.extend(vm.get_clock()?.clock.as_bytes());
    Ok(bytes)
}

/// The MSRs that KVM lists, reads and takes back.
fn readable_msrs(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<kvm_msr_entry>, Error> {
    let mut all = Vec::new();
    for &index in kvm.get_msr_index_list()?.as_slice() {
        let entry = kvm_msr_entry {
            index,
            ..Default::default()
        };
        let mut one = Msrs::from_entries(&[entry])?;
        if vcpu.get_msrs(&mut one)? == 1 && vcpu.set_msrs(&one)? == 1 {
            all.extend_from_slice(one.as_slice());
        }
    }
    Ok(all)
}

/// Restores what [`save`] returned.
fn restore(state: &mut Reader, vm: &VmFd, vcpu: &VcpuFd) -> Result<(), Error> {
    vcpu.set_cpuid2(&CpuId::from_entries(&state.all::<kvm_cpuid_entry2>()?)?)?;
    let msrs = Msrs::from_entries(&state.all::<kvm_msr_entry>()?)?;
    vcpu.set_mp_state(state.one::<kvm_mp_state>()?)?;
    vcpu.set_regs(&state.one::<kvm_regs>()?)?;
    vcpu.set_sregs(&state.one::<kvm_sregs>()?)?;
    sys::set_xsave(vcpu, &state.one::<kvm_xsave>()?)?;
    vcpu.set_xcrs(&state.one::<kvm_xcrs>()?)?;
    vcpu.set_debug_regs(&state.one::<kvm_debugregs>()?)?;
    vcpu.set_lapic(&state.one::<kvm_lapic_state>()?)?;
    if vcpu.set_msrs(&msrs)? != msrs.as_slice().len() {
        return Err("KVM refused an MSR".into());
    }
    vcpu.set_vcpu_events(&state.one::<kvm_vcpu_events>()?)?;
    for _ in 0..CHIPS {
        vm.set_irqchip(&state.one::<kvm_irqchip>()?)?;
    }
    let clock = state.one::<u64>()?;
    vm.set_clock(&kvm_clock_data {
        clock,
        ..Default::default()
    })?;
    Ok(())
}

fn put_all<T: IntoBytes + Immutable>(bytes: &mut Vec<u8>, all: &[T]) {
    bytes.extend((all.len() as u64).as_bytes());
    bytes.extend(all.as_bytes());
}

/// The rest of a saved state.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn one<T: FromBytes>(&mut self) -> Result<T, Error> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| "the state is cut off")?;
        self.0 = rest;
        Ok(value)
    }

    fn all<T: FromBytes>(&mut self) -> Result<Vec<T>, Error> {
        (0..self.one::<u64>()?).map(|_| self.one()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let msr = |index| kvm_msr_entry {
            index,
            data: 7,
            ..Default::default()
        };
        let mut bytes = Vec::new();
        put_all(&mut bytes, &[msr(1), msr(2)]);
        bytes.extend(9u64.as_bytes());
        let mut reader = Reader(&bytes);
        assert_eq!(reader.all::<kvm_msr_entry>().unwrap(), [msr(1), msr(2)]);
        assert_eq!(reader.one::<u64>().unwrap(), 9);
        assert!(reader.one::<u64>().is_err());
        assert!(Reader(&bytes[..30]).all::<kvm_msr_entry>().is_err());
    }
}
