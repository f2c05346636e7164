// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--on-reboot reset`: every boot finds a fresh machine, and the process keeps nothing of the last one.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use bare::http::Client;
use bare::lab::{Lab, MAGIC, PARA, RBX, Route, STUB, registers};
use bare::registration::Registration;
use bare::registration::Verdict::Refused;
use bare::{AP_CODE, AT, Asm, Running, Vm, count, guest, is_emulated, is_long};
use mini_vmm::layout;
use para_abi::vmm::VMM_HC_BOOT_MARK;
use rustix::process::Signal;

/// A boot with all state as after power-on.
const FRESH: &str = "fresh\n";

/// Checks that EAX is `fresh`. The next boot would find what `dirty` writes.
fn check(asm: &mut Asm, fresh: u32, stale: char) {
    asm.compare_eax(fresh).if_different(|asm| {
        asm.print(&format!("stale {stale}\n")).fail(0x40);
    });
}

/// Checks a word of memory or of a memory-mapped register, then changes it.
fn memory(asm: &mut Asm, at: u64, fresh: u32, dirty: u32, stale: char) {
    asm.load(at);
    check(asm, fresh, stale);
    asm.store(at, dirty);
}

/// Checks a byte port, then writes to it.
fn port(asm: &mut Asm, port: u16, fresh: u8, dirty: u8, stale: char) {
    asm.raw(&[0x31, 0xc0]).input(port); // xor eax, eax
    check(asm, fresh.into(), stale);
    asm.out(port, dirty);
}

/// Checks the lower half of an MSR, then changes it.
fn msr(asm: &mut Asm, index: u32, fresh: u32, dirty: u64, stale: char) {
    asm.rdmsr(index);
    check(asm, fresh, stale);
    asm.wrmsr(index, dirty);
}

/// Checks every kind of machine state, changes it, and reports whether it was fresh.
fn look_around(asm: &mut Asm) {
    // What firmware and the kernel file provide; all else is zero.
    memory(asm, 0x5_0000, 0, !0, 'a');
    memory(asm, 31 * layout::MIB, 0, !0, 'b');
    memory(asm, AT + 1, 0x90_90_90_90, !0, 'c');
    memory(
        asm,
        layout::ACPI_TABLES,
        u32::from_le_bytes(*b"RSD "),
        0,
        'd',
    );
    let mptable = u32::from_le_bytes(*b"_MP_");
    memory(asm, layout::MP_TABLE, mptable, 0, 'z');
    memory(asm, layout::BOOT_GDT, 0, 1, 'e');
    // COM1: interrupt enable, line control, modem control, scratch.
    port(asm, layout::SERIAL + 1, 0, 0xf, 'f');
    port(asm, layout::SERIAL + 3, 3, 0x1f, 'g');
    port(asm, layout::SERIAL + 4, 8, 0xb, 'h');
    port(asm, layout::SERIAL + 7, 0, 0x5a, 'i');
    // Sleep type and wake status, the kind of reset.
    port(asm, layout::ACPI_SLEEP_CONTROL, 0, 3 << 2, 'j');
    port(asm, layout::ACPI_SLEEP_STATUS, 0, 0, 'k');
    asm.out(layout::ACPI_SLEEP_CONTROL, 3 << 2 | 0x20);
    port(asm, layout::CF9_RESET, 0, 2, 'l');
    port(asm, layout::GED_EVENTS, 0, 0, 'm');
    // Local APIC: task priority, spurious vector, initial count; IOAPIC: a redirection entry.
    memory(asm, layout::LAPIC + 0x80, 0, 0x20, 'n');
    memory(asm, layout::LAPIC + 0xf0, 0xff, 0x1ff, 'o');
    memory(asm, layout::LAPIC + 0x380, 0, 0x1000_0000, 'p');
    asm.store(layout::IOAPIC, 0x10 + 2 * layout::SERIAL_GSI);
    memory(asm, layout::IOAPIC + 0x10, 0x1_0000, 0x24, 'q');
    // The PIC's mask.
    port(asm, 0x21, 0xff, 0, 'y');
    // LSTAR, SYSENTER_ESP, PAT.
    msr(asm, 0xc000_0082, 0, 0x1234_5678, 'r');
    msr(asm, 0x175, 0, 0x1234_5678, 's');
    msr(asm, 0x277, 0x0007_0406, 0, 't');
    // DR0: mov rax, dr0; mov dr0, rdi
    asm.raw(&[0x0f, 0x21, 0xc0]);
    check(asm, 0, 'u');
    asm.rdi(0x1000).raw(&[0x0f, 0x23, 0xc7]);
    // CR2: mov rax, cr2; mov cr2, rdi
    asm.raw(&[0x0f, 0x20, 0xd0]);
    check(asm, 0, 'v');
    asm.raw(&[0x0f, 0x22, 0xd7]);
    // The time stamp counter restarts: it is less than 2^35. rdtsc; mov eax, edx; shr eax, 3
    if !is_emulated() {
        asm.raw(&[0x0f, 0x31, 0x89, 0xd0, 0xc1, 0xe8, 0x03]);
        check(asm, 0, 'w');
    }
    // The other processor waits for its start, and then counts until the end: lock inc word [cs:0x100]; jmp
    asm.times(200, |asm| {
        asm.load(AP_CODE + 0x100);
        check(asm, 0, 'x');
    });
    asm.place(&[0xf0, 0x2e, 0xff, 0x06, 0x00, 0x01, 0xeb, 0xf8], AP_CODE);
    asm.start_processor(1);
    asm.until_equal(|asm| {
        // cmp eax, 1; sbb eax, eax; test eax, eax: equal if EAX was not 0
        asm.load(AP_CODE + 0x100)
            .raw(&[0x83, 0xf8, 0x01, 0x19, 0xc0, 0x85, 0xc0]);
    });
    asm.print(FRESH);
}

/// Powers off if `q` is typed within a short time.
fn listen(asm: &mut Asm) {
    asm.times(200, |asm| {
        asm.input(layout::SERIAL + 5).test_al(1);
        asm.if_different(|asm| {
            asm.input(layout::SERIAL).compare_al(b'q');
            asm.if_equal(|asm| {
                asm.power_off();
            });
        });
    });
}

/// Starts a guest that keeps resetting until `q` is typed.
fn reset_for_ever(test: &str, act: impl FnOnce(&mut Asm)) -> Option<Running> {
    let guest = guest(|asm| {
        asm.raw(&[0x90; 8]);
        look_around(asm);
        listen(asm);
        act(asm);
        asm.halt();
    });
    let mut vm = Vm::new(test, &guest)?;
    vm.args(["--on-reboot", "reset", "--cpus", "2"]);
    vm.command.stdin(Stdio::piped());
    Some(vm.start())
}

/// Every boot after `act` is like the first one.
fn is_fresh_after(test: &str, act: impl FnOnce(&mut Asm)) {
    let Some(mut running) = reset_for_ever(test, act) else {
        return;
    };
    running.await_output(&FRESH.repeat(4));
    while running.is_alive() {
        // Input during a reset is lost with the machine.
        running.type_in(b"q");
        thread::sleep(Duration::from_millis(10));
    }
    let ended = running.end();
    ended.expect(0);
    let boots = count(&ended.stdout, FRESH);
    ended.printed(&FRESH.repeat(boots));
}

#[test]
fn acpi_reset_leaves_nothing() {
    is_fresh_after("acpi_reset_leaves_nothing", |asm| {
        asm.out(layout::ACPI_RESET, layout::ACPI_RESET_VALUE);
    });
}

#[test]
fn i8042_reset_leaves_nothing() {
    is_fresh_after("i8042_reset_leaves_nothing", |asm| {
        asm.out(layout::I8042_STATUS, 0xfe);
    });
}

#[test]
fn cf9_reset_leaves_nothing() {
    is_fresh_after("cf9_reset_leaves_nothing", |asm| {
        asm.out(layout::CF9_RESET, 6);
    });
}

#[test]
fn triple_fault_resets_and_leaves_nothing() {
    is_fresh_after("triple_fault_resets_and_leaves_nothing", |asm| {
        asm.triple_fault();
    });
}

/// A guest that resets at once.
fn restless_guest() -> Asm {
    guest(|asm| {
        asm.out(layout::ACPI_RESET, layout::ACPI_RESET_VALUE).halt();
    })
}

#[test]
fn timeout_counts_across_resets() {
    let Some(mut vm) = Vm::new("timeout_counts_across_resets", &restless_guest()) else {
        return;
    };
    vm.args(["--on-reboot", "reset", "--timeout", "1"]);
    let ended = vm.run();
    ended.expect(36).silent();
    let took = ended.took;
    assert!(took >= Duration::from_secs(1), "{took:?}");
}

#[test]
fn signal_ends_a_guest_that_only_resets() {
    let test = "signal_ends_a_guest_that_only_resets";
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let Some(mut vm) = Vm::new(test, &restless_guest()) else {
            return;
        };
        vm.args(["--on-reboot", "reset", "-v"]);
        let mut running = vm.start();
        running.await_stderr("starting again");
        running.signal(signal);
        running.end().expect(code);
    }
}

/// A guest that causes every log line in a boot, and resets. A triple fault is a reset with its own log line.
fn talkative_guest(ends_by_fault: bool) -> Asm {
    let mut lab = Lab::default();
    lab.asm.print(".");
    lab.count_faults();
    Registration::new("refused", Refused).prepare(&mut lab.asm);
    for (page, version) in [(PARA + 1, 1), (PARA, 2), (PARA, 1)] {
        lab.asm.store(PARA, version).wrmsr(MAGIC, page);
    }
    let mut mark = registers(VMM_HC_BOOT_MARK);
    mark[RBX] = 7;
    bare::lab::call(&mut lab.asm, STUB, &mark);
    // An MSR, a port and an address that don't exist.
    lab.asm
        .rdmsr(0x1234)
        .out(0x1234, 0)
        .store(layout::IOAPIC - 16, 0);
    for event in [0x80, 1, 2] {
        lab.asm.out(layout::PVPANIC, event);
    }
    lab.asm.out(layout::ACPI_SLEEP_CONTROL, 3 << 2 | 0x20);
    match ends_by_fault {
        true => lab.asm.triple_fault(),
        false => lab.asm.out(layout::ACPI_RESET, layout::ACPI_RESET_VALUE),
    };
    lab.asm.halt();
    lab.asm
}

/// The budget of log lines belongs to the process. No reset renews it, whatever the lines say.
#[test]
fn resets_do_not_flood_the_log() {
    let test = "resets_do_not_flood_the_log";
    let boots = if is_long(test) { 5000 } else { 100 };
    for ends_by_fault in [false, true] {
        let Some(mut vm) = Vm::new(test, &talkative_guest(ends_by_fault)) else {
            return;
        };
        vm.args(["--on-reboot", "reset", "--on-panic", "continue", "-vv"]);
        vm.args(["--msr-policy", "log", "--timeout", "off"]);
        vm.args(Route::PIO.args());
        let mut running = vm.start();
        running.await_output(&".".repeat(boots));
        running.signal(Signal::TERM);
        let ended = running.end();
        ended.expect(143).says(&[
            "unknown event 0x80",
            "sleep type 3",
            "starting again",
            "para guest registered",
            "boot mark 0x7",
            "RDMSR of MSR 0x1234",
            "lines like this are left out",
        ]);
        // Lines that differ only in numbers are one kind: 64 at once, and one more every ten seconds.
        let mut kinds = BTreeMap::<String, u64>::new();
        for line in ended.stderr.lines() {
            let text = line.split(" (").next().unwrap();
            let kind = text.split(|c: char| !c.is_ascii_alphabetic()).collect();
            *kinds.entry(kind).or_default() += 1;
        }
        let most = 64 + ended.took.as_secs() / 10 + 1;
        assert!(kinds.values().all(|lines| *lines <= most), "{kinds:#?}");
        assert!(kinds.len() < 40, "{kinds:#?}");
    }
}

/// The resources of a process.
#[derive(Clone, Copy, Debug)]
struct Holds {
    descriptors: usize,
    threads: usize,
    /// Resident memory, in KiB.
    memory: usize,
}

/// The most resources of a process, sampled often while its guest boots this many times.
fn most_held(running: &Running, boots: usize) -> Holds {
    let pid = running.id();
    let entries = |name| fs::read_dir(format!("/proc/{pid}/{name}")).unwrap().count();
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let mut words = line.unwrap().split_ascii_whitespace();
        words.nth(1).unwrap().parse().unwrap()
    };
    let end = count(&running.output(), FRESH) + boots;
    let mut most = Holds {
        descriptors: 0,
        threads: 0,
        memory: 0,
    };
    while count(&running.output(), FRESH) < end {
        most.descriptors = most.descriptors.max(entries("fd"));
        most.threads = most.threads.max(entries("task"));
        most.memory = most.memory.max(resident());
        thread::sleep(Duration::from_millis(1));
    }
    most
}

#[test]
fn resets_hold_on_to_nothing() {
    let test = "resets_hold_on_to_nothing";
    let Some(mut running) = reset_for_ever(test, |asm| {
        asm.triple_fault();
    }) else {
        return;
    };
    running.await_output(FRESH);
    let early = most_held(&running, 4);
    let boots = if is_long(test) { 1000 } else { 10 };
    most_held(&running, boots);
    let late = most_held(&running, 4);
    eprintln!("{early:?} at first, {late:?} after {boots} boots");
    running.signal(Signal::TERM);
    // Its power button differs from a fresh one.
    running.end();
    assert!(
        late.descriptors <= early.descriptors + 2,
        "{early:?} {late:?}"
    );
    assert!(late.threads <= early.threads + 1, "{early:?} {late:?}");
    assert!(late.memory <= early.memory + 1024, "{early:?} {late:?}");
}

/// Replaces the file with a FIFO that delivers its content once.
fn to_fifo(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::remove_file(path).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, path, 0o600.into()).unwrap();
    let path = path.to_owned();
    // If the program has ended, the writer waits for ever, and this thread with it until the test ends.
    thread::spawn(move || fs::write(path, bytes));
}

#[test]
fn kernel_and_initrd_from_pipes_are_there_again() {
    let test = "kernel_and_initrd_from_pipes_are_there_again";
    let guest = guest(|asm| {
        // The initrd's address (Linux boot protocol, `ramdisk_image`), and its content: mov eax, [rax]
        asm.load(layout::ZERO_PAGE + 0x218).raw(&[0x8b, 0x00]);
        asm.expect_eax(u32::from_le_bytes(*b"RAMD"), 0x40);
        asm.print("up\n").out(layout::CF9_RESET, 6).halt();
    });
    let Some(mut vm) = Vm::new(test, &guest) else {
        return;
    };
    fs::write(vm.path("initrd"), "RAMDISK").unwrap();
    for name in ["kernel", "initrd"] {
        to_fifo(&vm.path(name));
    }
    vm.args(["--initrd", "initrd", "--on-reboot", "reset"]);
    let mut running = vm.start();
    running.await_output("up\nup\nup\n");
    running.signal(Signal::TERM);
    running.end().expect(143).silent();
}

/// A reset that comes while a snapshot pauses the guest leads to a snapshot of the next machine.
#[test]
fn a_guest_that_only_resets_has_snapshots() {
    let test = "a_guest_that_only_resets_has_snapshots";
    let resets = guest(|asm| {
        asm.out(layout::ACPI_RESET, layout::ACPI_RESET_VALUE).halt();
    });
    let Some(mut vm) = Vm::waiting(test, &resets) else {
        return;
    };
    let api = vm.path("api");
    let mut running = vm.start();
    let mut client = Client::connect(&mut running, &api);
    client.describe();
    client.done("PATCH", "/options", r#"{"on-reboot": "reset"}"#);
    client.act("InstanceStart");
    for number in 0..50 {
        let body = format!(r#"{{"directory": "snap{number}", "keep_running": true}}"#);
        client.done("PUT", "/snapshot", &body);
    }
    client.act("Stop");
    running.end().expect(0);
}
