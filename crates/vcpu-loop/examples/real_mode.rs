// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Runs a real-mode guest that prints through a port and halts: `cargo run --example real_mode`.
// Giving memory to a VM takes an unsafe call.
#![allow(unsafe_code)]

use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::Kvm;
use vcpu_loop::kvm::{KvmHost, KvmVcpu};
use vcpu_loop::{Next, VcpuEvent, VcpuIo, VcpuSet, vcpu_events};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// `mov dx, 0x3f8; mov si, 0x1010; mov cx, 5; rep outsb; hlt`, and at 0x1010 the text.
const CODE: &[u8] = b"\xba\xf8\x03\xbe\x10\x10\xb9\x05\x00\xf3\x6e\xf4\x90\x90\x90\x90hello";
const DEADLINE: Duration = Duration::from_secs(60);

/// The whole machine: a port that stores what is written to it, and the guest's memory.
struct Machine {
    text: Arc<Mutex<Vec<u8>>>,
    _memory: GuestMemoryMmap,
}

impl VcpuIo for Machine {
    fn pio_write(&mut self, port: u16, data: &[u8]) -> Next {
        match (port, self.text.lock()) {
            (0x3f8, Ok(mut text)) => text.extend_from_slice(data),
            _ => return Next::Unclaimed,
        }
        Next::Continue
    }
}

/// Runs the guest until it halts, and returns what it printed.
pub fn run(kvm: &Kvm) -> Result<String, Box<dyn Error>> {
    let vm = kvm.create_vm()?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1_0000)])?;
    memory.write_slice(CODE, GuestAddress(0x1000))?;
    let region = kvm_userspace_memory_region {
        memory_size: 0x1_0000,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        ..Default::default()
    };
    // SAFETY: the region is `memory`, which the vCPU's thread shares the ownership of.
    unsafe { vm.set_user_memory_region(region) }?;

    let vcpu = KvmVcpu::new(vm.create_vcpu(0)?, &KvmHost::probe(kvm)?)?;
    let mut sregs = vcpu.fd().get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.fd().set_sregs(&sregs)?;
    let mut regs = vcpu.fd().get_regs()?;
    (regs.rip, regs.rflags) = (0x1000, 2);
    vcpu.fd().set_regs(&regs)?;

    let text = Arc::new(Mutex::new(Vec::new()));
    let (sender, events) = vcpu_events()?;
    let mut vcpus = VcpuSet::new(sender);
    vcpus.spawn(
        0,
        vcpu,
        Machine {
            text: Arc::clone(&text),
            _memory: memory,
        },
    )?;
    vcpus.resume(DEADLINE)?;
    match events.recv_timeout(DEADLINE) {
        Some(VcpuEvent::Halted { .. }) => drop(vcpus.stop(DEADLINE)?),
        Some(VcpuEvent::Fatal { report }) => return Err(report.to_string().into()),
        other => return Err(format!("expected a halt, got {other:?}").into()),
    }
    let text = text.lock().map_err(|e| e.to_string())?.clone();
    Ok(String::from_utf8(text)?)
}

/// The tests include this file as a module, without calling this.
#[allow(dead_code)]
fn main() -> Result<(), Box<dyn Error>> {
    println!("the guest says {}", run(&Kvm::new()?)?);
    Ok(())
}
