// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Fields of the API that a guest or a client sees the effect of.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use bare::http::Client;
use bare::virtio::{DISK, by_mmio};
use bare::{Asm, Running, Vm, guest};
use mini_vmm::layout::VIRTIO_MMIO;
use virtio_models::block::{self, BlockSpec, Engine};

/// A waiting process, and a client of it that has described a machine.
fn waiting(test: &str, guest: &Asm) -> Option<(Running, Client)> {
    let mut vm = Vm::waiting(test, guest)?;
    let api = vm.path("api");
    let mut running = vm.start();
    let mut client = Client::connect(&mut running, &api);
    client.describe();
    Some((running, client))
}

/// Says whether CPUID has a bit of leaf 1, ECX.
fn cpuid_guest(bit: u32) -> Asm {
    guest(|asm| {
        asm.rax(1).raw(&[0x0f, 0xa2]); // cpuid
        asm.raw(&[0x89, 0xc8, 0x25])
            .raw(&(1_u32 << bit).to_le_bytes()); // mov eax, ecx; and eax, bit
        asm.compare_eax(0).if_equal(|asm| {
            asm.print("gone").power_off();
        });
        asm.print("there").power_off();
    })
}

#[test]
fn a_template_clears_bits_of_cpuid() {
    const HYPERVISOR: u32 = 31;
    let test = "a_template_clears_bits_of_cpuid";
    let template = |register: &str, bitmap: &str| {
        format!(
            r#"{{"cpuid_modifiers": [{{"leaf": "0x1", "subleaf": "0x0", "flags": 0,
                "modifiers": [{{"register": "{register}", "bitmap": "0b{bitmap}"}}]}}]}}"#
        )
    };
    for (bitmap, seen) in [
        ("1xxxxxxx_xxxxxxxx_xxxxxxxx_xxxxxxxx", "there"),
        ("0xxxxxxx_xxxxxxxx_xxxxxxxx_xxxxxxxx", "gone"),
    ] {
        let Some((running, mut client)) = waiting(test, &cpuid_guest(HYPERVISOR)) else {
            return;
        };
        // What a host can't do is said at the start. No CPU of today has a serial number.
        client.done(
            "PUT",
            "/cpu-config",
            &template("edx", "1xx_xxxxxxxx_xxxxxxxx"),
        );
        let start = r#"{"action_type": "InstanceStart"}"#;
        client.refused(
            "PUT",
            "/actions",
            start,
            "CPU feature \"pn\" can't be added",
        );
        // Another template replaces it.
        client.done("PUT", "/cpu-config", &template("ecx", bitmap));
        client.act("InstanceStart");
        running.end().expect(0).printed(seen);
    }
}

/// Powers off if an MSR has this value. Otherwise it ends by the debug-exit port.
fn msr_guest(index: u32, value: u64) -> Asm {
    guest(|asm| {
        asm.rdmsr(index).expect_eax(value as u32, 1);
        asm.raw(&[0x89, 0xd0]); // mov eax, edx
        asm.expect_eax((value >> 32) as u32, 2).power_off();
    })
}

#[test]
fn a_template_changes_bits_of_msrs() {
    // The last entry of IA32_PAT, of which Linux uses the others.
    const PAT: u32 = 0x277;
    let test = "a_template_changes_bits_of_msrs";
    let template = |addr: u32, bitmap: &str| {
        format!(r#"{{"msr_modifiers": [{{"addr": "{addr:#x}", "bitmap": "{bitmap}"}}]}}"#)
    };
    let last = format!("0b0000010x{}", "x".repeat(56));
    for (bitmap, value) in [
        ("0bx", 0x0007_0406_0007_0406),
        (&*last, 0x0407_0406_0007_0406),
    ] {
        let Some((running, mut client)) = waiting(test, &msr_guest(PAT, value)) else {
            return;
        };
        // MSRs that this KVM has not, or the machine needs, are refused by name.
        client.refused(
            "PUT",
            "/cpu-config",
            &template(0x10, "0b1"),
            "msr_modifiers: MSR 0x10 ",
        );
        client.done("PUT", "/cpu-config", &template(0x1234, "0b1"));
        let start = r#"{"action_type": "InstanceStart"}"#;
        let why = "MSR 0x1234 can't be changed, because this host's KVM does not list it";
        client.refused("PUT", "/actions", start, why);
        client.done("PUT", "/cpu-config", &template(PAT, bitmap));
        client.act("InstanceStart");
        running.end().expect(0);
    }
}

#[test]
fn a_template_wants_capabilities_of_kvm() {
    let test = "a_template_wants_capabilities_of_kvm";
    let ends = guest(|asm| {
        asm.power_off();
    });
    let Some((running, mut client)) = waiting(test, &ends) else {
        return;
    };
    let template = |list: &str| format!(r#"{{"kvm_capabilities": [{list}]}}"#);
    // User memory, and none.
    client.done("PUT", "/cpu-config", &template(r#""3", "100000""#));
    let start = r#"{"action_type": "InstanceStart"}"#;
    client.refused("PUT", "/actions", start, "has no capability 100000");
    client.done("PUT", "/cpu-config", &template(r#""3", "!100000""#));
    client.act("InstanceStart");
    running.end().expect(0);
}

/// Says whether the first device, a disk, offers VIRTIO_BLK_F_FLUSH.
fn flush_guest() -> Asm {
    guest(|asm| {
        asm.store(VIRTIO_MMIO + 0x14, 0).load(VIRTIO_MMIO + 0x10);
        asm.raw(&[0x25]).raw(&(1_u32 << 9).to_le_bytes()); // and eax, bit
        asm.compare_eax(0).if_equal(|asm| {
            asm.print("unsafe").power_off();
        });
        asm.print("flushes").power_off();
    })
}

#[test]
fn a_guest_sees_whether_its_disk_can_be_flushed() {
    let test = "a_guest_sees_whether_its_disk_can_be_flushed";
    for (cache, seen) in [
        ("null", "flushes"),
        (r#""Writeback""#, "flushes"),
        (r#""Unsafe""#, "unsafe"),
    ] {
        let Some(mut vm) = Vm::waiting(test, &flush_guest()) else {
            return;
        };
        fs::write(vm.path("a"), [0; 512]).unwrap();
        let api = vm.path("api");
        let mut running = vm.start();
        let mut client = Client::connect(&mut running, &api);
        client.describe();
        client.done("PATCH", "/options", r#"{"virtio": "mmio"}"#);
        let drive =
            format!(r#"{{"path_on_host": "a", "is_root_device": false, "cache_type": {cache}}}"#);
        client.done("PUT", "/drives/d", &drive);
        client.act("InstanceStart");
        running.end().expect(0).printed(seen);
    }
}

/// A machine whose guest writes to the disk `a` without end, and the directory of its files.
fn writing(test: &str) -> Option<(Running, Client, PathBuf)> {
    writing_with(test, r#"{"path_on_host": "a", "is_root_device": false}"#)
}

/// As [`writing`], with this disk.
fn writing_with(test: &str, drive: &str) -> Option<(Running, Client, PathBuf)> {
    let mut vm = Vm::waiting(test, &by_mmio(&DISK, |_| ()))?;
    let api = vm.path("api");
    for (name, sectors) in [("a", 1024), ("b", 2048)] {
        fs::write(vm.path(name), vec![0; sectors * 512]).unwrap();
    }
    let mut running = vm.start();
    let mut client = Client::connect(&mut running, &api);
    client.describe();
    client.done("PATCH", "/options", r#"{"virtio": "mmio"}"#);
    client.done("PUT", "/drives/d", drive);
    client.act("InstanceStart");
    let dir = api.parent().unwrap().to_owned();
    Some((running, client, dir))
}

/// The number that the guest writes to a disk, one more each time.
fn number(dir: &Path, name: &str) -> u32 {
    let bytes = fs::read(dir.join(name)).unwrap();
    u32::from_le_bytes(bytes[512..516].try_into().unwrap())
}

/// Waits until the guest has written to a disk.
fn await_writes(running: &mut Running, dir: &Path, name: &str) {
    let before = number(dir, name);
    while number(dir, name) == before {
        assert!(running.is_alive(), "{running:?}");
        thread::yield_now();
    }
}

/// Whether a process has an io_uring, and whether it has a thread of a disk.
fn engines(process: u32) -> (bool, bool) {
    let entries = |dir: &str| fs::read_dir(format!("/proc/{process}/{dir}")).unwrap();
    let is_ring = |entry: &fs::DirEntry| {
        fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().contains("io_uring"))
    };
    let is_disk = |entry: &fs::DirEntry| {
        fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.trim() == "disk")
    };
    (
        entries("fd").flatten().any(|entry| is_ring(&entry)),
        entries("task").flatten().any(|entry| is_disk(&entry)),
    )
}

#[test]
fn a_disk_has_the_engine_that_was_asked_for() {
    let test = "a_disk_has_the_engine_that_was_asked_for";
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    fs::write(&image, [0; 512]).unwrap();
    let probe = BlockSpec {
        engine: Engine::Async,
        ..BlockSpec::new(&image)
    };
    let is_refused = block::open(&probe).is_err();
    for (engine, has) in [("Sync", (false, true)), ("Async", (true, false))] {
        if engine == "Async" && is_refused {
            println!("SKIP: {test} with Async: the host refuses io_uring");
            continue;
        }
        let drive =
            format!(r#"{{"path_on_host": "a", "is_root_device": false, "io_engine": "{engine}"}}"#);
        let Some((mut running, mut client, dir)) = writing_with(test, &drive) else {
            return;
        };
        await_writes(&mut running, &dir, "a");
        assert_eq!(engines(running.id()), has, "{engine}");
        client.act("Stop");
        running.end().expect(0);
    }
}

#[test]
fn a_running_guest_gets_another_image() {
    let test = "a_running_guest_gets_another_image";
    let Some((mut running, mut client, dir)) = writing(test) else {
        return;
    };
    await_writes(&mut running, &dir, "a");
    assert_eq!(number(&dir, "b"), 0);
    client.done("PATCH", "/drives/d", r#"{"path_on_host": "b"}"#);
    await_writes(&mut running, &dir, "b");
    // The old one is free, for another machine or for this one.
    let spec = BlockSpec::new(dir.join("a"));
    drop(block::open(&spec).unwrap());
    let last = number(&dir, "a");
    await_writes(&mut running, &dir, "b");
    assert_eq!(number(&dir, "a"), last);
    block::open(&BlockSpec::new(dir.join("b"))).unwrap_err();
    client.set_state("Paused");
    client.done("PATCH", "/drives/d", r#"{"path_on_host": "a"}"#);
    // A snapshot knows the present one, too.
    let create = |memory| format!(r#"{{"snapshot_path": "saved", "mem_file_path": "{memory}"}}"#);
    let why = "is a file of this machine";
    client.refused("PUT", "/snapshot/create", &create("a"), why);
    client.done("PUT", "/snapshot/create", &create("memory"));
    let saved = fs::read(dir.join("saved")).unwrap();
    let saved = String::from_utf8_lossy(&saved);
    assert!(saved.contains(r#""path":"a""#), "{saved}");
    client.set_state("Resumed");
    await_writes(&mut running, &dir, "a");
    client.act("Stop");
    running.end().expect(0);
}

#[test]
fn a_running_guest_gets_other_limits() {
    let test = "a_running_guest_gets_other_limits";
    let Some((mut running, mut client, dir)) = writing(test) else {
        return;
    };
    await_writes(&mut running, &dir, "a");
    let mut limit = |size: u32| {
        let limiter = format!(r#"{{"bandwidth": {{"size": {size}, "refill_time": 1000}}}}"#);
        client.done(
            "PATCH",
            "/drives/d",
            &format!(r#"{{"rate_limiter": {limiter}}}"#),
        );
    };
    // A byte per second: after a request, nothing for minutes.
    limit(1);
    let stands = (0..10_000).any(|_| {
        let before = number(&dir, "a");
        (0..100).all(|_| number(&dir, "a") == before)
    });
    assert!(stands, "the guest writes without a limit");
    limit(0);
    await_writes(&mut running, &dir, "a");
    client.act("Stop");
    running.end().expect(0);
}
