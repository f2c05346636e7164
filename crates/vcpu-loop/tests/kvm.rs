// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The loop on real KVM, with real-mode snippets. Without a usable /dev/kvm each test prints SKIP.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../examples/real_mode.rs"]
mod real_mode;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{ENTRY, MSR, Machine, SOON, kvm, set};
use vcpu_loop::kvm::KvmVcpu;
use vcpu_loop::{
    Access, Exit, ExitKind, ExitRecord, InstructionBytes, ManagedVcpu, MsrReply, Next, Vcpu,
    VcpuEvent, VcpuEvents, VcpuIo,
};
use vm_memory::{Bytes, GuestAddress};

/// `mov ecx, MSR`
const MOV_ECX_MSR: [u8; 6] = [0x66, 0xb9, 0x78, 0x56, 0x65, 0x87];

fn expect_halt(events: &VcpuEvents) {
    match events.recv_timeout(SOON) {
        Some(VcpuEvent::Halted { .. }) => {}
        Some(VcpuEvent::Fatal { report } | VcpuEvent::Shutdown { report }) => panic!("{report}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn string_reads_keep_their_width() {
    let Some(kvm) = kvm("string_reads_keep_their_width") else {
        return;
    };
    // mov dx, 0x60; mov cx, 4; mov di, 0x2000; rep insb; in eax, dx; hlt
    let code = b"\xba\x60\x00\xb9\x04\x00\xbf\x00\x20\xf3\x6c\x66\xed\xf4";
    let machine = Machine::new(&kvm, code);
    let mut vcpu = machine.vcpu(0);
    let mut widths = Vec::new();
    loop {
        match vcpu.run().unwrap() {
            Exit::PioIn {
                port: 0x60,
                size,
                data,
            } => {
                widths.push((size, data.len()));
                data.iter_mut().zip(1..).for_each(|(byte, n)| *byte = n);
            }
            Exit::Hlt => break,
            other => panic!("{other:?}"),
        }
    }
    // kvm-ioctls reports both as `IoIn(0x60, 4 bytes)`.
    assert_eq!(widths, [(1, 4), (4, 4)]);
    let mut string = [0; 4];
    machine
        .memory
        .read_slice(&mut string, GuestAddress(0x2000))
        .unwrap();
    assert_eq!(string, [1, 2, 3, 4]);
    assert_eq!(vcpu.fd().get_regs().unwrap().rax as u32, 0x0403_0201);
}

/// Writes as address and bytes.
type Writes = Arc<Mutex<Vec<(u64, Vec<u8>)>>>;

/// A device that records writes, and answers reads with the address.
#[derive(Default)]
struct Log {
    writes: Writes,
}

impl VcpuIo for Log {
    fn pio_read(&mut self, port: u16, data: &mut [u8]) -> Next {
        data.copy_from_slice(&u32::from(port).to_le_bytes()[..data.len()]);
        Next::Continue
    }
    fn pio_write(&mut self, port: u16, data: &[u8]) -> Next {
        self.writes
            .lock()
            .unwrap()
            .push((port.into(), data.to_vec()));
        Next::Continue
    }
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) -> Next {
        data.copy_from_slice(&addr.to_le_bytes()[..data.len()]);
        Next::Continue
    }
    fn mmio_write(&mut self, addr: u64, data: &[u8]) -> Next {
        self.writes.lock().unwrap().push((addr, data.to_vec()));
        Next::Continue
    }
}

#[test]
fn ports_and_mmio_through_the_loop() {
    let Some(kvm) = kvm("ports_and_mmio_through_the_loop") else {
        return;
    };
    let code = [
        b"\xb8\x00\xa0\x8e\xd8".as_slice(), // mov ax, 0xa000; mov ds, ax
        b"\x66\xa1\x10\x00",                // mov eax, [0x10]
        b"\x66\xa3\x20\x00",                // mov [0x20], eax
        b"\xe5\x42\xe7\x44\xf4",            // in ax, 0x42; out 0x44, ax; hlt
    ]
    .concat();
    let machine = Machine::new(&kvm, &code);
    let (mut vcpus, events) = set();
    let io = Log::default();
    let writes = Arc::clone(&io.writes);
    vcpus.spawn(0, machine.vcpu(0), io).unwrap();
    vcpus.resume(SOON).unwrap();
    expect_halt(&events);
    vcpus.stop(SOON).unwrap();
    let expected = [
        (0xa_0020, 0xa_0010u32.to_le_bytes().to_vec()),
        (0x44, vec![0x42, 0]),
    ];
    assert_eq!(*writes.lock().unwrap(), expected);
}

/// One MSR that reads as the value last written, or is unclaimed without a value. With `hold`, a write reports that it
/// is in the handler, and waits there.
struct Msrs {
    value: Option<u64>,
    calls: Arc<AtomicU64>,
    hold: Option<(Sender<()>, Receiver<()>)>,
    outs: Arc<Mutex<Vec<u8>>>,
}

impl Msrs {
    fn new() -> Self {
        Msrs {
            value: Some(0),
            calls: Arc::default(),
            hold: None,
            outs: Arc::default(),
        }
    }
}

impl VcpuIo for Msrs {
    fn rdmsr(&mut self, index: u32) -> MsrReply<u64> {
        assert_eq!(index, MSR);
        self.value.map_or(MsrReply::Unclaimed, MsrReply::Value)
    }
    fn wrmsr(&mut self, index: u32, data: u64) -> MsrReply<()> {
        assert_eq!(index, MSR);
        self.calls.fetch_add(1, Ordering::SeqCst);
        if let Some((entered, leave)) = &self.hold {
            entered.send(()).unwrap();
            let _ = leave.recv();
        }
        self.value = self.value.map(|_| data);
        self.value
            .map_or(MsrReply::Unclaimed, |_| MsrReply::Value(()))
    }
    fn pio_write(&mut self, _: u16, data: &[u8]) -> Next {
        self.outs.lock().unwrap().extend_from_slice(data);
        Next::Continue
    }
}

#[test]
fn msrs_read_back_what_was_written() {
    let Some(kvm) = kvm("msrs_read_back_what_was_written") else {
        return;
    };
    let code = [
        MOV_ECX_MSR.as_slice(),
        b"\x66\xb8\x44\x33\x22\x11\x66\xba\x88\x77\x66\x55", // mov eax, 0x11223344; mov edx, 0x55667788
        b"\x0f\x30\x66\x31\xc0\x0f\x32",                     // wrmsr; xor eax, eax; rdmsr
        b"\x66\xe7\x80\x66\x89\xd0\x66\xe7\x80\xf4", // out 0x80, eax; mov eax, edx; out 0x80, eax; hlt
    ]
    .concat();
    let machine = Machine::new(&kvm, &code);
    machine.own_msr();
    let (mut vcpus, events) = set();
    let io = Msrs::new();
    let outs = Arc::clone(&io.outs);
    vcpus.spawn(0, machine.vcpu(0), io).unwrap();
    vcpus.resume(SOON).unwrap();
    expect_halt(&events);
    assert_eq!(
        *outs.lock().unwrap(),
        0x5566_7788_1122_3344u64.to_le_bytes()
    );
}

#[test]
fn an_unclaimed_msr_is_gp() {
    let Some(kvm) = kvm("an_unclaimed_msr_is_gp") else {
        return;
    };
    // The handler of #GP (vector 13): mov al, 13; out 0x80, al; hlt
    let machine = Machine::new(&kvm, &[MOV_ECX_MSR.as_slice(), b"\x0f\x32\xf4"].concat());
    machine.own_msr();
    machine
        .memory
        .write_slice(b"\xb0\x0d\xe6\x80\xf4", GuestAddress(0x3000))
        .unwrap();
    machine
        .memory
        .write_obj([0x3000u16, 0], GuestAddress(13 * 4))
        .unwrap();
    let (mut vcpus, events) = set();
    let io = Msrs {
        value: None,
        ..Msrs::new()
    };
    let outs = Arc::clone(&io.outs);
    vcpus.spawn(0, machine.vcpu(0), io).unwrap();
    vcpus.resume(SOON).unwrap();
    expect_halt(&events);
    assert_eq!(*outs.lock().unwrap(), [13]);
    assert_eq!(vcpus.unclaimed(0).unwrap().count(Access::Rdmsr), 1);
}

#[test]
fn a_triple_fault_reports_registers_and_bytes() {
    let Some(kvm) = kvm("a_triple_fault_reports_registers_and_bytes") else {
        return;
    };
    // out 0x80, al; ud2. In protected mode without an IDT: #UD, #GP for the missing gate, #DF, shutdown.
    let machine = Machine::new(&kvm, b"\xe6\x80\x0f\x0b");
    let vcpu = machine.protected_mode_vcpu(7);
    let (mut vcpus, events) = set();
    vcpus.spawn(7, vcpu, Log::default()).unwrap();
    vcpus.resume(SOON).unwrap();
    let report = match events.recv_timeout(SOON) {
        Some(VcpuEvent::Shutdown { report }) => report,
        other => panic!("{other:?}"),
    };
    let text = report.to_string();
    for part in ["vCPU 7 failed: triple fault", "IDT ", "PioOut port 0x80"] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let dump = report.dump.unwrap();
    // kvm-amd resets the registers at a triple fault, because SVM leaves the VMCB undefined then.
    if dump.registers.rip == 0xfff0 {
        assert!(
            text.contains("guest-physical 0xfffffff0 is not RAM"),
            "{text}"
        );
    } else {
        assert_eq!(dump.registers.rip, ENTRY + 2, "{text}");
        assert!(text.contains("bytes at RIP: 0f 0b"), "{text}");
        assert!(
            text.contains("IDT        base 0000000000000000  limit 00000000"),
            "{text}"
        );
        assert!(
            text.contains("CS   0008  base 0000000000000000  limit ffffffff  attributes c09b"),
            "{text}"
        );
    }
    vcpus.stop(SOON).unwrap();
}

#[test]
fn bytes_at_rip_come_from_guest_memory() {
    let Some(kvm) = kvm("bytes_at_rip_come_from_guest_memory") else {
        return;
    };
    let machine = Machine::new(&kvm, &[0x90, 0xf4, 0xcc]);
    let mut vcpu = machine.vcpu(0);
    let at = |vcpu: &mut KvmVcpu, rip| {
        let mut regs = vcpu.fd().get_regs().unwrap();
        regs.rip = rip;
        vcpu.fd().set_regs(&regs).unwrap();
        vcpu.dump().unwrap().instruction
    };
    let InstructionBytes::Read {
        gpa: ENTRY,
        bytes,
        len: 16,
    } = at(&mut vcpu, ENTRY)
    else {
        panic!()
    };
    assert_eq!(bytes[..3], [0x90, 0xf4, 0xcc]);
    // Across a page, and up to the end of RAM.
    assert!(matches!(
        at(&mut vcpu, 0x1ffb),
        InstructionBytes::Read {
            gpa: 0x1ffb,
            len: 16,
            ..
        }
    ));
    assert!(matches!(
        at(&mut vcpu, 0xfff8),
        InstructionBytes::Read {
            gpa: 0xfff8,
            len: 8,
            ..
        }
    ));
    assert!(matches!(
        at(&mut vcpu, 0x2_0000),
        InstructionBytes::NotRam { gpa: 0x2_0000 }
    ));
}

#[test]
fn a_pause_while_a_wrmsr_is_pending_does_not_replay_it() {
    let Some(kvm) = kvm("a_pause_while_a_wrmsr_is_pending_does_not_replay_it") else {
        return;
    };
    // mov ecx, MSR; wrmsr; mov al, 1; out 0x80, al; jmp $
    let code = [MOV_ECX_MSR.as_slice(), b"\x0f\x30\xb0\x01\xe6\x80\xeb\xfe"].concat();
    let machine = Machine::new(&kvm, &code);
    machine.own_msr();
    let (entered, wait_entered) = channel();
    let (leave, wait_leave) = channel();
    let io = Msrs {
        hold: Some((entered, wait_leave)),
        ..Msrs::new()
    };
    let (calls, outs) = (Arc::clone(&io.calls), Arc::clone(&io.outs));
    let (mut vcpus, _events) = set();
    vcpus.spawn(0, machine.vcpu(0), io).unwrap();
    vcpus.resume(SOON).unwrap();
    wait_entered.recv_timeout(SOON).unwrap();
    assert!(
        vcpus.pause(Duration::from_millis(20)).is_err(),
        "the write is being handled"
    );
    leave.send(()).unwrap();
    vcpus.pause(SOON).unwrap();
    let state = vcpus.save(SOON).unwrap();
    // The kick came before the exit was answered, so KVM completed the write and ran nothing more.
    assert_eq!(state[0].regs.rip, ENTRY + 8);
    assert_eq!(
        (calls.load(Ordering::SeqCst), outs.lock().unwrap().len()),
        (1, 0)
    );
    // After a restore in place and a resume, the guest doesn't repeat the write.
    vcpus.restore(state, SOON).unwrap();
    vcpus.resume(SOON).unwrap();
    let start = Instant::now();
    while outs.lock().unwrap().is_empty() && start.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(*outs.lock().unwrap(), [1]);
    vcpus.stop(SOON).unwrap();
}

#[test]
fn the_example_prints_what_its_guest_says() {
    let Some(kvm) = kvm("the_example_prints_what_its_guest_says") else {
        return;
    };
    assert_eq!(real_mode::run(&kvm).unwrap(), "hello");
    // Counts the user's lines, without blank lines, comments and imports.
    let source = include_str!("../examples/real_mode.rs");
    let lines = source.lines().map(str::trim);
    let own = lines
        .filter(|l| !l.is_empty() && !l.starts_with("//") && !l.starts_with("use "))
        .count();
    assert!(own < 60, "{own} lines");
}

#[test]
fn the_hook_hears_when_the_guest_can_take_an_interrupt() {
    let Some(kvm) = kvm("the_hook_hears_when_the_guest_can_take_an_interrupt") else {
        return;
    };
    struct Windows(Sender<ExitKind>);
    impl VcpuIo for Windows {
        fn other_exit(&mut self, exit: &mut Exit<'_>) -> Next {
            self.0.send(ExitRecord::from(&*exit).kind).unwrap();
            Next::Pause
        }
    }
    // out 0x80, al; sti; jmp $
    let machine = Machine::new(&kvm, b"\xe6\x80\xfb\xeb\xfe");
    let mut vcpu = machine.vcpu(0);
    vcpu.request_interrupt_window(true);
    let (heard, kinds) = channel();
    let (mut vcpus, events) = set();
    vcpus.spawn(0, vcpu, Windows(heard)).unwrap();
    vcpus.resume(SOON).unwrap();
    assert_eq!(kinds.recv_timeout(SOON), Ok(ExitKind::InterruptWindow));
    assert!(matches!(
        events.recv_timeout(SOON),
        Some(VcpuEvent::Paused { .. })
    ));
}
