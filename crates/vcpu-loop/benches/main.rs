// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Exits per second through decoding, dispatch, bus and device, compared with a bare `KVM_RUN` loop: port, MMIO and MSR
//! writes.
//!
//! `cargo bench -p vcpu-loop`. The two alternate in one run; compare the ratio of their medians.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "../tests/common/mod.rs"]
mod common;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use common::Machine;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vcpu_loop::bus::{Bus, BusBuilder, BusDevice, Place};
use vcpu_loop::kvm::KvmVcpu;
use vcpu_loop::{
    ExitHistory, ExitRecord, Flow, MsrReply, Next, Unclaimed, Vcpu, VcpuId, VcpuIo, dispatch,
};

/// Guests that exit all the time: the kind of write, and the code.
const STORMS: [(&str, &[u8]); 3] = [
    // out 0x80, al; jmp -4
    ("port", b"\xe6\x80\xeb\xfc"),
    // mov ax, 0xa000; mov ds, ax; mov [0], al; jmp -5
    ("MMIO", b"\xb8\x00\xa0\x8e\xd8\xa2\x00\x00\xeb\xfb"),
    // mov ecx, MSR; wrmsr; jmp -4
    ("MSR", b"\x66\xb9\x78\x56\x65\x87\x0f\x30\xeb\xfc"),
];
const EXITS: u32 = 20_000;
const ROUNDS: usize = 15;

struct Latch(Mutex<u8>);

impl BusDevice for Latch {
    fn read(&self, _: Place, data: &mut [u8]) -> Next {
        data.fill(*self.0.lock().unwrap());
        Next::Continue
    }
    fn write(&self, _: Place, data: &[u8]) -> Next {
        *self.0.lock().unwrap() = data[0];
        Next::Continue
    }
}

struct Io(Arc<Bus>);

impl VcpuIo for Io {
    fn mmio_write(&mut self, addr: u64, data: &[u8]) -> Next {
        self.0.mmio_write(addr, data)
    }
    fn wrmsr(&mut self, index: u32, _: u64) -> MsrReply<()> {
        match index {
            common::MSR => MsrReply::Value(()),
            _ => MsrReply::Unclaimed,
        }
    }
    fn pio_write(&mut self, port: u16, data: &[u8]) -> Next {
        self.0.pio_write(port, data)
    }
}

fn bare(fd: &mut VcpuFd) -> f64 {
    let start = Instant::now();
    for _ in 0..EXITS {
        match fd.run().unwrap() {
            VcpuExit::IoOut(0x80, data) | VcpuExit::MmioWrite(0xa_0000, data) => {
                assert_eq!(data.len(), 1);
            }
            VcpuExit::X86Wrmsr(exit) => *exit.error = 0,
            other => panic!("{other:?}"),
        }
    }
    f64::from(EXITS) / start.elapsed().as_secs_f64()
}

fn looped(vcpu: &mut KvmVcpu, io: &mut Io) -> f64 {
    let (unclaimed, mut history) = (Unclaimed::default(), ExitHistory::default());
    let start = Instant::now();
    for _ in 0..EXITS {
        let exit = vcpu.run().unwrap();
        history.push(ExitRecord::from(&exit));
        assert_eq!(dispatch(exit, io, VcpuId(0), &unclaimed), Flow::Continue);
    }
    f64::from(EXITS) / start.elapsed().as_secs_f64()
}

/// What user space adds to an exit, without decoding, in nanoseconds.
fn dispatch_alone(io: &mut Io) -> f64 {
    let (unclaimed, mut history) = (Unclaimed::default(), ExitHistory::default());
    let rounds = 5_000_000;
    let start = Instant::now();
    for _ in 0..rounds {
        let exit = std::hint::black_box(vcpu_loop::Exit::PioOut {
            port: 0x80,
            size: 1,
            data: &[1],
        });
        history.push(ExitRecord::from(&exit));
        let _ = std::hint::black_box(dispatch(exit, io, VcpuId(0), &unclaimed));
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(rounds)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let mut builder = BusBuilder::new();
    for base in (0x80..0x400).step_by(0x40) {
        builder
            .insert_pio(base, 8, Arc::new(Latch(Mutex::new(0))))
            .unwrap();
    }
    builder
        .insert_mmio(0xa_0000, 0x1000, Arc::new(Latch(Mutex::new(0))))
        .unwrap();
    let mut io = Io(builder.build());
    println!(
        "history, dispatch, bus and device: {:.1} ns per exit",
        dispatch_alone(&mut io)
    );
    let Some(kvm) = common::kvm("benches/main") else {
        return;
    };
    for (kind, code) in STORMS {
        storm(&kvm, kind, code, &mut io);
    }
}

/// Two machines that run the same guest, in turn.
fn storm(kvm: &Kvm, kind: &str, code: &[u8], io: &mut Io) {
    let machine = Machine::new(kvm, code);
    let other = Machine::new(kvm, code);
    machine.own_msr();
    other.own_msr();
    let mut vcpu = machine.vcpu(0);
    let prepared = other.vcpu(0);
    let (sregs, regs) = (
        prepared.fd().get_sregs().unwrap(),
        prepared.fd().get_regs().unwrap(),
    );
    let mut fd = other.vm.create_vcpu(1).unwrap();
    fd.set_sregs(&sregs).unwrap();
    fd.set_regs(&regs).unwrap();
    let (mut bares, mut loops) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bares.push(bare(&mut fd));
        loops.push(looped(&mut vcpu, io));
    }
    let (bare, looped) = (median(bares), median(loops));
    println!(
        "{kind} writes: bare KVM_RUN loop {bare:.0} exits/s, vcpu-loop {looped:.0}, ratio {:.3}",
        looped / bare
    );
}
