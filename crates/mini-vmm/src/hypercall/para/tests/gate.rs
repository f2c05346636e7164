// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! When the call port opens.

use super::*;

/// The bytes at the call site of guests of 2007.
const SITE_BEFORE: [u8; 4] = [0xb8, 0xda, 0xff, 0xff];

#[test]
fn r10_writes_that_fault_or_are_refused_open_nothing() {
    let machine = Machine::pio();
    let mut io = machine.io(0);
    let wrmsr = |data| Step::Wrmsr {
        index: MSR_KVM_API_MAGIC,
        data,
    };
    let newer = ParaStatePayload {
        guest_version: 2,
        ..ParaStatePayload::new(SITE)
    };
    machine
        .memory
        .write_slice(&newer.to_bytes(), GuestAddress(PAGE))
        .unwrap();
    let faults = vec![wrmsr(PAGE + 8), wrmsr(1 << 40), wrmsr(PAGE)];
    let (replies, ..) = play(&mut io, faults);
    let (fault, refusal) = (Reply::Wrmsr(None), Reply::Wrmsr(Some(())));
    assert_eq!(replies, [fault.clone(), fault, refusal.clone()]);
    // A site that crosses a page boundary.
    machine.prepare(SITE + 0xffd);
    assert_eq!(play(&mut io, vec![wrmsr(PAGE)]).0, [refusal]);
    assert_eq!(machine.page().ret, u32::MAX);

    let (_, unclaimed, _) = play(&mut io, vec![out(1, &[0])]);
    assert_eq!(unclaimed.count(Access::PioWrite), 1);
    assert!(!machine.registers[0].is_shared() && !machine.registers[1].is_shared());
    machine.prepare(SITE);
    let (replies, ..) = play(&mut io, vec![wrmsr(PAGE)]);
    assert_eq!(replies, [Reply::Wrmsr(Some(()))]);
    assert!(machine.registers[0].is_shared() && machine.registers[1].is_shared());
    let (_, unclaimed, _) = play(&mut io, vec![out(1, &[0])]);
    assert_eq!(unclaimed.total(), 0);
}

#[test]
fn r8_the_gate_is_open_before_the_stub_is_there() {
    let machine = Machine::pio();
    machine
        .memory
        .write_obj(SITE_BEFORE, GuestAddress(SITE))
        .unwrap();
    let (memory, seen) = (Arc::clone(&machine.memory), Arc::new(Mutex::new(None)));
    let site = Arc::clone(&seen);
    machine.registers[1].edit(|fake| {
        fake.when_shared = Some(WhenShared(Box::new(move || {
            let bytes: [u8; 4] = memory.read_obj(GuestAddress(SITE)).unwrap();
            *site.lock().unwrap() = Some(bytes);
        })));
    });
    registered(&machine);
    assert_eq!(*seen.lock().unwrap(), Some(SITE_BEFORE));
    assert_eq!(machine.site(), [0xe6, 0xf5, 0xc3, 0xcc]);
}

#[test]
fn r8_a_write_whose_registers_were_never_shared_is_no_call() {
    let machine = Machine::pio();
    registered(&machine);
    let calls = Registers {
        rax: SUM,
        rbx: 5,
        ..Registers::default()
    };
    machine.registers[1].set(&calls);
    machine.registers[1].edit(|fake| fake.late = true);
    let (_, unclaimed, _) = play(&mut machine.io(1), vec![out(1, &[0])]);
    assert_eq!(unclaimed.count(Access::PioWrite), 1);
    assert_eq!(machine.registers[1].rax(), SUM, "untouched");
    machine.registers[1].edit(|fake| fake.late = false);
    let (_, unclaimed, _) = play(&mut machine.io(1), vec![out(1, &[0])]);
    assert_eq!((unclaimed.total(), machine.registers[1].rax()), (0, 5));
}
