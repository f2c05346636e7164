// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! vCPUs under a seccomp filter with exactly the listed calls, which kills the process at any other. Without a usable
//! /dev/kvm each test prints SKIP.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use common::{Machine, kvm};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use vcpu_loop::kvm::seccomp::{Ioctl, REPORT, RESTORE, RUN, SAVE, SYSCALLS};
use vcpu_loop::kvm::{KvmVcpu, VcpuState};
use vcpu_loop::{Next, State, VcpuBuilder, VcpuEvent, VcpuEvents, VcpuIo, VcpuSet, vcpu_events};

/// Only a hang takes this long, even on a slow machine.
const SOON: Duration = Duration::from_secs(600);

fn filter(ioctls: &[&[Ioctl]]) -> BpfProgram {
    let request = |ioctl: &Ioctl| {
        let (width, equal) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
        let condition = SeccompCondition::new(1, width, equal, ioctl.request.into());
        SeccompRule::new(vec![condition.unwrap()]).unwrap()
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (_, number) in SYSCALLS {
        rules.insert(*number, Vec::new());
    }
    let ioctls = ioctls.concat();
    rules.insert(libc::SYS_ioctl, ioctls.iter().map(request).collect());
    let (others, listed) = (SeccompAction::KillProcess, SeccompAction::Allow);
    let filter = SeccompFilter::new(rules, others, listed, TargetArch::x86_64);
    filter.unwrap().try_into().unwrap()
}

/// Reports when the guest writes a port.
struct Device(Sender<()>);

impl VcpuIo for Device {
    fn pio_write(&mut self, _: u16, _: &[u8]) -> Next {
        let _ = self.0.send(());
        Next::Continue
    }
}

/// Spawns a vCPU whose thread may only make these ioctls, and checks that the filter is installed.
fn spawn(vcpu: KvmVcpu, ioctls: &[&[Ioctl]], io: Device) -> (VcpuSet<VcpuState>, VcpuEvents) {
    let (sender, events) = vcpu_events().unwrap();
    let mut vcpus = VcpuSet::new(sender);
    let program = filter(ioctls);
    let (thread, at) = channel();
    let builder = VcpuBuilder::new(0, vcpu, io).on_start(move |_, _| {
        thread.send(std::fs::read_link("/proc/thread-self")?)?;
        Ok(seccompiler::apply_filter(&program)?)
    });
    vcpus.spawn_with(builder).unwrap();
    let thread = at.recv_timeout(SOON).unwrap();
    vcpus.resume(SOON).unwrap();
    let status = std::fs::read_to_string(std::path::Path::new("/proc").join(thread).join("status"));
    assert!(status.unwrap().contains("Seccomp:\t2"));
    (vcpus, events)
}

#[test]
fn a_vcpu_lives_on_the_listed_calls() {
    let Some(kvm) = kvm("a_vcpu_lives_on_the_listed_calls") else {
        return;
    };
    // out 0x80, al; jmp to it
    let storm = b"\xe6\x80\xeb\xfc";
    let (device, heard) = channel();
    let machine = Machine::new(&kvm, storm);
    let vcpu = machine.vcpu(0).with_noticeable_pause(Duration::ZERO);
    let (mut vcpus, _events) = spawn(vcpu, &[RUN, SAVE], Device(device.clone()));
    heard.recv_timeout(SOON).unwrap();
    vcpus.pause(SOON).unwrap();
    vcpus.resume(SOON).unwrap();
    vcpus.pause(SOON).unwrap();
    let states = vcpus.save(SOON).unwrap();
    vcpus.stop(SOON).unwrap();

    let machine = Machine::new(&kvm, storm);
    let (mut vcpus, _events) = spawn(machine.vcpu(0), &[RUN, RESTORE], Device(device.clone()));
    vcpus.pause(SOON).unwrap();
    vcpus.restore(states.clone(), SOON).unwrap();
    vcpus.resume(SOON).unwrap();
    vcpus.pause(SOON).unwrap();
    vcpus.restore(states, SOON).unwrap();
    vcpus.stop(SOON).unwrap();

    // ud2, without an IDT
    let machine = Machine::new(&kvm, b"\x0f\x0b");
    let vcpu = machine.protected_mode_vcpu(0);
    let (mut vcpus, events) = spawn(vcpu, &[RUN, REPORT], Device(device));
    assert!(matches!(
        events.recv_timeout(SOON),
        Some(VcpuEvent::Shutdown { .. })
    ));
    vcpus.stop(SOON).unwrap();
}

/// The caller's thread has its filter before it runs the vCPU.
#[test]
fn a_vcpu_on_a_confined_thread_of_the_callers_lives_on_the_listed_calls() {
    let Some(kvm) = kvm("a_vcpu_on_a_confined_thread_of_the_callers_lives_on_the_listed_calls")
    else {
        return;
    };
    // out 0x80, al; jmp to it
    let machine = Machine::new(&kvm, b"\xe6\x80\xeb\xfc");
    let (device, heard) = channel();
    let (sender, _events) = vcpu_events().unwrap();
    let mut vcpus = VcpuSet::new(sender);
    let builder = VcpuBuilder::new(0, machine.vcpu(0), Device(device));
    let runner = vcpus.attach(builder).unwrap();
    let program = filter(&[RUN]);
    let thread = std::thread::spawn(move || {
        seccompiler::apply_filter(&program).unwrap();
        runner.run_here()
    });
    vcpus.resume(SOON).unwrap();
    heard.recv_timeout(SOON).unwrap();
    vcpus.stop(SOON).unwrap();
    assert_eq!(thread.join().unwrap().state, State::Running);
}
