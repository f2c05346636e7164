// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The 2007 API as 32-bit guests see it: in three kinds of 32-bit mode, and with three calling conventions.
//!
//! KVM answers the vendor's instruction, and knows only its own convention.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;
mod images;

use bare::lab::{
    CODE_32, CODE_64, FAULTS, FLAGS, Lab, MAGIC, PARA, RAX, RBX, RCX, REGISTERS, RSP, Record,
    Registers, Route, STUB, TARGET, TOP, low, registers, routes, set_registers, store_registers,
};
use bare::registration::Verdict::{Fault, Refused, Registered};
use bare::registration::{Registration, stub};
use bare::{AT, Asm, Vm, guest, has_kvm};
use images::{Ph, elf};
use mini_vmm::layout;
use para_abi::vmm::{VMM_HC_CONSOLE_WRITE, VMM_HC_EXIT, VMM_HC_NOP};

const NO_SUCH_CALL: u32 = -1000i32 as u32;
const BAD_ADDRESS: u32 = -14i32 as u32;
const VAPIC_POLL_IRQ: u32 = 1;
const UNKNOWN: u32 = 0x1234;
/// The text for the console, and its address.
const TEXT: &str = "32 bits\n";
const TEXT_AT: u64 = STUB + 0x800;
/// The exit status of a guest.
const STATUS: u8 = 0x4d;
/// The address of code for compatibility mode, and of the far pointer that it returns through.
const COMPATIBLE: u64 = STUB + 0x1000;
const BACK_TO_64: u64 = STUB + 0x1100;
/// The address of 32-bit guests' IDT.
const IDT: u64 = STUB + 0x2000;

/// How a guest enters 32-bit mode.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    /// It starts there: protected mode without paging.
    Pvh,
    /// It leaves long mode: protected mode without paging.
    Left,
    /// It stays in long mode, in a 32-bit code segment.
    Compatible,
}

impl Mode {
    const ALL: [Mode; 3] = [Mode::Pvh, Mode::Left, Mode::Compatible];

    /// Enters that mode and installs a counter of faults.
    fn enter(self, lab: &mut Lab) {
        if self == Mode::Pvh {
            return count_faults(&mut lab.asm, CODE_64);
        }
        if self == Mode::Compatible {
            lab.count_faults();
        }
        lab.allow_user_code();
        // push CODE_32; lea rax, [rip + 3]; push rax; retfq
        lab.asm.raw(&[0x6a, CODE_32, 0x48, 0x8d, 0x05, 3, 0, 0, 0]);
        lab.asm.raw(&[0x50, 0x48, 0xcb]);
        if self == Mode::Left {
            // CR0.PG off, then EFER.LME
            lab.asm
                .raw(&[0x0f, 0x20, 0xc0, 0x25, 0xff, 0xff, 0xff, 0x7f]);
            lab.asm.raw(&[0x0f, 0x22, 0xc0]);
            lab.asm
                .rdmsr(0xc000_0080)
                .raw(&[0x80, 0xe4, 0xfe, 0x0f, 0x30]);
            count_faults(&mut lab.asm, CODE_32);
        }
    }

    /// A machine that runs a guest made for this mode.
    fn machine(self, test: &str, asm: &Asm) -> Option<Vm> {
        let vm = Vm::new(test, asm)?;
        if self == Mode::Pvh {
            let kernel = elf(AT, &[Ph::load(AT, asm.code()), Ph::pvh(AT)]);
            std::fs::write(vm.path("kernel"), kernel).unwrap();
        }
        Some(vm)
    }
}

/// A 32-bit IDT with a handler of #GP that counts it and skips two bytes.
fn count_faults(asm: &mut Asm, selector: u8) {
    let handler = guest(|asm| {
        asm.raw(&[0x50, 0x8b, 0x44, 0x24, 0x04]); // push eax; mov eax, [esp + 4] (error code)
        asm.raw(&[0xa2]).raw(&low(FAULTS + 1)); // mov [FAULTS + 1], al
        asm.raw(&[0xfe, 0x05]).raw(&low(FAULTS)); // inc byte [FAULTS]
        asm.raw(&[0x83, 0x44, 0x24, 0x08, 0x02]); // add dword [esp + 8], 2
        // pop eax; add esp, 4; retf 4: KVM emulates no IRET in protected mode, and the flags don't matter
        asm.raw(&[0x58, 0x83, 0xc4, 0x04, 0xca, 0x04, 0x00]);
    });
    let at = IDT + 0x200;
    asm.place(handler.code(), at);
    asm.store(IDT + 13 * 8, u32::from(selector) << 16 | at as u32 & 0xffff);
    asm.store(IDT + 13 * 8 + 4, at as u32 & 0xffff_0000 | 0x8e00);
    asm.store(IDT - 8, (IDT as u32) << 16 | 0xff);
    asm.store(IDT - 4, IDT as u32 >> 16);
    asm.rdi(IDT - 8).raw(&[0x0f, 0x01, 0x1f]); // lidt [edi]
}

/// A convention: the register of the number, then those of two arguments.
#[derive(Clone, Copy, Debug)]
struct Convention {
    flag: &'static str,
    number: usize,
    arguments: [usize; 2],
}

const KVM: Convention = Convention {
    flag: "--hypercall-abi=kvm",
    number: RAX,
    arguments: [RBX, RCX],
};
const MERGED_2007: Convention = Convention {
    flag: "--hypercall-abi=2007",
    number: RBX,
    arguments: [RAX, RCX],
};
const DRAFT_2007: Convention = Convention {
    flag: "--hypercall-abi=2007-draft",
    number: RAX,
    arguments: [RBX, RCX],
};

impl Convention {
    /// Registers for a call. All others have a value that is not a call.
    fn registers(&self, number: u32, arguments: &[u32]) -> Registers {
        let mut registers = registers(UNKNOWN.into()).map(|value| value & 0xffff_ffff);
        registers[self.number] = number.into();
        for (register, argument) in self.arguments.iter().zip(arguments) {
            registers[*register] = (*argument).into();
        }
        registers
    }
}

/// Calls the stub from 32-bit code, and shows the registers afterwards: only EAX may have changed.
fn call(lab: &mut Lab, name: &str, before: &Registers, text: &str, eax: u32) {
    let asm = &mut lab.asm;
    asm.store(TARGET, STUB as u32);
    asm.raw(&[0x68]).raw(&FLAGS.to_le_bytes()).raw(&[0x9d]); // push flags; popfd
    let general = || (0..8).filter(|number| *number != RSP);
    for number in general() {
        asm.raw(&[0xb8 | number as u8]); // mov register, value
        asm.raw(&(before[number] as u32).to_le_bytes());
    }
    asm.raw(&[0xff, 0x15]).raw(&low(TARGET)); // call [TARGET]
    for number in general() {
        asm.raw(&[0x89, 0x05 | (number as u8) << 3]); // mov [REGISTERS + …], register
        asm.raw(&low(REGISTERS + 4 * number as u64));
    }
    // pushfd; pop [REGISTERS + …]
    asm.raw(&[0x9c, 0x8f, 0x05])
        .raw(&low(REGISTERS + 4 * RSP as u64));
    if !text.is_empty() {
        lab.prints(name, text.as_bytes());
    }
    let mut after = before.map(|value| value as u32);
    after[RAX] = eax;
    let expected = after[..8].iter().flat_map(|value| value.to_le_bytes());
    lab.show(name, &[(REGISTERS, 32)], expected.collect::<Vec<u8>>());
}

/// The cases of a 32-bit guest in one start.
fn walk(mode: Mode, route: &Route, convention: &Convention) -> Lab {
    let mut lab = Lab::default();
    mode.enter(&mut lab);
    stub(&mut lab.asm, STUB);
    let unknown = convention.registers(UNKNOWN, &[]);
    call(&mut lab, "unpatched", &unknown, "", -38i32 as u32);
    for registration in [
        Registration::of_page("a misaligned page", PARA + 4, Fault),
        Registration::of_value("beyond memory", TOP, Fault),
        Registration::of_value("4 GiB above a page that is there", 1 << 32 | PARA, Fault),
        Registration::of_version("a newer guest", 2, Refused),
        Registration::of_gpa("a stub beyond memory", TOP, Refused),
        Registration::of_gpa("a stub 4 GiB above memory", 1 << 32 | STUB, Refused),
        Registration::new("flawless", Registered),
    ] {
        registration.walk(&mut lab, route);
    }
    lab.clear_faults();
    lab.asm.rdmsr(MAGIC);
    lab.show("RDMSR", &[(FAULTS, 2)], [1, 0]);
    calls(&mut lab, route, convention);
    lab
}

/// Calls through the patched stub. If calls reach the VMM, the last one ends the run.
fn calls(lab: &mut Lab, route: &Route, convention: &Convention) {
    let of = |number: u64, arguments: &[u32]| convention.registers(number as u32, arguments);
    call(lab, "unknown", &of(UNKNOWN.into(), &[]), "", NO_SUCH_CALL);
    call(lab, "KVM's own", &of(VAPIC_POLL_IRQ.into(), &[]), "", 0);
    // The number in another convention's register.
    let mut swapped = registers(0).map(|value| value & 0xffff_ffff);
    for register in [RAX, RBX] {
        let is_number = register == convention.number;
        swapped[register] = if is_number { UNKNOWN } else { VAPIC_POLL_IRQ }.into();
    }
    call(lab, "the other register", &swapped, "", NO_SUCH_CALL);
    if !route.is_ours {
        call(lab, "ours", &of(VMM_HC_NOP, &[]), "", NO_SUCH_CALL);
        lab.asm.power_off();
        return;
    }
    call(lab, "ours", &of(VMM_HC_NOP, &[]), "", 0);
    lab.asm.place(TEXT.as_bytes(), TEXT_AT);
    let len = TEXT.len() as u32;
    let write = |at: u64| of(VMM_HC_CONSOLE_WRITE, &[at as u32, len]);
    call(lab, "two arguments", &write(TEXT_AT), TEXT, len);
    call(
        lab,
        "no memory",
        &write(layout::HOLE_START),
        "",
        BAD_ADDRESS,
    );
    let exit = of(VMM_HC_EXIT, &[STATUS.into()]);
    call(lab, "exit", &exit, "", 0);
    lab.asm.power_off();
}

/// Runs all modes with a convention, on every route.
fn holds(test: &str, convention: &Convention, modes: &[Mode]) {
    if !has_kvm(test) {
        return;
    }
    for route in routes(test) {
        if !route.is_ours && convention.flag != KVM.flag {
            continue;
        }
        for &mode in modes {
            let mut lab = walk(mode, &route, convention);
            let Some(mut vm) = mode.machine(test, &lab.asm) else {
                return;
            };
            let ended = vm.args(route.args()).args([convention.flag]).run();
            let code = if route.is_ours { STATUS.into() } else { 0 };
            if route.is_ours {
                // The guest ends before it could show the registers.
                lab.forget_last();
            }
            let records = lab.judge(code, &ended);
            for record in records.unwrap_or_else(|error| panic!("{mode:?}: {error}")) {
                let name = format!("{mode:?}: {}", record.name);
                Record { name, ..record }.check(&route);
            }
        }
    }
}

#[test]
fn r9_32_bit_calls_of_todays_convention() {
    holds("r9_32_bit_calls_of_todays_convention", &KVM, &Mode::ALL);
}

#[test]
fn r9_32_bit_calls_of_the_merged_2007_convention() {
    holds(
        "r9_32_bit_calls_of_the_merged_2007_convention",
        &MERGED_2007,
        &Mode::ALL,
    );
}

#[test]
fn r9_32_bit_calls_of_the_2007_draft_convention() {
    holds(
        "r9_32_bit_calls_of_the_2007_draft_convention",
        &DRAFT_2007,
        &[Mode::Left],
    );
}

/// Sets all 64 bits of the registers, then calls the stub from compatibility mode and returns to 64-bit mode. Only the
/// lower halves count, and RAX is the zero-extended answer.
fn call_with_upper_halves(lab: &mut Lab, name: &str, before: &Registers, rax: u32) {
    let asm = &mut lab.asm;
    let enter = guest(|asm| {
        asm.raw(&[0x89, 0x04, 0x25]).raw(&low(BACK_TO_64)); // mov [BACK_TO_64], eax
        asm.store(BACK_TO_64 + 4, CODE_64.into());
        asm.raw(&[0x6a, CODE_32, 0x68]).raw(&low(COMPATIBLE)); // push CODE_32; push COMPATIBLE
        set_registers(asm, before);
        asm.raw(&[0x48, 0xcb]); // retfq
    });
    // lea rax, [rip + the code below]
    let len = enter.code().len() as u32;
    asm.raw(&[0x48, 0x8d, 0x05]).raw(&len.to_le_bytes());
    asm.raw(enter.code());
    store_registers(asm);
    lab.show(name, &[(REGISTERS, 8)], u64::from(rax).to_le_bytes());
}

#[test]
fn r9_32_bit_calls_have_no_upper_halves() {
    let test = "r9_32_bit_calls_have_no_upper_halves";
    for route in routes(test) {
        let mut lab = Lab::default();
        lab.count_faults();
        lab.allow_user_code();
        Registration::new("flawless", Registered).walk(&mut lab, &route);
        let compatible = guest(|asm| {
            asm.raw(&[0xff, 0x15]).raw(&low(TARGET)); // call [TARGET]
            asm.raw(&[0xff, 0x2d]).raw(&low(BACK_TO_64)); // jmp far [BACK_TO_64]
        });
        lab.asm.place(compatible.code(), COMPATIBLE);
        lab.asm.store(TARGET, STUB as u32).store(TARGET + 4, 0);
        for (name, number, rax) in [
            ("the number's upper half", 0xdead_0000_0000_0001, 0),
            ("the answer's upper half", UNKNOWN.into(), NO_SUCH_CALL),
            ("both", 0x8000_0000_0000_1234, NO_SUCH_CALL),
        ] {
            call_with_upper_halves(&mut lab, name, &registers(number), rax);
        }
        let Some(records) = lab.run(test, &route.args()) else {
            return;
        };
        for record in records.unwrap_or_else(|error| panic!("{error}")) {
            record.check(&route);
        }
    }
}
