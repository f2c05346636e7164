// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The 2007 API with two processors, in turns and in parallel.
//!
//! A processor waits for the other one by reading a port, so that it sometimes leaves its host CPU.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use bare::lab::{
    Lab, MAGIC, PARA, RBX, RCX, RDX, REGISTERS, RSI, Route, STUB, call, low, registers, routes,
};
use bare::registration::Verdict::{Refused, Registered};
use bare::registration::{Registration, patched};
use bare::{AP_CODE, Asm, guest};
use mini_vmm::layout;

const NO_SUCH_CALL: u64 = -1000i64 as u64;
const VAPIC_POLL_IRQ: u64 = 1;
const KICK_CPU: u64 = 5;
const SEND_IPI: u64 = 10;
const UNKNOWN: u64 = 0x1234;
/// The vector of interrupts that the processors send.
const IPI: u8 = 0x40;
/// The address where the other processor is in 64-bit mode, and its stack.
const LONG_MODE: u64 = AP_CODE + 0x1000;
const STACK: u64 = AP_CODE + 0x1_0000;
/// Set to 1 when the other processor has started, and when it has finished.
const BEGUN: u64 = STUB + 0x8_0000;
const DONE: u64 = BEGUN + 4;
/// What the other processor shows.
const SEEN: u64 = BEGUN + 8;
/// The other processor's page.
const OTHER: u64 = PARA + layout::PAGE_SIZE;

/// From real mode to 64-bit mode, with the boot processor's tables.
fn trampoline() -> Vec<u8> {
    let mut code = vec![0xfa, 0x2e, 0x66, 0x0f, 0x01, 0x16, 0x80, 0x00]; // cli; lgdt cs:[0x80]
    code.extend([0x0f, 0x20, 0xe0, 0x66, 0x83, 0xc8, 0x20, 0x0f, 0x22, 0xe0]); // CR4.PAE
    code.extend([0x66, 0xb8]);
    code.extend((layout::BOOT_PAGE_TABLES as u32).to_le_bytes());
    code.extend([0x0f, 0x22, 0xd8]); // mov cr3, eax
    code.extend([0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32]); // EFER
    code.extend([0x80, 0xcc, 0x01, 0x0f, 0x30]); // LME
    code.extend([0x0f, 0x20, 0xc0, 0x66, 0x0d, 0x01, 0x00, 0x00, 0x80]); // CR0.PE and .PG
    code.extend([0x0f, 0x22, 0xc0, 0x66, 0xea]); // mov cr0, eax; jmp 0x10:LONG_MODE
    code.extend((LONG_MODE as u32).to_le_bytes());
    code.extend([0x10, 0x00]);
    assert!(code.len() <= 0x80);
    code.resize(0x80, 0);
    code.extend([0x1f, 0]);
    code.extend((layout::BOOT_GDT as u32).to_le_bytes());
    code
}

/// Starts the other processor with 64-bit code. It halts at the end.
fn start(asm: &mut Asm, body: impl FnOnce(&mut Asm)) {
    let code = guest(|asm| {
        asm.raw(&[0x66, 0xb8, 0x18, 0x00]); // mov ax, 0x18
        asm.raw(&[0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0]); // to DS, ES, SS
        asm.raw(&[0xbc]).raw(&(STACK as u32).to_le_bytes()); // mov esp, STACK
        body(asm);
        asm.halt();
    });
    asm.place(&trampoline(), AP_CODE);
    asm.place(code.code(), LONG_MODE);
    asm.start_processor(1);
}

/// Waits until a word is 1.
fn wait(asm: &mut Asm, at: u64) {
    asm.until_equal(|asm| {
        asm.input(0x80).load(at).compare_eax(1);
    });
}

/// Calls, and stores RAX where the guest's other calls don't.
fn call_and_keep(asm: &mut Asm, number: u64, slot: u64) {
    call(asm, STUB, &registers(number));
    for half in [0, 4] {
        // mov [rdi], eax
        asm.load(REGISTERS + half).rdi(SEEN + 8 * slot + half);
        asm.raw(&[0x89, 0x07]);
    }
}

/// Runs a guest on two processors, on every route, and checks all that it showed.
fn holds(test: &str, write: impl Fn(&mut Lab, &Route)) {
    for route in routes(test) {
        let mut lab = Lab::default();
        lab.handle(vec![(IPI, guest(count_ipi))]);
        write(&mut lab, &route);
        let mut args = route.args().to_vec();
        args.push("--cpus=2");
        let Some(records) = lab.run(test, &args) else {
            return;
        };
        for record in records.unwrap_or_else(|error| panic!("{args:?}: {error}")) {
            record.check(&route);
        }
    }
}

#[test]
fn r11_processors_register_one_stub_with_pages_of_their_own() {
    let test = "r11_processors_register_one_stub_with_pages_of_their_own";
    holds(test, |lab, route| {
        let first = Registration::new("the boot processor registers", Registered);
        let second = Registration::of_page("the other one does", OTHER, Registered);
        first.walk(lab, route);
        // The stub is patched, and stays so.
        let mut page = second.clone();
        page.window = STUB + 0x100;
        page.prepare(&mut lab.asm);
        start(&mut lab.asm, |asm| {
            call_and_keep(asm, UNKNOWN, 0);
            asm.wrmsr(MAGIC, OTHER);
            call_and_keep(asm, UNKNOWN, 1);
            call_and_keep(asm, VAPIC_POLL_IRQ, 2);
            asm.store(DONE, 1);
        });
        wait(&mut lab.asm, DONE);
        second.show(lab, route);
        first.show_as(lab, route, "the first page is as it was");
        for (slot, name, rax) in [
            (0, "whoever has not registered may call", NO_SUCH_CALL),
            (1, "an unknown call", NO_SUCH_CALL),
            (2, "a call", 0),
        ] {
            lab.show(name, &[(SEEN + 8 * slot, 8)], rax.to_le_bytes());
        }
        lab.call("the boot processor calls again", STUB, VAPIC_POLL_IRQ, 0);
    });
}

#[test]
fn r11_a_processor_fails_alone() {
    holds("r11_a_processor_fails_alone", |lab, route| {
        let first = Registration::new("the boot processor registers", Registered);
        first.walk(lab, route);
        // The other one's version is too new, and its stub differs.
        let mut refused = Registration::of_page("the other one is refused", OTHER, Registered);
        (refused.version, refused.site, refused.window) = (2, STUB + 0x100, STUB + 0x100);
        refused.verdict = Refused;
        refused.prepare(&mut lab.asm);
        start(&mut lab.asm, |asm| {
            asm.wrmsr(MAGIC, OTHER).store(DONE, 1);
        });
        wait(&mut lab.asm, DONE);
        refused.show(lab, route);
        first.show_as(lab, route, "the first page and the stub are as they were");
        lab.call("the boot processor calls", STUB, UNKNOWN, NO_SUCH_CALL);
    });
}

#[test]
fn h8_a_stub_is_called_while_it_is_registered() {
    holds(
        "h8_a_stub_is_called_while_it_is_registered",
        |lab, route| {
            let first = Registration::new("the boot processor registers", Registered);
            first.walk(lab, route);
            let mut page = Registration::of_page("the other one's page", OTHER, Registered);
            page.window = STUB + 0x100;
            page.prepare(&mut lab.asm);
            start(&mut lab.asm, |asm| {
                asm.store(BEGUN, 1);
                asm.times(500, |asm| {
                    asm.wrmsr(MAGIC, OTHER);
                });
                asm.store(DONE, 1);
            });
            wait(&mut lab.asm, BEGUN);
            // The stub's address is an unknown number: call rax
            lab.asm.times(500, |asm| {
                asm.rax(STUB).raw(&[0xff, 0xd0]);
                asm.compare_eax(NO_SUCH_CALL as u32).if_different(|asm| {
                    asm.print("another answer").halt();
                });
            });
            wait(&mut lab.asm, DONE);
            page.window = STUB;
            page.show(lab, route);
            lab.show("the stub", &[(STUB, 8)], patched(route));
        },
    );
}

/// The handler of [`IPI`]: `inc byte [SEEN]`, EOI.
fn count_ipi(asm: &mut Asm) {
    asm.raw(&[0xfe, 0x04, 0x25]).raw(&low(SEEN));
    asm.raw(&[0x57]).store(layout::LAPIC + 0xb0, 0); // push rdi
    asm.raw(&[0x5f, 0x48, 0xcf]); // pop rdi; iretq
}

#[test]
fn r9_an_ipi_by_a_call_arrives() {
    holds("r9_an_ipi_by_a_call_arrives", |lab, route| {
        Registration::new("a registration", Registered).walk(lab, route);
        lab.asm.store(layout::LAPIC + 0xf0, 0x1ff);
        // To APIC ID 0, and to 7, which doesn't exist.
        for (name, bitmap, answer) in [("to one", 1, 1), ("to one and to nobody", 0x81, 1)] {
            let mut before = registers(SEND_IPI);
            (before[RBX], before[RCX], before[RDX]) = (bitmap, 0, 0);
            before[RSI] = IPI.into();
            lab.asm.store(SEEN, 0);
            lab.call_all(name, STUB, &before, answer);
            // No HLT: emulated SVM takes an interrupt right after STI, and then nothing would end the HLT.
            lab.asm.raw(&[0xfb]); // sti
            wait(&mut lab.asm, SEEN);
            lab.asm.raw(&[0xfa]); // cli
            lab.show("it was handled", &[(SEEN, 4)], [1, 0, 0, 0]);
        }
    });
}

#[test]
fn r9_a_halted_processor_is_kicked() {
    holds("r9_a_halted_processor_is_kicked", |lab, route| {
        Registration::new("a registration", Registered).walk(lab, route);
        start(&mut lab.asm, |asm| {
            // With interrupts disabled, nothing else ends this HLT.
            asm.store(BEGUN, 1).raw(&[0xf4]).store(DONE, 1);
        });
        wait(&mut lab.asm, BEGUN);
        lab.asm.times(50, |asm| {
            asm.input(0x80);
        });
        lab.show("it halts", &[(DONE, 1)], [0]);
        let mut before = registers(KICK_CPU);
        for (name, id) in [("nobody is kicked", 7), ("the other one is kicked", 1)] {
            (before[RBX], before[RCX]) = (0, id);
            lab.call_all(name, STUB, &before, 0);
        }
        wait(&mut lab.asm, DONE);
    });
}

#[test]
fn r9_a_processor_calls_in_real_mode() {
    // cs:0x40 is the stub; registers are 32 bits wide: number in EAX, and nothing else changes.
    holds("r9_a_processor_calls_in_real_mode", |lab, route| {
        let stub = AP_CODE + 0x40;
        let mut code = vec![0xfa, 0x8c, 0xc8, 0x8e, 0xd8, 0x8e, 0xd0]; // cli; DS, SS = CS
        code.extend([0xbc, 0x00, 0x80]); // mov sp, 0x8000
        code.extend([0x66, 0xb8, 0x34, 0x12, 0x00, 0x00]); // mov eax, UNKNOWN
        let from = code.len() as u16 + 3;
        code.push(0xe8); // call cs:0x40
        code.extend((0x40 - from).to_le_bytes());
        code.extend([0x66, 0xa3, 0x00, 0x01]); // mov [0x100], eax
        code.extend([0xc6, 0x06, 0x08, 0x01, 0x01]); // mov byte [0x108], 1
        code.extend([0xf4, 0xeb, 0xfd]);
        lab.asm.place(&code, AP_CODE);
        let registration = Registration {
            site: stub,
            window: stub,
            ..Registration::new("a stub in real mode's memory", Registered)
        };
        registration.walk(lab, route);
        lab.asm.start_processor(1);
        wait(&mut lab.asm, AP_CODE + 0x108);
        let answer = NO_SUCH_CALL as u32;
        lab.show("the answer", &[(AP_CODE + 0x100, 4)], answer.to_le_bytes());
    });
}
