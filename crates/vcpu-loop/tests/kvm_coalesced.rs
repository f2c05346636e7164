// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Coalesced writes on real KVM. Without a usable /dev/kvm each test prints SKIP.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{ENTRY, Machine, kvm};
use kvm_ioctls::{Cap, IoEventAddress, Kvm};
use vcpu_loop::kvm::{Error as KvmError, KvmVcpu};
use vcpu_loop::{
    CoalescedWrite, Exit, Next, SaveVcpu, Vcpu, VcpuEvent, VcpuIo, VcpuSet, vcpu_events,
};

/// Only a hang takes this long, even on a slow machine.
const SOON: Duration = Duration::from_secs(600);
const MMIO: u64 = 0xa_0000;
const PORT: u16 = 0x44;

/// A machine that coalesces writes to 256 bytes at [`MMIO`] and to [`PORT`], with vCPUs that deliver them.
fn machine(kvm: &Kvm, test: &str, code: &[u8], vcpus: u64) -> Option<(Machine, Vec<KvmVcpu>)> {
    if kvm.check_extension_int(Cap::CoalescedPio) <= 0 {
        eprintln!("SKIP: {test}: KVM coalesces no port writes");
        return None;
    }
    let machine = Machine::new(kvm, code);
    for (address, size) in [
        (IoEventAddress::Mmio(MMIO), 256),
        (IoEventAddress::Pio(PORT.into()), 2),
    ] {
        machine.vm.register_coalesced_mmio(address, size).unwrap();
    }
    let mut vcpus: Vec<KvmVcpu> = (0..vcpus).map(|id| machine.vcpu(id)).collect();
    let ring = vcpus[0].coalesced_ring().unwrap();
    vcpus = vcpus
        .into_iter()
        .map(|vcpu| vcpu.with_coalesced_ring(Arc::clone(&ring)))
        .collect();
    Some((machine, vcpus))
}

/// mov ax, 0xa000; mov ds, ax
const TO_MMIO: &[u8] = b"\xb8\x00\xa0\x8e\xd8";

#[test]
fn writes_come_before_the_exit_that_follows_them() {
    let test = "writes_come_before_the_exit_that_follows_them";
    let Some(kvm) = kvm(test) else { return };
    // mov [0x10], ax; out 0x44, ax; mov [0x20], al; in al, 0x60; mov [0x30], ax; hlt
    let code = [
        TO_MMIO,
        b"\xa3\x10\x00\xe7\x44\xa2\x20\x00\xe4\x60\xa3\x30\x00\xf4",
    ]
    .concat();
    let Some((_machine, mut vcpus)) = machine(&kvm, test, &code, 1) else {
        return;
    };
    let vcpu = &mut vcpus[0];
    let mut seen = Vec::new();
    loop {
        match vcpu.run().unwrap() {
            Exit::Coalesced(writes) => writes.drain(|write| {
                seen.push(match write {
                    CoalescedWrite::Mmio { addr, data } => format!("{addr:#x} {data:x?}"),
                    CoalescedWrite::Pio { port, data } => format!("port {port:#x} {data:x?}"),
                });
            }),
            Exit::PioIn { data, .. } => {
                data.fill(0x5a);
                seen.push("in".to_owned());
            }
            Exit::Hlt => break,
            other => panic!("{other:?}"),
        }
    }
    let expected = [
        "0xa0010 [0, a0]",
        "port 0x44 [0, a0]",
        "0xa0020 [0]",
        "in",
        "0xa0030 [5a, a0]",
    ];
    assert_eq!(seen, expected);
}

#[test]
fn a_vcpu_is_saved_only_after_its_writes_were_delivered() {
    let test = "a_vcpu_is_saved_only_after_its_writes_were_delivered";
    let Some(kvm) = kvm(test) else { return };
    // mov [0x10], ax; in al, 0x60; hlt
    let code = [TO_MMIO, b"\xa3\x10\x00\xe4\x60\xf4"].concat();
    let Some((_machine, mut vcpus)) = machine(&kvm, test, &code, 1) else {
        return;
    };
    let vcpu = &mut vcpus[0];
    let start = vcpu.save().unwrap();
    assert!(matches!(vcpu.run().unwrap(), Exit::Coalesced(_)));
    assert!(matches!(vcpu.save(), Err(KvmError::Incomplete)));
    let mut writes = 0;
    loop {
        match vcpu.complete().unwrap() {
            Exit::Coalesced(coalesced) => coalesced.drain(|_| writes += 1),
            Exit::PioIn { data, .. } => data.fill(0x5a),
            Exit::Interrupted => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(writes, 1);
    let saved = vcpu.save().unwrap();
    assert_eq!((saved.regs.rip, saved.regs.rax), (ENTRY + 10, 0xa05a));
    // After `abandon`, a write may stay in the ring; `discard` drops it.
    vcpu.restore(&start).unwrap();
    assert!(matches!(vcpu.run().unwrap(), Exit::Coalesced(_)));
    vcpu.abandon().unwrap();
    vcpu.restore(&saved).unwrap();
    vcpu.coalesced_ring().unwrap().discard();
    assert!(matches!(vcpu.run().unwrap(), Exit::Hlt));
}

/// Per vCPU, the last coalesced write, and the last write to a port that exits.
#[derive(Default)]
struct Numbers {
    coalesced: [u16; 2],
    exits: [u16; 2],
    wrong: Vec<String>,
}

struct Device {
    vcpu: usize,
    numbers: Arc<Mutex<Numbers>>,
    total: Arc<AtomicU64>,
}

impl VcpuIo for Device {
    fn mmio_write(&mut self, addr: u64, data: &[u8]) -> Next {
        // Lets the other vCPU find the ring while this write is being delivered.
        std::thread::sleep(Duration::from_micros(20));
        let number = u16::from_le_bytes(data.try_into().unwrap());
        let mut numbers = self.numbers.lock().unwrap();
        let by = (addr - MMIO) as usize / 16;
        if number != numbers.coalesced[by].wrapping_sub(1) {
            numbers
                .wrong
                .push(format!("vCPU {by}: {number} out of order"));
        }
        numbers.coalesced[by] = number;
        Next::Continue
    }

    fn pio_write(&mut self, _: u16, data: &[u8]) -> Next {
        let number = u16::from_le_bytes(data.try_into().unwrap());
        let mut numbers = self.numbers.lock().unwrap();
        if numbers.coalesced[self.vcpu] != number {
            let seen = numbers.coalesced[self.vcpu];
            let wrong = format!("vCPU {}: {number}, but {seen} by writes", self.vcpu);
            numbers.wrong.push(wrong);
        }
        numbers.exits[self.vcpu] = number;
        self.total.fetch_add(1, Ordering::Relaxed);
        Next::Continue
    }
}

#[test]
fn a_device_has_each_vcpus_writes_in_order_and_before_what_follows() {
    let test = "a_device_has_each_vcpus_writes_in_order_and_before_what_follows";
    let Some(kvm) = kvm(test) else { return };
    // Three writes of a number that counts down, a delay in which the other vCPU can find them, and then the last
    // number to a port that exits.
    let code = [
        TO_MMIO,
        b"\xb9\xb8\x0b",             // mov cx, 3000
        b"\x89\x0f\x49",             // mov [bx], cx; dec cx
        b"\x89\x0f\x49",             // the same
        b"\x89\x0f",                 // mov [bx], cx
        b"\xbe\x64\x00\x4e\x75\xfd", // mov si, 100; dec si; jnz to it
        b"\x89\xc8\xe7\x60",         // mov ax, cx; out 0x60, ax
        b"\x49\x75\xeb",             // dec cx; jnz to the first write
        b"\xf4",
    ]
    .concat();
    let Some((_machine, vcpus)) = machine(&kvm, test, &code, 2) else {
        return;
    };
    let (sender, events) = vcpu_events().unwrap();
    let mut set = VcpuSet::new(sender);
    let start = Numbers {
        coalesced: [3001; 2],
        ..Numbers::default()
    };
    let numbers = Arc::new(Mutex::new(start));
    let total = Arc::new(AtomicU64::new(0));
    for (id, vcpu) in vcpus.into_iter().enumerate() {
        let mut regs = vcpu.fd().get_regs().unwrap();
        regs.rbx = id as u64 * 16;
        vcpu.fd().set_regs(&regs).unwrap();
        let io = Device {
            vcpu: id,
            numbers: Arc::clone(&numbers),
            total: Arc::clone(&total),
        };
        set.spawn(id as u32, vcpu, io).unwrap();
    }
    set.resume(SOON).unwrap();
    for _ in 0..2 {
        assert!(matches!(
            events.recv_timeout(SOON),
            Some(VcpuEvent::Halted { .. })
        ));
    }
    let numbers = numbers.lock().unwrap();
    assert_eq!(numbers.wrong, Vec::<String>::new());
    assert_eq!((numbers.coalesced, numbers.exits), ([1; 2], [1; 2]));
    assert_eq!(total.load(Ordering::Relaxed), 2000);
}
