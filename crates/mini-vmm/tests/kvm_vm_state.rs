// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A saved machine continues in another one: its interrupts, its interval timer, its clock.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::time::Duration;

use bare::{Built, Vm, chip_byte, guest, without_event};
use mini_vmm::config::{SerialSpec, VmSpec};
use mini_vmm::console::{Console, ConsoleOutput};
use mini_vmm::layout::{GED_GSI, MIB};
use mini_vmm::logging::sentence;
use mini_vmm::machine::{Machine, MachineState};
use mini_vmm::outcome::OutcomeLatch;
use vm_memory::{Bytes, GuestAddress};

const RAM: u64 = 32 * MIB;
/// Where the guest counts timer interrupts.
const TICKS: u64 = 4 * MIB;
/// Where KVM writes the time.
const CLOCK: u64 = TICKS + 0x1000;
/// `MSR_KVM_SYSTEM_TIME_NEW` (Linux's Documentation/virt/kvm/x86/msr.rst).
const SYSTEM_TIME: u32 = 0x4b56_4d01;
/// The offset of `system_time` in `struct pvclock_vcpu_time_info`.
const SYSTEM_TIME_NS: u64 = 16;
/// KVM connects the PIT to this pin of its IOAPIC.
const TIMER_PIN: u32 = 0;
const TIMER_VECTOR: u8 = 0x40;
/// 1,193,182 Hz divided by this is a little over 1 kHz.
const DIVISOR: [u8; 2] = [0xa0, 0x04];
const HOUR_NS: u64 = 3_600_000_000_000;

/// Counts timer interrupts in an endless loop.
fn ticking_guest(test: &str) -> Option<Vm> {
    let guest = guest(|asm| {
        let handler = guest(|asm| {
            asm.rdi(TICKS).raw(&[0xff, 0x07]); // inc dword [rdi]
            asm.wait_for_interrupts();
        });
        asm.store(TICKS, 0);
        asm.wrmsr(SYSTEM_TIME, CLOCK | 1);
        asm.idt(&[(TIMER_VECTOR, handler)]);
        asm.route(TIMER_PIN, TIMER_VECTOR);
        // The timer also reaches the PICs. Their masks are part of the state.
        asm.out(0x21, 0xff).out(0xa1, 0xff);
        // Channel 0, low byte then high byte, mode 2.
        asm.out(0x43, 0x34);
        asm.out(0x40, DIVISOR[0]).out(0x40, DIVISOR[1]);
        asm.wait_for_interrupts();
    });
    Vm::new(test, &guest)
}

fn machine(vm: &Vm, legacy_timer: bool) -> (Machine, OutcomeLatch) {
    machine_with(vm, legacy_timer, None)
}

fn machine_with(
    vm: &Vm,
    legacy_timer: bool,
    output: Option<ConsoleOutput>,
) -> (Machine, OutcomeLatch) {
    let spec = VmSpec {
        memory: RAM,
        serial: match output {
            Some(_) => SerialSpec::Stdio,
            None => SerialSpec::Off,
        },
        legacy_timer,
        ..VmSpec::new(vm.path("kernel"))
    };
    let Built { machine, latch } = Built::new(&spec, output);
    (machine, latch)
}

fn ticks(machine: &Machine) -> u32 {
    machine.memory().read_obj(GuestAddress(TICKS)).unwrap()
}

fn guest_clock(machine: &Machine) -> u64 {
    let at = GuestAddress(CLOCK + SYSTEM_TIME_NS);
    machine.memory().read_obj(at).unwrap()
}

/// Waits for some more interrupts of a running machine.
fn let_it_tick((machine, latch): &(Machine, OutcomeLatch)) {
    let before = ticks(machine);
    while ticks(machine).wrapping_sub(before) < 5 {
        assert_eq!(latch.get(), None);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn copy_memory(from: &Machine, to: &Machine) {
    let mut ram = vec![0; RAM as usize];
    from.memory().read_slice(&mut ram, GuestAddress(0)).unwrap();
    to.memory().write_slice(&ram, GuestAddress(0)).unwrap();
}

fn text(state: &MachineState) -> serde_json::Value {
    serde_json::to_value(state).unwrap()
}

#[test]
fn interrupts_timer_and_clock_go_on_in_another_machine() {
    let name = "interrupts_timer_and_clock_go_on_in_another_machine";
    let Some(vm) = ticking_guest(name) else {
        return;
    };
    let one = machine(&vm, true);
    let first = &one.0;
    first.start().unwrap();
    let_it_tick(&one);
    first.pause().unwrap();
    let mut saved = text(&first.save().unwrap());
    // As if it had run for an hour, which the new machine's own clock never shows.
    let clock = saved["vm"]["clock_ns"].as_u64().unwrap() + HOUR_NS;
    saved["vm"]["clock_ns"] = clock.into();

    let another = machine(&vm, true);
    let second = &another.0;
    copy_memory(first, second);
    second
        .restore(serde_json::from_value(saved.clone()).unwrap())
        .unwrap();
    let again = text(&second.save().unwrap());
    // The restore's interrupt is there before a vCPU runs: in the first PIC's IRR, since the IOAPIC drops what it masks.
    assert_ne!(chip_byte(&again, 0, 9) & 1 << GED_GSI, 0);
    let again = without_event(again);
    let saved = without_event(saved);
    assert_eq!(again["vm"]["chips"], saved["vm"]["chips"]);
    assert_eq!(again["devices"], saved["devices"]);
    assert!(again["vm"]["clock_ns"].as_u64().unwrap() >= clock);
    assert!(guest_clock(second) < HOUR_NS, "not yet told to the guest");
    second.start().unwrap();
    let_it_tick(&another);
    second.pause().unwrap();
    assert!(guest_clock(second) >= clock, "the guest's time went back");

    // The first machine continues, too.
    first.start().unwrap();
    let_it_tick(&one);
}

#[test]
fn a_machine_that_lacks_the_timer_refuses_and_stays_as_it_was() {
    let name = "a_machine_that_lacks_the_timer_refuses_and_stays_as_it_was";
    let Some(vm) = ticking_guest(name) else {
        return;
    };
    let with = machine(&vm, true).0.save().unwrap();
    let (without, _latch) = machine(&vm, false);
    let before = text(&without.save().unwrap());
    let error = without.restore(with).unwrap_err();
    assert!(sentence(&error).contains("--legacy-timer"));
    let after = text(&without.save().unwrap());
    assert_eq!(
        after["vcpus"][0]["vcpu"]["regs"],
        before["vcpus"][0]["vcpu"]["regs"]
    );
    assert_eq!(after["vm"]["chips"], before["vm"]["chips"]);
}

#[test]
fn a_paused_machine_takes_no_input() {
    let Some(vm) = ticking_guest("a_paused_machine_takes_no_input") else {
        return;
    };
    let console = Console::open(&SerialSpec::File(vm.path("output"))).unwrap();
    let one = machine_with(&vm, true, console.output());
    let machine = &one.0;
    let input = machine.devices.offers().console_input.clone().unwrap();
    machine.start().unwrap();
    assert_eq!(input.enqueue(b"a"), 1);
    machine.pause().unwrap();
    let before = machine.save().unwrap().devices;
    assert_eq!(input.enqueue(b"b"), 0);
    assert_eq!(machine.save().unwrap().devices, before);
    machine.start().unwrap();
    assert_eq!(input.enqueue(b"b"), 1);
}
