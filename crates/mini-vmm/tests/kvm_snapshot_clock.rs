// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A saved guest's TSC goes on as its clock does: from where it stood, or with the time that has passed.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bare::ctl::ctl;
use bare::http::Client;
use bare::{Asm, Vm, guest};
use mini_vmm::layout::{MIB, SERIAL};
use serde_json::{Value, json};

/// Where the guest keeps its last TSC.
const LAST: u64 = 4 * MIB;
/// How many TSCs it reads in a process before it is saved.
const MANY: usize = 20;
const HOUR_NS: u64 = 3_600_000_000_000;

/// Reads the TSC for ever, and says so.
fn reading_guest() -> Asm {
    guest(|asm| {
        asm.forever(|asm| {
            asm.ecx(2000).raw(&[0xe2, 0xfe]); // loop
            // rdtsc; mov [rdi], eax; mov [rdi + 4], edx
            asm.rdi(LAST)
                .raw(&[0x0f, 0x31, 0x89, 0x07, 0x89, 0x57, 0x04]);
            asm.port(SERIAL).raw(&[0xee]);
        });
    })
}

/// Runs the machine until it has read enough, and saves it. Returns the last TSC.
fn run_and_save(vm: &mut Vm, snap: &Path) -> u64 {
    let api = vm.path("api");
    vm.args(["--api-sock".as_ref(), api.as_os_str()]);
    let mut running = vm.start();
    Client::connect(&mut running, &api);
    running.await_many(MANY);
    ctl(&api, &["snapshot".as_ref(), snap.as_os_str()]);
    ctl(&api, &["stop"]);
    running.end().expect(0);
    let mut bytes = [0; 8];
    let memory = fs::File::open(snap.join("memory")).unwrap();
    memory.read_exact_at(&mut bytes, LAST).unwrap();
    u64::from_le_bytes(bytes)
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// How many nanoseconds the first vCPU's TSC is ahead of kvmclock; `None` if guests have the host's TSC, or if this KVM
/// doesn't say when it read kvmclock.
fn ahead(snap: &Path) -> Option<i128> {
    let state = &read(&snap.join("state.json"))["state"];
    let vcpu = &state["vcpus"][0]["vcpu"];
    let number = |value: &Value| value.as_u64().map(i128::from);
    let moment = &vcpu["tsc"]["read_at"];
    let khz = number(&vcpu["tsc_khz"])?;
    // kvmclock was read after the TSC.
    let later = number(&state["vm"]["realtime_ns"])? - number(&moment["realtime_ns"])?;
    // The TSC of a new machine is 0, so without an offset it would not be its own.
    let offset = vcpu["tsc"]["offset"]
        .as_u64()
        .filter(|offset| *offset != 0)?;
    let tsc = moment["tsc"].as_u64()?.wrapping_add(offset);
    Some(i128::from(tsc) * 1_000_000 / khz + later - number(&state["vm"]["clock_ns"])?)
}

/// Linux' watchdog of clocks compares the two, and gives the TSC up if one has gone ahead by this much.
const SKEW_NS: i128 = 250_000;

#[test]
fn the_tsc_and_kvmclock_go_on_together() {
    let test = "the_tsc_and_kvmclock_go_on_together";
    let Some(mut vm) = Vm::new(test, &reading_guest()) else {
        return;
    };
    let snap = vm.path("snap");
    // The more vCPUs, the longer a restore.
    vm.args(["--cpus", "8"]);
    run_and_save(&mut vm, &snap);
    let Some(mut before) = ahead(&snap) else {
        eprintln!(
            "SKIP {test}: this KVM gives guests the host's TSC, or doesn't say when it read kvmclock"
        );
        return;
    };
    let mut skews = Vec::new();
    for _ in 0..5 {
        let mut copy = vm.restoring(&snap);
        copy.args(["--resume"]);
        run_and_save(&mut copy, &snap);
        let now = ahead(&snap).unwrap();
        skews.push((now - before).abs());
        before = now;
    }
    // A busy host may keep the two readings of one step apart, but not of all.
    assert!(skews.iter().any(|skew| *skew < SKEW_NS), "{skews:?}");
}

/// Makes the snapshot one that was taken an hour earlier. Returns an hour in ticks; `None` if guests have the host's TSC.
fn age(snap: &Path) -> Option<u64> {
    let [state, manifest] = ["state.json", "manifest.json"].map(|name| snap.join(name));
    let mut value = read(&state);
    let vcpu = &mut value["state"]["vcpus"][0]["vcpu"];
    let hour = vcpu["tsc_khz"].as_u64()? * (HOUR_NS / 1_000_000);
    let less = |value: &mut Value, by: u64| {
        *value = json!(value.as_u64().unwrap().wrapping_sub(by));
    };
    // The TSC of a new machine is 0, so without an offset it would not be its own.
    let tsc = vcpu
        .get_mut("tsc")
        .filter(|tsc| tsc["offset"].as_u64().is_some_and(|offset| offset != 0))?;
    less(&mut tsc["read_at"]["tsc"], hour);
    less(&mut tsc["read_at"]["realtime_ns"], HOUR_NS);
    less(&mut tsc["offset"], hour.wrapping_neg());
    let realtime = &mut value["state"]["vm"]["realtime_ns"];
    if !realtime.is_null() {
        less(realtime, HOUR_NS);
    }
    let bytes = serde_json::to_vec(&value).unwrap();
    fs::write(&state, &bytes).unwrap();
    let mut value = read(&manifest);
    value["parts"]["state"]["size"] = json!(bytes.len());
    value["parts"]["state"]["crc32"] = json!(crc32fast::hash(&bytes));
    fs::write(&manifest, serde_json::to_vec(&value).unwrap()).unwrap();
    Some(hour)
}

#[test]
fn the_tsc_of_a_saved_guest_stands_or_goes_on_as_its_clock_does() {
    let test = "the_tsc_of_a_saved_guest_stands_or_goes_on_as_its_clock_does";
    let Some(mut vm) = Vm::new(test, &reading_guest()) else {
        return;
    };
    let snap = vm.path("snap");
    let before = run_and_save(&mut vm, &snap);
    let Some(hour) = age(&snap) else {
        eprintln!("SKIP {test}: this KVM gives guests the host's TSC");
        return;
    };
    for (clock, passed) in [("stands", 0), ("goes-on", hour)] {
        let mut copy = vm.restoring(&snap);
        copy.args(["--resume", "--clock", clock]);
        let after = run_and_save(&mut copy, &vm.path(clock));
        // No test runs for half an hour.
        let gone = after.checked_sub(before).expect("a TSC that goes on");
        let range = passed..passed + hour / 2;
        assert!(range.contains(&gone), "{clock}: {gone}, not in {range:?}");
    }
}
