// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `KVM_HC_SEND_IPI` answered by KVM and by the VMM: the same calls get the same answers and interrupts.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use bare::lab::{
    FAULTS, Lab, MAGIC, PARA, RAX, RBX, RCX, RDX, REGISTERS, RSI, Registers, Route, STUB, call,
    low, registers, routes,
};
use bare::registration::Registration;
use bare::registration::Verdict::Registered;
use bare::{AP_CODE, Asm, Vm, guest, has_kvm};
use mini_vmm::layout;

/// The calling processor. Its local APIC is enabled, and interrupts are disabled.
const CALLER: u64 = 0;
/// One that waits with its local APIC enabled.
const AWAKE: u64 = 1;
/// One that is not started until a call starts it.
const ASLEEP: u64 = 2;
const CPUS: &str = "3";

/// Bits of the interrupt command register.
const LOGICAL: u64 = 1 << 11;
const ASSERT: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const TO_SELF: u64 = 1 << 18;

/// Delivery modes.
const FIXED: u64 = 0;
const LOWEST_PRIORITY: u64 = 0x100;
const SMI: u64 = 0x200;
const REMOTE_READ: u64 = 0x300;
const NMI: u64 = 0x400;
const INIT: u64 = 0x500;
const STARTUP: u64 = 0x600;
const EXTERNAL: u64 = 0x700;

/// Registers of the local APIC: 32 vectors each, 16 bytes apart.
const TRIGGER_MODES: u64 = layout::LAPIC + 0x180;
const REQUESTED: u64 = layout::LAPIC + 0x200;

/// How many NMIs the caller took.
const NMIS: u64 = FAULTS + 0x40;
/// Set by the processor that is awake.
const READY: u64 = AP_CODE + 0x800;
/// Where a processor started by a call halts, and the vector for that.
const PARKED: u64 = AP_CODE + layout::PAGE_SIZE;
const PARKED_VECTOR: u64 = PARKED / layout::PAGE_SIZE;

/// What the guest shows of a call: the answer, the caller's APIC bits for the vector, and its NMIs.
const SHOWN: usize = 8 + 3 * 4;

/// Real mode: enables the local APIC through x2APIC mode, whose MSRs are reachable here, and reports it.
const WAKE: &[u8] = &[
    0xfa, // cli
    0x66, 0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, // mov ecx, IA32_APIC_BASE; rdmsr
    0x66, 0x0d, 0, 0x0c, 0, 0, 0x0f, 0x30, // or eax, 0xc00; wrmsr
    0x66, 0xb9, 0x0f, 0x08, 0, 0, // mov ecx, the spurious vector's register
    0x66, 0xb8, 0xff, 0x01, 0, 0, 0x66, 0x31, 0xd2, 0x0f,
    0x30, // mov eax, 0x1ff; xor edx, edx; wrmsr
    0x2e, 0xc6, 0x06, 0x00, 0x08, 1, // mov byte [cs:0x800], 1
    0xf4, 0xeb, 0xfd, // hlt; jmp
];
/// Real mode: `cli; hlt; jmp`
const PARK: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];

/// Arguments of a call: two words of a bitmap, the first ID, the command.
#[derive(Clone, Copy, Debug)]
struct Call([u64; 4]);

impl Call {
    fn vector(&self) -> u64 {
        self.0[3] & 0xff
    }

    /// Whether the call's target is the processor `id`.
    fn is_for(&self, id: u64) -> bool {
        let [low, high, first, _] = self.0;
        let first = first as u32;
        [(first, low), (first.wrapping_add(64), high)]
            .into_iter()
            .any(|(first, word)| {
                let bit = id.wrapping_sub(first.into());
                bit < 64 && word >> bit & 1 != 0
            })
    }

    /// Whether a bare guest survives it: no SMI, no NMI except to the caller, no restart of the two that run, and no
    /// wake-up of one that can't take it, since its thread would spin.
    fn is_survived(&self) -> bool {
        let icr = self.0[3];
        let may_reach: &[u64] = match icr & 0x700 {
            SMI => &[],
            REMOTE_READ => &[CALLER, AWAKE],
            NMI => &[CALLER],
            INIT if icr & LEVEL != 0 && icr & ASSERT == 0 => &[CALLER, AWAKE, ASLEEP],
            INIT | STARTUP => &[ASLEEP],
            _ => &[CALLER, AWAKE, ASLEEP],
        };
        let all = [CALLER, AWAKE, ASLEEP];
        all.iter()
            .all(|id| may_reach.contains(id) || !self.is_for(*id))
    }

    fn registers(&self) -> Registers {
        let mut all = registers(10);
        for (register, argument) in [RBX, RCX, RDX, RSI].into_iter().zip(self.0) {
            all[register] = argument;
        }
        assert_eq!(all[RAX], 10);
        all
    }
}

/// Numbers that look random, but are always the same (xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn one_of(&mut self, choices: &[u64]) -> u64 {
        choices[self.next() as usize % choices.len()]
    }

    /// A call that usually reaches a processor.
    fn call(&mut self) -> Call {
        let any = self.next();
        let modes = [
            FIXED,
            FIXED,
            LOWEST_PRIORITY,
            SMI,
            REMOTE_READ,
            NMI,
            INIT,
            STARTUP,
            EXTERNAL,
        ];
        let mode = self.one_of(&modes);
        let vector = match mode {
            STARTUP => PARKED_VECTOR,
            _ => 16 + self.next() % 240,
        };
        let levels = [0, ASSERT, ASSERT, LEVEL, LEVEL | ASSERT];
        let odd = match any % 16 {
            // Invalid values, and bits without a meaning.
            0 => self.one_of(&[LOGICAL, TO_SELF, 1 << 13, 1 << 40]),
            _ => 0,
        };
        let icr = vector | mode | self.one_of(&levels) | odd;
        let words = [0, 1, 1, 2, 3, 4, 5, 7, any, u64::MAX];
        let firsts = [0, 0, 0, 1, any % 70, 0xffff_ffbe + any % 5, any, 1 << 32];
        let first = match any >> 8 & 1 {
            0 => 0,
            _ => self.one_of(&firsts),
        };
        Call([self.one_of(&words), self.one_of(&words), first, icr])
    }
}

/// The calls: three with a past difference in the answers, and many others.
fn calls() -> Vec<Call> {
    let mut calls = vec![
        Call([1 << ASLEEP, 0, 0, PARKED_VECTOR | STARTUP | LEVEL]),
        Call([1 << CALLER, 0, 0, 0x61 | FIXED | LEVEL | ASSERT]),
        Call([1 << CALLER, 0, 0, 0x61 | FIXED | ASSERT]),
        Call([0, 0b11, 0xffff_ffc0, 0x62 | FIXED | ASSERT]),
        Call([0, 0b11, 0xffff_ffbf, 0x63 | FIXED | ASSERT]),
    ];
    let mut numbers = Numbers(0x5eed);
    let random = std::iter::repeat_with(|| numbers.call());
    calls.extend(random.filter(Call::is_survived).take(200));
    calls
}

/// Copies a word of the local APIC or of memory to the place that is shown.
fn show_word(asm: &mut Asm, at: u64) {
    asm.load(at);
    asm.raw(&[0x89, 0x04, 0x25]).raw(&low(REGISTERS)); // mov [REGISTERS], eax
    asm.show(REGISTERS, 4);
}

/// A guest that makes the calls, and shows the result of each.
fn caller(calls: &[Call]) -> Asm {
    let count_nmi = guest(|asm| {
        asm.raw(&[0xff, 0x04, 0x25])
            .raw(&low(NMIS))
            .raw(&[0x48, 0xcf]); // inc dword [NMIS]; iretq
    });
    let mut lab = Lab::default();
    lab.handle(vec![(2, count_nmi)]);
    let asm = &mut lab.asm;
    Registration::new("a registration", Registered).prepare(asm);
    asm.wrmsr(MAGIC, PARA);
    asm.store(layout::LAPIC + 0xf0, 0x1ff);
    asm.place(PARK, PARKED).place(WAKE, AP_CODE);
    asm.start_processor(AWAKE as u8);
    asm.until_equal(|asm| {
        asm.load(READY).compare_al(1);
    });
    for this in calls {
        call(asm, STUB, &this.registers());
        asm.show(REGISTERS, 8);
        let word = this.vector() / 32 * 16;
        for at in [REQUESTED + word, TRIGGER_MODES + word, NMIS] {
            show_word(asm, at);
        }
    }
    asm.power_off();
    lab.asm
}

/// What the guest shows on a route, call by call.
fn shown(test: &str, guest: &Asm, route: &Route) -> Option<Vec<Vec<u8>>> {
    let mut vm = Vm::new(test, guest)?;
    let ended = vm.args(route.args()).args(["--cpus", CPUS]).run();
    ended.expect(0);
    Some(ended.stdout.chunks(SHOWN).map(<[u8]>::to_vec).collect())
}

#[test]
fn ipis_are_those_of_kvm() {
    let test = "ipis_are_those_of_kvm";
    if !has_kvm(test) {
        return;
    }
    let routes = routes(test);
    let calls = calls();
    let guest = caller(&calls);
    let (ours, kvms) = routes
        .iter()
        .partition::<Vec<&Route>, _>(|route| route.is_ours);
    let of_kvm = kvms.first().and_then(|route| shown(test, &guest, route));
    assert!(of_kvm.iter().all(|shown| shown.len() == calls.len()));
    for route in ours {
        let Some(of_us) = shown(test, &guest, route) else {
            return;
        };
        assert_eq!(of_us.len(), calls.len(), "{}", route.flag);
        let answer = |shown: &[u8]| i64::from_le_bytes(shown[..8].try_into().unwrap());
        // The three answers that KVM was seen to give.
        let answers: Vec<_> = of_us.iter().take(5).map(|shown| answer(shown)).collect();
        assert_eq!(answers, [1, 1, 1, 2, 0], "{}", route.flag);
        assert_eq!(
            of_us[1][8..16],
            [2, 0, 0, 0, 2, 0, 0, 0],
            "requested, by level"
        );
        let reached = of_us.iter().filter(|shown| answer(shown) > 0).count();
        assert!(
            reached * 3 > calls.len(),
            "{reached} calls reached somebody"
        );
        for ((call, ours), kvms) in calls.iter().zip(&of_us).zip(of_kvm.iter().flatten()) {
            assert_eq!(ours, kvms, "{}: {call:#x?}", route.flag);
        }
    }
}
