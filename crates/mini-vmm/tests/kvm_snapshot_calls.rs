// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests that are saved in the middle of hypercalls, again and again: none is lost, made twice or answered wrongly.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use bare::counting::{first, follows, restored, save};
use bare::lab::{
    FAULTS, MAGIC, PARA, RAX, RBX, RCX, REGISTERS, Registers, STUB, call, registers, routes,
};
use bare::registration::Registration;
use bare::registration::Verdict::Registered;
use bare::virtio::COUNT;
use bare::{Asm, Vm, guest, is_long};
use mini_vmm::layout::PAGE_SIZE;
use para_abi::vmm::{VMM_HC_CONSOLE_WRITE, VMM_HC_NOP};

/// Where the guest keeps what its registers should be after a call.
const EXPECTED: u64 = FAULTS + 6 * PAGE_SIZE;

/// A call, its answer, and the place of the registers after it.
struct Call {
    before: Registers,
    answer: u64,
    at: u64,
}

impl Call {
    /// Puts the expected registers in their place.
    fn prepare(&self, asm: &mut Asm) {
        let mut after = self.before;
        after[RAX] = self.answer;
        asm.place(&after.map(u64::to_le_bytes).concat(), self.at);
    }

    /// Calls, and ends the run unless all registers are as expected.
    fn make(&self, asm: &mut Asm) {
        call(asm, STUB, &self.before);
        // repe cmpsq
        asm.rsi(REGISTERS).rdi(self.at).ecx(16);
        asm.raw(&[0xf3, 0x48, 0xa7]).if_different(|asm| {
            asm.print("another answer").power_off();
        });
    }
}

/// Counts, and prints the lowest byte of each number by a call. Nearly all of its time passes in calls.
fn calling_guest() -> Asm {
    let nothing = Call {
        before: registers(VMM_HC_NOP),
        answer: 0,
        at: EXPECTED,
    };
    let mut before = registers(VMM_HC_CONSOLE_WRITE);
    (before[RBX], before[RCX]) = (COUNT, 1);
    let print = Call {
        before,
        answer: 1,
        at: EXPECTED + 0x100,
    };
    guest(|asm| {
        nothing.prepare(asm);
        print.prepare(asm);
        Registration::new("a registration", Registered).prepare(asm);
        asm.wrmsr(MAGIC, PARA);
        asm.forever(|asm| {
            // Slower than whoever reads it.
            for _ in 0..8 {
                nothing.make(asm);
            }
            asm.rdi(COUNT).raw(&[0xff, 0x07]); // inc dword [rdi]
            print.make(asm);
        });
    })
}

/// On each route that reaches the VMM. With `--long`, fifty steps.
#[test]
fn a_guest_in_the_middle_of_calls_goes_on_through_a_chain() {
    let test = "a_guest_in_the_middle_of_calls_goes_on_through_a_chain";
    let steps = if is_long(test) { 50 } else { 5 };
    for route in routes(test).iter().filter(|route| route.is_ours) {
        let Some(mut vm) = Vm::new(test, &calling_guest()) else {
            return;
        };
        let snap = vm.path("snap");
        let (running, api) = first(&mut vm, &route.args());
        let mut printed = save(running, &api, &snap);
        for _ in 0..steps {
            let (running, api) = restored(&vm, &snap, &[]);
            printed.extend(save(running, &api, &snap));
        }
        follows(&printed);
    }
}
