// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Saved vCPUs of guests that registered for hypercalls, restored in another machine.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::time::{Duration, Instant};

use bare::lab::{MAGIC, PARA, RBX, STUB, call, registers};
use bare::registration::Registration;
use bare::registration::Verdict::Registered;
use bare::{Asm, Built, Vm, guest};
use kvm_ioctls::Kvm;
use mini_vmm::config::{HypercallRoute, SerialSpec, VmSpec};
use mini_vmm::layout::MIB;
use mini_vmm::machine::{Machine, MachineVcpuState};
use mini_vmm::outcome::{Outcome, OutcomeLatch};
use para_abi::vmm::{VMM_HC_EXIT, VMM_HC_NOP};
use para_msr::para::ParaMsrState;
use vm_memory::{Bytes, GuestAddress};

/// The address of the guest's call counter, and of the flag that ends it.
const COUNT: u64 = 0x40_0000;
const GO_ON: u64 = COUNT + 4;
/// A generous limit, only to end a hang.
const SOON: Duration = Duration::from_secs(600);
const RAM: u64 = 32 * MIB;

/// Ends the run with this status.
fn exit(asm: &mut Asm, status: u64) {
    let mut registers = registers(VMM_HC_EXIT);
    registers[RBX] = status;
    call(asm, STUB, &registers);
}

/// Registers, then calls in a loop and counts. A wrong answer ends with status 1, as does a word at [`GO_ON`] that is
/// 0.
fn calling_guest(test: &str) -> Option<Vm> {
    let guest = guest(|asm| {
        Registration::new("a registration", Registered).prepare(asm);
        asm.wrmsr(MAGIC, PARA);
        asm.forever(|asm| {
            call(asm, STUB, &registers(VMM_HC_NOP));
            // test rax, rax
            asm.raw(&[0x48, 0x85, 0xc0])
                .if_different(|asm| exit(asm, 1));
            // inc dword [rdi]
            asm.rdi(COUNT).raw(&[0xff, 0x07]).load(GO_ON);
            asm.compare_eax(0).if_different(|asm| exit(asm, 0));
        });
    });
    Vm::new(test, &guest)
}

/// A machine with that guest and route `route`, not yet started.
fn machine(vm: &Vm, route: &str) -> (Machine, OutcomeLatch) {
    let spec = VmSpec {
        memory: RAM,
        serial: SerialSpec::Off,
        hypercall: route.parse::<HypercallRoute>().unwrap(),
        ..VmSpec::new(vm.path("kernel"))
    };
    let Built { machine, latch } = Built::new(&spec, None);
    (machine, latch)
}

fn counted(machine: &Machine) -> u32 {
    machine.memory().read_obj(GuestAddress(COUNT)).unwrap()
}

fn site(machine: &Machine) -> [u8; 4] {
    machine.memory().read_obj(GuestAddress(STUB)).unwrap()
}

fn wait_until(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Tells the guest to end, and returns its outcome.
fn end(machine: &Machine, latch: &OutcomeLatch) -> Outcome {
    machine
        .memory()
        .write_obj(1u32, GuestAddress(GO_ON))
        .unwrap();
    wait_until(|| latch.is_set());
    latch.get().unwrap()
}

/// Another machine with the same memory and vCPUs, and route `route`.
fn elsewhere(
    vm: &Vm,
    from: &Machine,
    states: Vec<MachineVcpuState>,
    route: &str,
) -> (Machine, OutcomeLatch) {
    let (to, latch) = machine(vm, route);
    copy_memory(from, &to);
    to.restore_vcpus(states).unwrap();
    (to, latch)
}

fn copy_memory(from: &Machine, to: &Machine) {
    let mut ram = vec![0; RAM as usize];
    from.memory().read_slice(&mut ram, GuestAddress(0)).unwrap();
    to.memory().write_slice(&ram, GuestAddress(0)).unwrap();
}

#[test]
fn h6_a_guest_goes_on_calling_where_calls_go_another_way() {
    let Some(vm) = calling_guest("h6_a_guest_goes_on_calling_where_calls_go_another_way") else {
        return;
    };
    let (first, latch) = machine(&vm, "pio=0x10");
    first.start().unwrap();
    wait_until(|| counted(&first) > 100);
    // At most of these pauses a call is pending. None is lost or repeated, else its answer would not be 0.
    for _ in 0..50 {
        first.pause().unwrap();
        first.start().unwrap();
    }
    first.pause().unwrap();
    let states = first.save_vcpus().unwrap();
    let json = serde_json::to_string(&states).unwrap();
    let registration = states[0].para.registration.unwrap();
    assert_eq!(registration.para_state_gpa, PARA);
    assert_eq!(registration.hypercall_gpa, STUB);
    assert_eq!(site(&first), [0xe6, 0x10, 0xc3, 0xcc]);

    let states = serde_json::from_str(&json).unwrap();
    let (second, second_latch) = elsewhere(&vm, &first, states, "pio=0x11");
    assert_eq!(site(&second), [0xe6, 0x11, 0xc3, 0xcc], "written anew");
    let before = counted(&second);
    second.start().unwrap();
    wait_until(|| counted(&second) > before.wrapping_add(100));
    assert_eq!(end(&second, &second_latch), Outcome::GuestExit(0));
    // The first machine is unaffected.
    first.start().unwrap();
    assert_eq!(end(&first, &latch), Outcome::GuestExit(0));
}

/// The guest is in its stub most of the time, at a `ret` that the other kind of stub doesn't have there.
#[test]
fn h6_a_guest_that_calls_by_port_is_not_given_the_vendors_instruction() {
    let name = "h6_a_guest_that_calls_by_port_is_not_given_the_vendors_instruction";
    let Some(vm) = calling_guest(name) else {
        return;
    };
    let (first, _latch) = machine(&vm, "pio=0x10");
    first.start().unwrap();
    wait_until(|| counted(&first) > 100);
    first.pause().unwrap();
    let states = first.save_vcpus().unwrap();

    let (vendor, _latch) = machine(&vm, "vendor");
    copy_memory(&first, &vendor);
    let rip = |machine: &Machine| machine.save_vcpus().unwrap()[0].vcpu.regs.rip;
    let before = rip(&vendor);
    let refused = vendor.restore_vcpus(states.clone()).unwrap_err();
    let text = mini_vmm::logging::sentence(&refused);
    assert!(text.contains("out 0x10, al; ret; int3"), "{text}");
    assert_eq!(site(&vendor), [0xe6, 0x10, 0xc3, 0xcc], "untouched");
    assert_eq!(rip(&vendor), before, "nothing has changed");

    // With route auto the machine keeps the kind, whatever this host's KVM supports.
    let (auto, latch) = elsewhere(&vm, &first, states, "auto");
    assert_eq!(site(&auto), [0xe6, 0xf5, 0xc3, 0xcc]);
    let before = counted(&auto);
    auto.start().unwrap();
    wait_until(|| counted(&auto) > before.wrapping_add(100));
    assert_eq!(end(&auto, &latch), Outcome::GuestExit(0));
}

/// KVM neither lists the MSR nor saves its state.
#[test]
fn r14_kvm_does_not_save_the_registration_and_we_do() {
    let Some(vm) = calling_guest("r14_kvm_does_not_save_the_registration_and_we_do") else {
        return;
    };
    let listed = Kvm::new().unwrap().get_msr_index_list().unwrap();
    assert!(!listed.as_slice().contains(&MAGIC));
    let (first, _latch) = machine(&vm, "pio");
    first.start().unwrap();
    wait_until(|| counted(&first) > 0);
    first.pause().unwrap();
    let states = first.save_vcpus().unwrap();
    assert!(!states[0].vcpu.msrs.is_empty());
    assert!(states[0].vcpu.msrs.iter().all(|msr| msr.index != MAGIC));
    assert!(states[0].para.registration.is_some());

    // The registration is in our part of the state: without it a machine loses the registration.
    let (second, latch) = elsewhere(&vm, &first, states.clone(), "pio");
    let mut without = states.clone();
    without[0].para = ParaMsrState::default();
    second.restore_vcpus(without).unwrap();
    assert_eq!(second.save_vcpus().unwrap()[0].para.registration, None);
    second.restore_vcpus(states.clone()).unwrap();
    assert_eq!(second.save_vcpus().unwrap()[0].para, states[0].para);
    second.start().unwrap();
    assert_eq!(end(&second, &latch), Outcome::GuestExit(0));
}

#[test]
fn h5_a_machine_made_anew_has_no_registration() {
    let Some(vm) = calling_guest("h5_a_machine_made_anew_has_no_registration") else {
        return;
    };
    let (fresh, _latch) = machine(&vm, "pio");
    let states = fresh.save_vcpus().unwrap();
    assert_eq!(states[0].para.registration, None);
}
