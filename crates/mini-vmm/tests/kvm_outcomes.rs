// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The exit codes, one test per rule: what guests and users do to end a run, and the resulting code.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;
mod images;

use std::io::Write;
use std::time::Duration;

use bare::{Asm, Ended, TIMEOUTS, Vm, guest, has_kvm};
use images::Bz;
use mini_vmm::layout;
use rustix::process::Signal;

/// Runs a guest with additional arguments. `None` if no guest can run.
fn run(test: &str, args: &[&str], write: impl FnOnce(&mut Asm)) -> Option<Ended> {
    Some(Vm::new(test, &guest(write))?.args(args).run())
}

/// Checks that a guest's last action ends the run with a code and without output.
fn ends_with(test: &str, code: i32, args: &[&str], act: impl FnOnce(&mut Asm)) {
    let ended = run(test, args, |asm| {
        asm.print("up\n");
        act(asm);
        // If the action leaves the guest running, that shows.
        asm.print("still here");
        asm.halt();
    });
    if let Some(ended) = ended {
        ended.expect(code).printed("up\n").silent();
    }
}

#[test]
fn acpi_s5_is_0() {
    ends_with("acpi_s5_is_0", 0, &[], |asm| {
        asm.out(layout::ACPI_SLEEP_CONTROL, bare::S5);
    });
}

#[test]
fn acpi_reset_register_is_32() {
    ends_with("acpi_reset_register_is_32", 32, &[], |asm| {
        asm.out(layout::ACPI_RESET, layout::ACPI_RESET_VALUE);
    });
}

#[test]
fn i8042_reset_is_32() {
    ends_with("i8042_reset_is_32", 32, &[], |asm| {
        asm.out(layout::I8042_STATUS, 0xfe);
    });
}

#[test]
fn cf9_reset_is_32() {
    ends_with("cf9_reset_is_32", 32, &[], |asm| {
        asm.out(layout::CF9_RESET, 2).out(layout::CF9_RESET, 6);
    });
}

#[test]
fn pvpanic_is_34() {
    ends_with("pvpanic_is_34", 34, &[], |asm| {
        asm.out(layout::PVPANIC, 1);
    });
}

#[test]
fn pvpanic_continues_when_told_to() {
    let ended = run(
        "pvpanic_continues_when_told_to",
        &["--on-panic", "continue"],
        |asm| {
            asm.out(layout::PVPANIC, 1).print("went on\n").power_off();
        },
    );
    if let Some(ended) = ended {
        ended.expect(0).printed("went on\n").says(&["pvpanic"]);
    }
}

#[test]
fn debug_exit_is_the_guests_choice() {
    let test = "debug_exit_is_the_guests_choice";
    for (value, code) in [(0, 1), (3, 7), (0x7f, 0xff)] {
        ends_with(test, code, &[], |asm| {
            asm.out(layout::DEBUG_EXIT, value);
        });
    }
    ends_with(test, 7, &["--debug-exit=0x501"], |asm| {
        asm.out(0x501, 3);
    });
}

#[test]
fn without_debug_exit_its_port_is_nobodys() {
    let guest = guest(|asm| {
        asm.out(layout::DEBUG_EXIT, 3).power_off();
    });
    if let Some(mut vm) = Vm::new("without_debug_exit_its_port_is_nobodys", &guest) {
        vm.args(["--debug-exit=off"]).run().expect(0).silent();
    }
}

#[test]
fn the_first_outcome_counts() {
    let ended = run("the_first_outcome_counts", &[], |asm| {
        asm.out(layout::PVPANIC, 1)
            .out(layout::ACPI_SLEEP_CONTROL, bare::S5)
            .halt();
    });
    if let Some(ended) = ended {
        ended.expect(34);
    }
}

/// What a failed vCPU prints on standard error, once.
const REPORT: [&str; 8] = [
    "vCPU 0 failed: ",
    "  RAX ",
    "  CS ",
    "  TR ",
    "  CR0 ",
    "EFER ",
    "bytes at RIP: ",
    "last exits, newest first:",
];

#[test]
fn triple_fault_is_33_with_a_report() {
    for cpus in ["1", "2"] {
        let ended = run(
            "triple_fault_is_33_with_a_report",
            &["--cpus", cpus],
            |asm| {
                asm.print("up\n").rax(0x1234_5678_9abc_def0).triple_fault();
            },
        );
        let Some(ended) = ended else {
            return;
        };
        ended.expect(33).printed("up\n").says(&REPORT);
        ended.says(&["triple fault", "PioOut port 0x3f8, 1 x 1 bytes"]);
        // kvm-amd has reset the vCPU, and the report says so. On others it shows the vCPU's state.
        if !ended.stderr.contains("these are the registers of a reset") {
            ended.says(&[
                "RAX 123456789abcdef0",
                "  CS   0010",
                "guest-physical 0x10000",
            ]);
        }
        assert_eq!(ended.stderr.matches("failed: ").count(), 1);
    }
}

#[test]
fn code_outside_of_memory_is_33_with_a_report() {
    let ended = run("code_outside_of_memory_is_33_with_a_report", &[], |asm| {
        // jmp to an address without RAM and device
        asm.print("up\n").rax(0xd000_1000).raw(&[0xff, 0xe0]);
    });
    if let Some(ended) = ended {
        ended.expect(33).printed("up\n").says(&REPORT);
        ended.says(&["RIP 00000000d0001000", "0xd0001000 is not RAM"]);
        assert_eq!(ended.stderr.matches("failed: ").count(), 1);
    }
}

#[test]
fn an_instruction_that_the_emulator_lacks_is_33_with_a_report() {
    let test = "an_instruction_that_the_emulator_lacks_is_33_with_a_report";
    // vpxor xmm0, xmm0, [rdi] on a device's memory: KVM must emulate it, but can't.
    let ended = run(test, &[], |asm| {
        asm.rdi(0xd000_1000);
        // CR4.OSXSAVE, XCR0 = x87, SSE, AVX
        asm.raw(&[0x0f, 0x20, 0xe0, 0x0d, 0, 0x06, 0x04, 0, 0x0f, 0x22, 0xe0]);
        asm.raw(&[0x31, 0xc9, 0x31, 0xd2, 0xb8, 7, 0, 0, 0, 0x0f, 0x01, 0xd1]);
        asm.raw(&[0xc5, 0xf9, 0xef, 0x07]).fail(0x55);
    });
    if let Some(ended) = ended {
        // A CPU without AVX faults on it instead; without an IDT that is a triple fault.
        ended.expect(33).says(&REPORT);
    }
}

#[test]
fn timeout_is_36_for_a_guest_that_halts() {
    timeout("timeout_is_36_for_a_guest_that_halts", |asm| {
        asm.halt();
    });
}

#[test]
fn timeout_is_36_for_a_guest_that_spins() {
    timeout("timeout_is_36_for_a_guest_that_spins", |asm| {
        asm.forever(|_| {});
    });
}

#[test]
fn timeout_is_36_for_a_guest_that_exits_all_the_time() {
    timeout("timeout_is_36_for_a_guest_that_exits_all_the_time", |asm| {
        asm.port(0x80).forever(|asm| {
            asm.raw(&[0xec, 0xee]);
        });
    });
}

fn timeout(test: &str, act: impl Fn(&mut Asm)) {
    for seconds in TIMEOUTS {
        let ended = run(test, &["--timeout", &seconds.to_string()], |asm| {
            asm.print("up\n");
            act(asm);
        });
        let Some(ended) = ended else { return };
        ended.expect(36);
        let took = ended.took;
        assert!(took >= Duration::from_secs(seconds), "{took:?}");
        if ended.stdout == b"up\n" {
            return;
        }
        ended.printed("");
    }
    panic!("the guest was never up");
}

/// A guest that prints `up` and then does nothing else.
fn deaf_guest() -> Asm {
    guest(|asm| {
        asm.print("up\n").halt();
    })
}

#[test]
fn second_signal_ends_at_once_with_its_number() {
    let test = "second_signal_ends_at_once_with_its_number";
    // After the grace period, the code would be that of the first signal.
    let pairs = [
        (Signal::TERM, Signal::INT, 130),
        (Signal::INT, Signal::HUP, 129),
        (Signal::HUP, Signal::TERM, 143),
    ];
    for (first, second, code) in pairs {
        let Some(mut vm) = Vm::new(test, &deaf_guest()) else {
            return;
        };
        let mut running = vm.start();
        running.await_output("up\n");
        running.signal(first);
        running.await_stderr("power button");
        assert!(running.is_alive(), "it has time to power off");
        running.signal(second);
        running.end().expect(code).printed("up\n");
    }
}

#[test]
fn guest_that_ignores_a_signal_is_stopped_after_the_grace_period() {
    let test = "guest_that_ignores_a_signal_is_stopped_after_the_grace_period";
    let Some(mut vm) = Vm::new(test, &deaf_guest()) else {
        return;
    };
    let mut running = vm.start();
    running.await_output("up\n");
    running.signal(Signal::TERM);
    let ended = running.end();
    ended.expect(143).says(&["SIGTERM", "it has 10 s"]);
    let took = ended.took;
    assert!(took >= Duration::from_secs(10), "{took:?}");
}

#[test]
fn signal_presses_the_power_button_and_a_guest_that_obeys_is_0() {
    let test = "signal_presses_the_power_button_and_a_guest_that_obeys_is_0";
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let guest = guest(|asm| {
            asm.input(layout::GED_EVENTS).expect_al(0, 1).print("up\n");
            asm.until_equal(|asm| {
                asm.input(layout::GED_EVENTS)
                    .compare_al(layout::GED_POWER_BUTTON);
            });
            // The read has cleared it.
            asm.input(layout::GED_EVENTS).expect_al(0, 2);
            asm.print("bye\n").power_off();
        });
        let Some(mut vm) = Vm::new(test, &guest) else {
            return;
        };
        let mut running = vm.start();
        running.await_output("up\n");
        running.signal(signal);
        running.end().expect(0).printed("up\nbye\n");
    }
}

/// A gzip payload of 512 MiB of zeros, made by repeating one piece. Only its checksum is wrong.
fn slow_payload() -> Vec<u8> {
    let mut packer = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    packer.write_all(&[0; 1 << 20]).unwrap();
    packer.flush().unwrap();
    let mut payload = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    payload.extend(packer.get_ref().repeat(512));
    payload.extend([3, 0, 0, 0, 0, 0]); // the last block, empty, and the checksum
    payload.extend((512u32 << 20).to_le_bytes());
    payload
}

#[test]
fn timeout_ends_a_decompression() {
    let test = "timeout_ends_a_decompression";
    if !has_kvm(test) {
        return;
    }
    let bz = Bz {
        payload: slow_payload(),
        ..Default::default()
    };
    let mut vm = Vm::of_file(&bz.build());
    vm.args(["--memory", "1G", "--timeout", "30ms", "-v"]);
    let ended = vm.run();
    ended.expect(36);
    // Neither the host's result nor the fallback to the guest is logged.
    assert!(
        !ended.stderr.contains("decompressed by"),
        "{}",
        ended.stderr
    );
}
