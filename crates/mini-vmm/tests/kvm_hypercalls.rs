// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! KVM's own hypercall numbers: KVM and the VMM give the same answers.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use bare::lab::{
    Lab, PARA, RBX, RCX, RDX, REGISTERS, RSI, Registers, Route, STUB, TOP, low, registers, routes,
};
use bare::registration::Registration;
use bare::registration::Verdict::Registered;
use bare::{AP_CODE, Asm, Vm, guest, has_kvm};
use mini_vmm::layout;

const OK: u64 = 0;
const UNKNOWN: u64 = -1000i64 as u64;
const INVALID: u64 = -22i64 as u64;
const UNSUPPORTED: u64 = -95i64 as u64;

/// An interrupt of vector 0x41, asserted.
const ICR: u64 = 0x4041;

fn call_of(number: u64, arguments: &[u64]) -> Registers {
    let mut registers = registers(number);
    for (register, argument) in [RBX, RCX, RDX, RSI].into_iter().zip(arguments) {
        registers[register] = *argument;
    }
    registers
}

/// A guest that has registered and enabled its local APIC.
fn registered(route: &Route) -> Lab {
    let mut lab = Lab::default();
    lab.count_faults();
    Registration::new("a registration", Registered).walk(&mut lab, route);
    lab.asm.store(layout::LAPIC + 0xf0, 0x1ff);
    lab
}

#[test]
fn kvms_own_numbers_have_kvms_own_answers() {
    let test = "kvms_own_numbers_have_kvms_own_answers";
    if !has_kvm(test) {
        return;
    }
    for route in routes(test) {
        let mut lab = registered(&route);
        let mut call = |name: &str, number, arguments: &[u64], rax| {
            lab.call_all(name, STUB, &call_of(number, arguments), rax);
        };
        call("poll", 1, &[], OK);
        call("kick of nobody", 5, &[0, 77], OK);
        call("another clock", 9, &[PARA + 0x100, 1], UNSUPPORTED);
        call("ipi", 10, &[0b11, 1, 0, ICR], 1);
        call("ipi to nobody", 10, &[1, 1, 1, ICR], 0);
        call(
            "ipi to a logical id",
            10,
            &[1, 0, 0, ICR | 1 << 11],
            INVALID,
        );
        call("ipi to all", 10, &[1, 0, 0, ICR | 2 << 18], INVALID);
        call("yield", 11, &[0], OK);
        call("none", 2, &[], UNKNOWN);
        // KVM forwards this one to the VMM, if it was configured to.
        let ours = |rax| if route.is_ours { rax } else { UNKNOWN };
        call("plain memory", 12, &[PARA, 2, 0], ours(OK));
        call("encrypted memory", 12, &[PARA, 2, 16], ours(UNSUPPORTED));
        call("no memory", 12, &[TOP, 1, 0], ours(INVALID));
        // The interrupt is requested once: bit 1 of the third IRR word.
        lab.asm.load(layout::LAPIC + 0x220);
        lab.asm.raw(&[0x89, 0x04, 0x25]).raw(&low(REGISTERS)); // mov [REGISTERS], eax
        lab.show("requested", &[(REGISTERS, 4)], [2, 0, 0, 0]);
        let Some(records) = lab.run(test, &route.args()) else {
            return;
        };
        for record in records.unwrap_or_else(|error| panic!("{}: {error}", route.flag)) {
            record.check(&route);
        }
    }
}

/// The bytes that the halted processor writes: that it is about to halt, and that it was woken.
const ABOUT_TO_HALT: u64 = AP_CODE + 0x100;
const WOKEN: u64 = AP_CODE + 0x101;

/// Real mode: halts with interrupts disabled.
const HALT_ONCE: &[u8] = &[
    0xfa, 0x8c, 0xc8, 0x8e, 0xd8, // cli; mov ax, cs; mov ds, ax
    0xc6, 0x06, 0x00, 0x01, 1,    // mov byte [0x100], 1
    0xf4, // hlt
    0xc6, 0x06, 0x01, 0x01, 1, // mov byte [0x101], 1
    0xf4, 0xeb, 0xfd, // hlt; jmp
];

#[test]
fn a_kick_wakes_a_processor_that_takes_no_interrupts() {
    let test = "a_kick_wakes_a_processor_that_takes_no_interrupts";
    if !has_kvm(test) {
        return;
    }
    let is = |asm: &mut Asm, flag| {
        asm.load(flag).compare_al(1);
    };
    for route in routes(test) {
        let mut lab = registered(&route);
        lab.asm.place(HALT_ONCE, AP_CODE).start_processor(1);
        lab.asm.until_equal(|asm| is(asm, ABOUT_TO_HALT));
        // Nothing else wakes it.
        lab.asm.times(200, |asm| {
            asm.out(0x80, 0);
        });
        lab.show("halted", &[(WOKEN, 1)], [0]);
        lab.asm.until_equal(|asm| {
            bare::lab::call(asm, STUB, &call_of(5, &[0, 1]));
            is(asm, WOKEN);
        });
        lab.asm.print("woken");
        lab.prints("woken", b"woken");
        let args = [&route.args()[..], &["--cpus", "2"]].concat();
        let Some(records) = lab.run(test, &args) else {
            return;
        };
        for record in records.unwrap_or_else(|error| panic!("{}: {error}", route.flag)) {
            record.check(&route);
        }
    }
}

#[test]
fn without_a_console_its_call_is_unknown() {
    let test = "without_a_console_its_call_is_unknown";
    let write = call_of(0x4d56_0003, &[PARA, 1]);
    let exit = call_of(0x4d56_0002, &[3]);
    let guest = guest(|asm| {
        Registration::new("a registration", Registered).prepare(asm);
        asm.wrmsr(bare::lab::MAGIC, PARA);
        bare::lab::call(asm, STUB, &write);
        asm.load(REGISTERS);
        asm.compare_eax(UNKNOWN as u32).if_equal(|asm| {
            bare::lab::call(asm, STUB, &exit);
        });
        asm.power_off();
    });
    if let Some(mut vm) = Vm::new(test, &guest) {
        let ended = vm.args(Route::PIO.args()).args(["--serial", "off"]).run();
        ended.expect(3).printed("").silent();
    }
}
