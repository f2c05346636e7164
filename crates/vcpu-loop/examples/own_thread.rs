// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Runs a vCPU on the calling thread, for VMMs that create their own threads: `cargo run --example own_thread`.
// Giving memory to a VM takes an unsafe call.
#![allow(unsafe_code)]

use std::error::Error;
use std::thread;
use std::time::Duration;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::Kvm;
use vcpu_loop::kvm::{KvmHost, KvmVcpu};
use vcpu_loop::{Next, VcpuBuilder, VcpuEvent, VcpuIo, VcpuSet, vcpu_events};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// `mov al, 'h'; out 0xe9, al; mov al, 'i'; out 0xe9, al; hlt`
const CODE: &[u8] = b"\xb0h\xe6\xe9\xb0i\xe6\xe9\xf4";
const DEADLINE: Duration = Duration::from_secs(60);

/// A port that stores what is written to it, and the guest's memory. It needs no lock, because it stays on one thread.
struct Machine {
    text: Vec<u8>,
    _memory: GuestMemoryMmap,
}

impl VcpuIo for Machine {
    fn pio_write(&mut self, port: u16, data: &[u8]) -> Next {
        if port != 0xe9 {
            return Next::Unclaimed;
        }
        self.text.extend_from_slice(data);
        Next::Continue
    }
}

/// Runs the guest on the calling thread until it halts, and returns what it wrote.
pub fn run(kvm: &Kvm) -> Result<String, Box<dyn Error>> {
    let vm = kvm.create_vm()?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1_0000)])?;
    memory.write_slice(CODE, GuestAddress(0x1000))?;
    let region = kvm_userspace_memory_region {
        memory_size: 0x1_0000,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        ..Default::default()
    };
    // SAFETY: the region is `memory`, which the vCPU's I/O object shares the ownership of.
    unsafe { vm.set_user_memory_region(region) }?;
    let vcpu = KvmVcpu::new(vm.create_vcpu(0)?, &KvmHost::probe(kvm)?)?;
    let mut sregs = vcpu.fd().get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.fd().set_sregs(&sregs)?;
    let mut regs = vcpu.fd().get_regs()?;
    (regs.rip, regs.rflags) = (0x1000, 2);
    vcpu.fd().set_regs(&regs)?;

    let (sender, events) = vcpu_events()?;
    let mut vcpus = VcpuSet::new(sender);
    let io = Machine {
        text: Vec::new(),
        _memory: memory,
    };
    let runner = vcpus.attach(VcpuBuilder::new(0, vcpu, io))?;
    // The VMM's event loop; its first request waits until `run_here` runs.
    let control = thread::spawn(move || {
        vcpus.resume(DEADLINE)?;
        let event = events.recv_timeout(DEADLINE);
        vcpus.stop(DEADLINE)?;
        Ok::<_, vcpu_loop::Error>(event)
    });
    let stopped = runner.run_here();
    match control.join() {
        Ok(Ok(Some(VcpuEvent::Halted { .. }))) => Ok(String::from_utf8(stopped.io.text)?),
        Ok(Ok(Some(VcpuEvent::Fatal { report }))) => Err(report.to_string().into()),
        other => Err(format!("expected a halt, got {other:?}").into()),
    }
}

/// The tests include this file as a module, without calling this.
#[allow(dead_code)]
fn main() -> Result<(), Box<dyn Error>> {
    println!("the guest says {}", run(&Kvm::new()?)?);
    Ok(())
}
