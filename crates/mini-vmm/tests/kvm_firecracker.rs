// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What clients of Firecracker expect of its process: its console, its end, and where its devices are.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::fs;
use std::process::Stdio;

use bare::{Asm, Vm, guest};
use mini_vmm::layout;

/// What a client leaves in a file for `--config-file`.
const CONFIG: &str = r#"{
    "boot-source": {"kernel_image_path": "kernel", "boot_args": "quiet"},
    "drives": [{"drive_id": "r", "path_on_host": "disk", "is_root_device": true, "is_read_only": true}],
    "machine-config": {"vcpu_count": 1, "mem_size_mib": 32}
}"#;

/// A process under Firecracker's name, whose file has the machine of [`CONFIG`]. `None`, with a note, if no guest can run.
fn firecracker(test: &str, guest: &Asm, args: &[&str]) -> Option<Vm> {
    let mut vm = Vm::waiting(test, guest)?;
    fs::write(vm.path("disk"), [0; 512]).unwrap();
    fs::write(vm.path("config"), CONFIG).unwrap();
    let mut command = std::process::Command::new(bare::program());
    command.args(["firecracker", "--config-file", "config"]);
    command.args(args).current_dir(vm.path(""));
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    vm.command = command;
    Some(vm)
}

/// Firecracker itself would hang.
#[test]
fn a_power_off_ends_the_process_and_leaves_nothing() {
    let guest = guest(|asm| {
        asm.print("up").power_off();
    });
    let test = "a_power_off_ends_the_process_and_leaves_nothing";
    let Some(mut vm) = firecracker(test, &guest, &["--api-sock", "api"]) else {
        return;
    };
    vm.run().expect(0).printed("up");
    assert!(!vm.path("api").exists());
}

#[test]
fn the_console_is_standard_input_and_output() {
    // Sends back what it gets, up to the end of a line.
    let guest = guest(|asm| {
        asm.until_equal(|asm| {
            asm.until_equal(|asm| {
                // in al, dx; and al, 1; cmp al, 1
                asm.input(layout::SERIAL + 5).raw(&[0x24, 1]).compare_al(1);
            });
            // in al, dx; out dx, al
            asm.input(layout::SERIAL).raw(&[0xee]).compare_al(b'\n');
        });
        asm.power_off();
    });
    let test = "the_console_is_standard_input_and_output";
    let Some(mut vm) = firecracker(test, &guest, &["--no-api"]) else {
        return;
    };
    vm.command.stdin(Stdio::piped());
    let mut running = vm.start();
    running.type_in(b"a line\n");
    running.end().expect(0).printed("a line\n");
}

#[test]
fn with_enable_pci_devices_are_functions_and_the_line_is_left_alone() {
    let line = "quiet root=/dev/vda ro";
    let guest = guest(|asm| {
        asm.load(layout::VIRTIO_MMIO).compare_eax(0x7472_6976);
        asm.if_equal(|asm| asm.fail(1));
        // A disk of virtio 1.
        asm.load(layout::PCI_ECAM + (1 << 15))
            .expect_eax(0x1042_1af4, 2);
        asm.show(layout::CMDLINE, line.len() as u32 + 1);
        asm.power_off();
    });
    let test = "with_enable_pci_devices_are_functions_and_the_line_is_left_alone";
    let Some(mut vm) = firecracker(test, &guest, &["--no-api", "--enable-pci"]) else {
        return;
    };
    // With the zero at its end.
    vm.run().expect(0).printed(&format!("{line}\0"));
}

/// Says that it has booted, and not, by other bytes and elsewhere.
fn booted_guest() -> Asm {
    guest(|asm| {
        for (at, byte) in [(1, 123), (0, 122), (0, 123)] {
            // mov byte [rdi], byte
            asm.rdi(layout::BOOT_TIMER + at).raw(&[0xc6, 0x07, byte]);
        }
        asm.power_off();
    })
}

#[test]
fn the_boot_timer_is_in_the_log_as_far_as_the_log_has_it() {
    let test = "the_boot_timer_is_in_the_log_as_far_as_the_log_has_it";
    for (args, lines) in [
        (&["--boot-timer"][..], 1),
        (
            &[
                "--boot-timer",
                "--module",
                "mini_vmm::devices",
                "--show-level",
            ],
            1,
        ),
        (&["--boot-timer", "--module", "mini_vmm::api"], 0),
        (&["--boot-timer", "--level", "Error"], 0),
        (&[], 0),
    ] {
        let args = [&["--no-api"], args].concat();
        let Some(mut vm) = firecracker(test, &booted_guest(), &args) else {
            return;
        };
        let ended = vm.run();
        ended.expect(0);
        let said = &ended.stderr;
        let line = "mini-vmm: info: Guest-boot-time = ";
        assert_eq!(said.matches(line).count(), lines, "{args:?}: {said}");
    }
    let args = ["--no-api", "--boot-timer", "--show-log-origin"];
    if let Some(mut vm) = firecracker(test, &booted_guest(), &args) {
        vm.run()
            .expect(0)
            .says(&["boot_timer.rs:", ": Guest-boot-time = "]);
    }
}

#[test]
fn metrics_have_the_time_since_the_parents_start() {
    let test = "metrics_have_the_time_since_the_parents_start";
    let guest = guest(|asm| {
        asm.power_off();
    });
    let args = [
        "--no-api",
        "--metrics-path=metrics",
        "--start-time-us=1",
        "--start-time-cpu-us=0",
        "--parent-cpu-time-us=5000000",
    ];
    let Some(mut vm) = firecracker(test, &guest, &args) else {
        return;
    };
    vm.run().expect(0);
    let metrics = fs::read_to_string(vm.path("metrics")).unwrap();
    let last = metrics.lines().last().unwrap();
    let line: serde_json::Value = serde_json::from_str(last).unwrap();
    let time = |key: &str| line["api_server"][key].as_u64().unwrap();
    // The clock began when the host did.
    assert!(time("process_startup_time_us") > 1_000_000, "{line}");
    assert!(time("process_startup_time_cpu_us") >= 5_000_000, "{line}");
}
