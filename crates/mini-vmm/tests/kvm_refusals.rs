// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Impossible machines: exit code 1, one sentence that ends with the next step, and nothing on standard output.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::fs;

use bare::{Ended, Vm, guest, has_kvm};

/// A guest that must not run.
fn vm(test: &str) -> Option<Vm> {
    let guest = guest(|asm| {
        asm.print("running");
        asm.power_off();
    });
    Vm::new(test, &guest)
}

/// Checks that the program refused, with these words in one line.
#[track_caller]
fn refused(ended: &Ended, words: &[&str]) {
    ended.expect(1).printed("").says(words);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    assert!(
        ended.stderr.starts_with("mini-vmm: error: "),
        "{}",
        ended.stderr
    );
}

#[test]
fn kernel_that_is_none_is_refused() {
    if !has_kvm("kernel_that_is_none_is_refused") {
        return;
    }
    let cases: [(&[u8], &str); 3] = [
        (b"", "empty"),
        (b"#!/bin/sh\n", "script"),
        (b"\x7fELF\x02\x01\x01", "ELF"),
    ];
    for (bytes, word) in cases {
        refused(&Vm::of_file(bytes).run(), &["kernel", word]);
    }
}

#[test]
fn kernel_that_is_a_directory_is_refused() {
    if has_kvm("kernel_that_is_a_directory_is_refused") {
        refused(
            &Vm::of_kernel("/proc".as_ref()).run(),
            &["/proc", "directory"],
        );
    }
}

#[test]
fn refused_kernel_leaves_the_serial_file_alone() {
    if !has_kvm("refused_kernel_leaves_the_serial_file_alone") {
        return;
    }
    let mut vm = Vm::of_file(b"no kernel at all");
    let log = vm.path("log");
    fs::write(&log, "what the last run said").unwrap();
    vm.args([format!("--serial=file={}", log.display())]);
    refused(&vm.run(), &["kernel"]);
    assert_eq!(fs::read_to_string(&log).unwrap(), "what the last run said");
}

#[test]
fn initrd_that_does_not_fit_is_refused() {
    let Some(mut vm) = vm("initrd_that_does_not_fit_is_refused") else {
        return;
    };
    let initrd = vm.path("initrd");
    let file = fs::File::create(&initrd).unwrap();
    file.set_len(40 << 20).unwrap();
    vm.args(["--initrd".as_ref(), initrd.as_os_str()]);
    refused(&vm.run(), &["initrd", "--memory"]);
}

#[test]
fn missing_initrd_is_refused() {
    let Some(mut vm) = vm("missing_initrd_is_refused") else {
        return;
    };
    vm.args(["--initrd", "/nonexistent/initrd"]);
    refused(&vm.run(), &["/nonexistent/initrd"]);
}

#[test]
fn memory_that_the_host_does_not_have_is_refused() {
    let Some(mut vm) = vm("memory_that_the_host_does_not_have_is_refused") else {
        return;
    };
    // A limit on address space acts like a host without the memory.
    vm.args(["--memory", "16G"]);
    let mut vm = vm.through("ulimit -v 4000000; exec \"$@\"");
    refused(&vm.run(), &["16 GiB", "ask for less"]);
}

#[test]
fn file_limit_that_is_too_low_is_refused() {
    let test = "file_limit_that_is_too_low_is_refused";
    for limit in 6..30 {
        let Some(mut vm) = vm(test) else {
            return;
        };
        vm.args(["--cpus", "4"]);
        let ended = vm.through(&format!("ulimit -n {limit}; exec \"$@\"")).run();
        // With a higher limit it suffices at some point.
        if ended.stdout == b"running" {
            ended.expect(0);
        } else {
            refused(&ended, &[]);
        }
    }
}

#[test]
fn debug_exit_port_that_is_taken_is_refused() {
    let Some(mut vm) = vm("debug_exit_port_that_is_taken_is_refused") else {
        return;
    };
    vm.args(["--debug-exit=0x505"]);
    refused(&vm.run(), &["0x505", "choose another"]);
}

#[test]
fn serial_file_that_can_not_be_made_is_refused() {
    let Some(mut vm) = vm("serial_file_that_can_not_be_made_is_refused") else {
        return;
    };
    vm.args(["--serial", "file=/nonexistent/log"]);
    refused(&vm.run(), &["/nonexistent/log"]);
}

#[test]
fn command_line_that_is_too_long_is_refused() {
    let Some(mut vm) = vm("command_line_that_is_too_long_is_refused") else {
        return;
    };
    vm.args(["--cmdline".to_owned(), "x".repeat(0x1_0000)]);
    refused(&vm.run(), &["65536 bytes", "shorten it to 65535"]);
}
