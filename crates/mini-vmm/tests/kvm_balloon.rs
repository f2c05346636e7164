// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest gives a page back again and again, and finds zeros there, on real KVM. So it does in restored machines, whose
//! memory is a mapped file, and after Diffs.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::path::Path;
use std::process::Command;

use bare::counting::{first, restored};
use bare::ctl::{ctl, ctl_fails};
use bare::virtio::{INFLATE, INFLATED, by_mmio, by_pci};
use bare::{Asm, Running, Vm, program};
use mini_vmm::layout::SERIAL;

/// Prints for each inflation whether the page is zero, and writes to it again.
fn guests() -> [(&'static str, Asm); 2] {
    let then = |asm: &mut Asm| {
        asm.load(INFLATED).compare_eax(0);
        asm.if_equal(|asm| {
            asm.out(SERIAL, b'0');
        });
        asm.load(INFLATED).compare_eax(0);
        asm.if_different(|asm| {
            asm.out(SERIAL, b'?');
        });
    };
    [
        ("mmio", by_mmio(&INFLATE, then)),
        ("pci", by_pci(&INFLATE, then)),
    ]
}

/// Ends a process, whose guest has found only zeros.
fn end(running: Running, api: &Path) {
    ctl(api, &["stop"]);
    let ended = running.end();
    ended.expect(0);
    assert!(ended.stdout.iter().all(|byte| *byte == b'0'));
}

fn save(api: &Path, to: &Path) {
    let said = ctl(
        api,
        &["snapshot".as_ref(), to.as_os_str(), "--diff".as_ref()],
    );
    assert_eq!(said, "Paused\n");
}

fn merge(base: &Path, diff: &Path) {
    let mut command = Command::new(program());
    let merged = command
        .args(["snapshot", "merge"])
        .args([base, diff, base])
        .output();
    assert!(merged.unwrap().status.success());
}

/// How many bytes went back.
fn inflated(api: &Path) -> u64 {
    let metrics = ctl(api, &["metrics"]);
    let mut lines = metrics.lines();
    let count = lines.find_map(|line| line.strip_prefix("mini_vmm_balloon_inflated_bytes_total "));
    count.unwrap().parse().unwrap()
}

#[test]
fn pages_that_were_given_back_are_zero_in_every_process() {
    let test = "pages_that_were_given_back_are_zero_in_every_process";
    for (virtio, guest) in guests() {
        let Some(mut vm) = Vm::new(test, &guest) else {
            return;
        };
        let flags = ["--virtio", virtio, "--balloon", "size=1M,stats=1,hinting"];
        let (running, api) = first(&mut vm, &flags);
        assert!(inflated(&api) >= 40 * 4096);
        let whole = vm.path("whole");
        save(&api, &whole);
        end(running, &api);
        for diff in ["first", "second"].map(|name| vm.path(name)) {
            let (running, api) = restored(&vm, &whole, &[]);
            assert!(inflated(&api) >= 40 * 4096);
            save(&api, &diff);
            end(running, &api);
            merge(&whole, &diff);
        }
    }
}

#[test]
fn people_control_it() {
    let test = "people_control_it";
    let [(_, guest), _] = guests();
    let Some(mut vm) = Vm::new(test, &guest) else {
        return;
    };
    let flags = ["--virtio", "mmio", "--balloon", "size=1M,stats=1,hinting"];
    let (running, api) = first(&mut vm, &flags);
    assert_eq!(ctl(&api, &["balloon", "2M"]), "target_mib: 2\n");
    let stats = ctl(&api, &["balloon", "stats"]);
    assert_eq!(
        stats,
        "actual_mib: 0\nactual_pages: 0\ntarget_mib: 2\ntarget_pages: 512\n"
    );
    ctl_fails(&api, &["balloon", "1T"], "more than the machine's memory");
    ctl_fails(&api, &["balloon", "1K"], "whole MiB");
    // This driver has no queue for hints.
    ctl_fails(&api, &["balloon", "hint"], "gives no hints");
    end(running, &api);
}
