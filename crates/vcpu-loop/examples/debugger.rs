// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stops one of two vCPUs, single-steps it, and resumes it, as a gdb stub does: `cargo run --example debugger`.
// Giving memory to a VM takes an unsafe call.
#![allow(unsafe_code)]

use std::error::Error;
use std::time::Duration;

use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, kvm_guest_debug, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VmFd};
use vcpu_loop::kvm::{KvmHost, KvmVcpu, VcpuState};
use vcpu_loop::{ExitKind, Next, VcpuEvent, VcpuEvents, VcpuIo, VcpuSet, vcpu_events};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Where the guest's code is: `inc ax; out 0x80, al; jmp $-3`.
const ENTRY: u64 = 0x1000;
const CODE: &[u8] = b"\x40\xe6\x80\xeb\xfb";
const DEADLINE: Duration = Duration::from_secs(60);

/// A port that ignores writes, and the guest's memory.
struct Machine {
    _memory: GuestMemoryMmap,
}

impl VcpuIo for Machine {
    fn pio_write(&mut self, _: u16, _: &[u8]) -> Next {
        Next::Continue
    }
}

/// A debugger of two vCPUs.
struct Debugger {
    vcpus: VcpuSet<VcpuState>,
    events: VcpuEvents,
}

impl Debugger {
    /// Both vCPUs run the same code in real mode.
    fn new(kvm: &Kvm) -> Result<Self, Box<dyn Error>> {
        let vm = kvm.create_vm()?;
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1_0000)])?;
        memory.write_slice(CODE, GuestAddress(ENTRY))?;
        let region = kvm_userspace_memory_region {
            memory_size: 0x1_0000,
            userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
            ..Default::default()
        };
        // SAFETY: the region is `memory`, which each vCPU's thread shares the ownership of.
        unsafe { vm.set_user_memory_region(region) }?;
        let host = KvmHost::probe(kvm)?;
        let (sender, events) = vcpu_events()?;
        let mut vcpus = VcpuSet::new(sender);
        for id in 0..2 {
            let vcpu = KvmVcpu::new(real_mode(&vm, id)?, &host)?;
            let io = Machine {
                _memory: memory.clone(),
            };
            vcpus.spawn(id, vcpu, io)?;
        }
        vcpus.resume(DEADLINE)?;
        Ok(Debugger { vcpus, events })
    }

    /// Turns single-stepping of a paused vCPU on or off (KVM API, `KVM_SET_GUEST_DEBUG`).
    fn trap(&self, id: u32, on: bool) -> Result<(), Box<dyn Error>> {
        let debug = kvm_guest_debug {
            control: match on {
                true => KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP,
                false => 0,
            },
            ..Default::default()
        };
        let set = move |vcpu: &mut KvmVcpu| vcpu.fd().set_guest_debug(&debug);
        Ok(self.vcpus.with_vcpu(id, set, DEADLINE)??)
    }

    /// Runs one instruction of a trapped vCPU, and returns the address of the next one.
    fn step(&self, id: u32) -> Result<u64, Box<dyn Error>> {
        self.vcpus.resume_vcpu(id, DEADLINE)?;
        match self.events.recv_timeout(DEADLINE) {
            Some(VcpuEvent::Debug { id: stopped, debug }) if stopped.0 == id => {
                // Until this, every resume is refused.
                self.vcpus.acknowledge(id, DEADLINE)?;
                Ok(debug.pc)
            }
            other => Err(format!("expected a step, got {other:?}").into()),
        }
    }

    /// Waits for the next port write of a vCPU.
    fn wait_for_a_write(&self, id: u32) -> Result<(), Box<dyn Error>> {
        let exits = self.vcpus.exits(id).ok_or("there is no such vCPU")?;
        let before = exits.count(ExitKind::PioOut);
        while exits.count(ExitKind::PioOut) == before {
            std::thread::yield_now();
        }
        Ok(())
    }
}

fn real_mode(vm: &VmFd, id: u32) -> Result<kvm_ioctls::VcpuFd, kvm_ioctls::Error> {
    let fd = vm.create_vcpu(id.into())?;
    let mut sregs = fd.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    fd.set_sregs(&sregs)?;
    let mut regs = fd.get_regs()?;
    (regs.rip, regs.rflags) = (ENTRY, 2);
    fd.set_regs(&regs)?;
    Ok(fd)
}

/// Returns the address of vCPU 1 after each of `steps` steps. vCPU 0 runs meanwhile, and both run at the end.
pub fn run(kvm: &Kvm, steps: usize) -> Result<Vec<u64>, Box<dyn Error>> {
    let mut debugger = Debugger::new(kvm)?;
    debugger.wait_for_a_write(1)?;
    debugger.vcpus.pause_vcpu(1, DEADLINE)?;
    debugger.trap(1, true)?;
    let mut places = Vec::with_capacity(steps);
    for _ in 0..steps {
        places.push(debugger.step(1)?);
    }
    debugger.wait_for_a_write(0)?;
    debugger.trap(1, false)?;
    debugger.vcpus.resume_vcpu(1, DEADLINE)?;
    debugger.wait_for_a_write(1)?;
    debugger.vcpus.stop(DEADLINE)?;
    Ok(places)
}

/// The tests include this file as a module, without calling this.
#[allow(dead_code)]
fn main() -> Result<(), Box<dyn Error>> {
    for place in run(&Kvm::new()?, 6)? {
        println!("vCPU 1 is at {place:#x}");
    }
    Ok(())
}
