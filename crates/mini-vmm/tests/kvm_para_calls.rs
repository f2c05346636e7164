// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Calls with arguments that reach the VMM from 64-bit guests, in each convention.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use bare::lab::{
    Lab, PARA, RAX, RBX, RCX, RDI, RSI, Record, Registers, Route, STUB, TOP, registers, routes,
};
use bare::registration::Registration;
use bare::registration::Verdict::Registered;
use bare::{Vm, has_kvm};
use para_abi::vmm::{VMM_HC_BOOT_MARK, VMM_HC_CONSOLE_WRITE, VMM_HC_EXIT, VMM_HC_LAST, VMM_HC_NOP};

const NO_SUCH_CALL: u64 = -1000i64 as u64;
const INVALID: u64 = -22i64 as u64;
const BAD_ADDRESS: u64 = -14i64 as u64;
const TOO_LONG: u64 = -7i64 as u64;

const TEXT: &[u8] = b"\x00written at once\xff\n";
const TEXT_AT: u64 = STUB + 0x801;

/// The registers of two arguments in a convention. The number is in RAX.
#[derive(Clone, Copy, Debug)]
struct Convention {
    flag: &'static str,
    arguments: [usize; 2],
}

const KVM: Convention = Convention {
    flag: "--hypercall-abi=kvm",
    arguments: [RBX, RCX],
};
const MERGED_2007: Convention = Convention {
    flag: "--hypercall-abi=2007",
    arguments: [RDI, RSI],
};
/// The 64-bit form is the same.
const DRAFT_2007: Convention = Convention {
    flag: "--hypercall-abi=2007-draft",
    arguments: [RDI, RSI],
};

impl Convention {
    fn registers(&self, number: u64, arguments: &[u64]) -> Registers {
        let mut registers = registers(number);
        for (register, argument) in self.arguments.iter().zip(arguments) {
            registers[*register] = *argument;
        }
        registers
    }

    /// A call after which only RAX may have changed.
    fn call(&self, lab: &mut Lab, name: &str, number: u64, arguments: &[u64], rax: u64) {
        lab.call_all(name, STUB, &self.registers(number, arguments), rax);
    }

    /// A call that prints its argument.
    fn write(&self, lab: &mut Lab, name: &str, text: &[u8], at: u64, rax: u64) {
        let arguments = [at, text.len() as u64];
        let before = self.registers(VMM_HC_CONSOLE_WRITE, &arguments);
        bare::lab::call(&mut lab.asm, STUB, &before);
        lab.prints(name, text);
        lab.show_call(name, &before, rax);
    }
}

/// A guest that has registered.
fn registered(route: &Route) -> Lab {
    let mut lab = Lab::default();
    lab.count_faults();
    Registration::new("a registration", Registered).walk(&mut lab, route);
    lab
}

/// Appends a call that ends the guest, and runs it.
fn ends_with(
    test: &str,
    mut lab: Lab,
    route: &Route,
    convention: &Convention,
    status: u8,
) -> Option<Vec<Record>> {
    let exit = convention.registers(VMM_HC_EXIT, &[status.into()]);
    bare::lab::call(&mut lab.asm, STUB, &exit);
    // An exit without effect would show.
    lab.asm.print("still here").halt();
    let mut vm = Vm::new(test, &lab.asm)?;
    let ended = vm.args(route.args()).args([convention.flag, "-v"]).run();
    let mark = format!("boot mark {:#x} of vCPU 0 at ", PARA);
    assert_eq!(ended.stderr.matches(&mark).count(), 1, "{}", ended.stderr);
    let records = lab.judge(status.into(), &ended);
    Some(records.unwrap_or_else(|error| panic!("{convention:?}: {error}")))
}

/// The calls that take arguments, and the exit that ends them.
fn holds(test: &str, convention: &Convention) {
    if !has_kvm(test) {
        return;
    }
    holds_on(test, convention, &routes(test));
}

/// The same, on those of the given routes where calls reach the VMM.
fn holds_on(test: &str, convention: &Convention, routes: &[Route]) {
    for route in routes.iter().filter(|route| route.is_ours) {
        let mut lab = registered(route);
        let c = convention;
        lab.asm
            .place(TEXT, TEXT_AT)
            .place(TEXT, TOP - TEXT.len() as u64);
        c.call(&mut lab, "nothing to do", VMM_HC_NOP, &[1, 2], 0);
        c.call(&mut lab, "a mark", VMM_HC_BOOT_MARK, &[PARA, 0], 0);
        let len = TEXT.len() as u64;
        c.write(&mut lab, "write", TEXT, TEXT_AT, len);
        c.write(&mut lab, "write memory's end", TEXT, TOP - len, len);
        c.write(&mut lab, "write nothing", b"", TEXT_AT, 0);
        let write = VMM_HC_CONSOLE_WRITE;
        for (name, arguments, rax) in [
            ("a byte too far", [TOP - len + 1, len], BAD_ADDRESS),
            ("no memory", [TOP, 1], BAD_ADDRESS),
            ("a range that wraps around", [u64::MAX, 2], BAD_ADDRESS),
            ("more than a page", [PARA, 4097], TOO_LONG),
            ("all there is", [0, u64::MAX], TOO_LONG),
        ] {
            c.call(&mut lab, name, write, &arguments, rax);
        }
        c.call(&mut lab, "no status", VMM_HC_EXIT, &[256], INVALID);
        c.call(&mut lab, "no status", VMM_HC_EXIT, &[1 << 32], INVALID);
        c.call(&mut lab, "reserved", VMM_HC_LAST, &[], NO_SUCH_CALL);
        let mut other = registers(1 << 40);
        other[c.arguments[0]] = VMM_HC_NOP;
        lab.call_all("the number elsewhere", STUB, &other, NO_SUCH_CALL);
        assert_ne!(c.arguments[0], RAX);
        let Some(records) = ends_with(test, lab, route, c, 0x99) else {
            return;
        };
        for record in records {
            record.check(route);
        }
    }
}

#[test]
fn r9_64_bit_calls_of_todays_convention() {
    holds("r9_64_bit_calls_of_todays_convention", &KVM);
}

#[test]
fn r9_64_bit_calls_of_the_merged_2007_convention() {
    holds(
        "r9_64_bit_calls_of_the_merged_2007_convention",
        &MERGED_2007,
    );
}

#[test]
fn r9_64_bit_calls_of_the_2007_draft_convention() {
    holds("r9_64_bit_calls_of_the_2007_draft_convention", &DRAFT_2007);
}

/// Also on a KVM that completes the vendor's instruction. It would answer from other registers.
#[test]
fn r9_auto_goes_by_port_for_the_conventions_of_2007() {
    let test = "r9_auto_goes_by_port_for_the_conventions_of_2007";
    let auto = Route {
        flag: "--hypercall=auto",
        ..Route::PIO
    };
    holds_on(test, &MERGED_2007, &[auto]);
    holds_on(test, &DRAFT_2007, &[auto]);
}

#[test]
fn r9_every_exit_status_is_the_programs() {
    let test = "r9_every_exit_status_is_the_programs";
    if !has_kvm(test) {
        return;
    }
    for status in [0, 33, 255] {
        let mut lab = registered(&Route::PIO);
        KVM.call(&mut lab, "a mark", VMM_HC_BOOT_MARK, &[PARA, 0], 0);
        ends_with(test, lab, &Route::PIO, &KVM, status);
    }
}
