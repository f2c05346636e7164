// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A registration as part of a saved vCPU.

use std::sync::atomic::Ordering;

use hypercall_patch::{PioPort, Stub};
use para_abi::{Convention, ParaStatePayload};
use para_msr::ParaMsrState;
use para_msr::para::ParaRegistration;
use vcpu_loop::script::{ScriptState, ScriptedVcpu, Step};
use vcpu_loop::{VcpuBuilder, VcpuEvents, VcpuSet, vcpu_events};
use vm_memory::{Bytes, GuestAddress};

use super::{Machine, PAGE, SITE, SOON, register};
use crate::config::HypercallRoute;
use crate::machine::{MachineVcpuState, state_hooks};

/// A set with one scripted vCPU of `machine`, with the hooks of real ones.
fn set(
    machine: &Machine,
    script: Vec<Step>,
) -> (VcpuSet<MachineVcpuState<ScriptState>>, VcpuEvents) {
    let (sender, events) = vcpu_events().unwrap();
    let mut set = VcpuSet::new(sender);
    let vcpu = VcpuBuilder::new(0, ScriptedVcpu::new(script), machine.io(0));
    set.spawn_with(vcpu.state_hooks(state_hooks())).unwrap();
    (set, events)
}

/// Writes a stub of another host at the guest's call site.
fn stand(machine: &Machine, stub: Stub) {
    let site = GuestAddress(SITE);
    machine.memory.write_obj(stub.bytes(), site).unwrap();
}

fn run_to_the_end(set: &VcpuSet<MachineVcpuState<ScriptState>>, machine: &Machine) {
    set.resume(SOON).unwrap();
    let start = std::time::Instant::now();
    while machine.page().ret != 0 {
        assert!(start.elapsed() < SOON);
        std::thread::yield_now();
    }
    set.pause(SOON).unwrap();
}

#[test]
fn h6_a_saved_vcpu_has_its_registration_and_no_wrmsr_pending() {
    let machine = Machine::pio();
    machine.prepare(SITE);
    let (vcpus, _events) = set(&machine, vec![register()]);
    run_to_the_end(&vcpus, &machine);
    // The scripted vCPU panics if it is saved with an access pending.
    let states = vcpus.save(SOON).unwrap();
    let registration = ParaRegistration::new(PAGE, SITE);
    assert_eq!(states[0].para.registration, Some(registration));
    assert_eq!(states[0].vcpu.retired, 1);

    // Restored on a host with another port: patched again, the page unchanged, calls answered.
    let other = Machine::pio();
    stand(&other, Stub::Pio(PioPort::new(0x10).unwrap()));
    other.prepare(SITE);
    let (elsewhere, _events) = set(&other, vec![]);
    elsewhere.restore(states.clone(), SOON).unwrap();
    assert_eq!(other.site(), [0xe6, 0xf5, 0xc3, 0xcc]);
    assert_eq!(other.page(), ParaStatePayload::new(SITE));
    assert!(other.registers[0].is_shared(), "the gate is open");
    assert_eq!(elsewhere.save(SOON).unwrap(), states);
}

#[test]
fn h6_a_guest_that_calls_another_way_is_refused_until_it_is_let() {
    let state = MachineVcpuState {
        vcpu: ScriptState::default(),
        para: ParaMsrState::registered(ParaRegistration::new(PAGE, SITE)),
    };
    let machine = Machine::pio();
    stand(&machine, Stub::Vmx);
    let (vcpus, _events) = set(&machine, vec![]);
    let refused = vcpus.restore(vec![state.clone()], SOON).unwrap_err();
    let text = crate::logging::sentence(&refused);
    assert!(text.contains("vmcall; ret"), "{text}");
    assert_eq!(machine.site(), Stub::Vmx.bytes());
    assert!(!machine.registers[0].is_shared(), "nobody was let in");
    // Nothing has changed: the vCPU resumes as before.
    vcpus.resume(SOON).unwrap();
    vcpus.pause(SOON).unwrap();

    stand(&machine, Stub::Pio(PioPort::DEFAULT));
    vcpus.restore(vec![state.clone()], SOON).unwrap();
    let given = Some(Stub::Pio(PioPort::DEFAULT));
    let para = state.para.with_stub(given);
    assert_eq!(
        vcpus.save(SOON).unwrap(),
        [MachineVcpuState { para, ..state }]
    );
}

#[test]
fn h6_a_state_that_is_not_taken_decides_no_route() {
    let (choice, probes) = super::route::choice(HypercallRoute::Auto, b"AuthenticAMD", true);
    let machine = Machine::new(choice.unwrap(), Convention::Kvm);
    stand(&machine, Stub::Pio(PioPort::DEFAULT));
    let (vcpus, _events) = set(&machine, vec![]);
    let state = |version, para_state_gpa, vcpu| {
        let registration = ParaRegistration::new(para_state_gpa, SITE);
        let mut para = ParaMsrState::registered(registration);
        para.version = version;
        MachineVcpuState { vcpu, para }
    };
    let fresh = ScriptState::default();
    vcpus
        .restore(vec![state(99, PAGE, fresh)], SOON)
        .unwrap_err();
    vcpus
        .restore(vec![state(1, PAGE, ScriptState::MISFIT)], SOON)
        .unwrap_err();
    assert!(machine.route.port().is_some(), "it is still open");
    assert_eq!(probes.load(Ordering::Relaxed), 0);
    // A damaged registration is dropped, and leaves the choice to the next registration.
    vcpus
        .restore(vec![state(1, PAGE + 8, fresh)], SOON)
        .unwrap();
    assert_eq!(machine.route.stub(), Stub::Svm);
    assert_eq!(probes.load(Ordering::Relaxed), 1);
}

#[test]
fn h5_h6_a_machine_made_anew_is_not_registered_and_saves_that() {
    let machine = Machine::pio();
    let (vcpus, _events) = set(&machine, vec![]);
    let states = vcpus.save(SOON).unwrap();
    assert_eq!(states[0].para, ParaMsrState::default());
    vcpus.restore(states, SOON).unwrap();
    assert!(
        !machine.registers[0].is_shared(),
        "nothing to open the gate for"
    );
}

#[test]
fn h6_a_damaged_registration_is_dropped_and_a_misfit_changes_nothing() {
    let machine = Machine::pio();
    machine.prepare(SITE);
    let (vcpus, _events) = set(&machine, vec![register()]);
    run_to_the_end(&vcpus, &machine);
    let good = vcpus.save(SOON).unwrap();

    let mut misfit = good.clone();
    misfit[0].vcpu = ScriptState::MISFIT;
    misfit[0].para = ParaMsrState::default();
    vcpus.restore(misfit, SOON).unwrap_err();
    assert_eq!(vcpus.save(SOON).unwrap(), good);

    let mut damaged = good.clone();
    damaged[0].para.registration = Some(ParaRegistration::new(PAGE, u64::MAX - 1));
    vcpus.restore(damaged, SOON).unwrap();
    assert_eq!(vcpus.save(SOON).unwrap()[0].para, ParaMsrState::default());
    vcpus.restore(good.clone(), SOON).unwrap();
    assert_eq!(vcpus.save(SOON).unwrap(), good);
}

#[test]
fn a_saved_vcpu_survives_json() {
    let state = MachineVcpuState {
        vcpu: 5u64,
        para: ParaMsrState::registered(ParaRegistration::new(PAGE, SITE)),
    };
    let json = serde_json::to_string(&state).unwrap();
    assert_eq!(
        serde_json::from_str::<MachineVcpuState<u64>>(&json).unwrap(),
        state
    );
}
