// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests go on in other processes, from snapshots on disk.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use bare::counting::{MANY, MARK, count, counting_guest, first, follows, restored, save};
use bare::ctl::{ctl, ctl_fails};
use bare::http::Client;
use bare::lab::{MAGIC, PARA, RBX, STUB, call, registers};
use bare::registration::Registration;
use bare::registration::Verdict::Registered;
use bare::virtio::{BUFFER, COUNT, DISK, ENTROPY, by_mmio, by_pci};
use bare::{Asm, Vm, guest};
use mini_vmm::layout::{self, MIB, PAGE_SIZE, SERIAL};
use para_abi::vmm::{VMM_HC_EXIT, VMM_HC_NOP};

fn number(file: &Path, at: u64) -> u32 {
    let mut bytes = [0; 4];
    let file = fs::File::open(file).unwrap();
    file.read_exact_at(&mut bytes, at).unwrap();
    u32::from_le_bytes(bytes)
}

/// Each process ends before the next begins, and they share one directory.
#[test]
fn a_guest_counts_on_through_a_chain_of_processes() {
    let test = "a_guest_counts_on_through_a_chain_of_processes";
    let Some(mut vm) = Vm::new(test, &counting_guest()) else {
        return;
    };
    let snap = vm.path("snap");
    let (running, api) = first(&mut vm, &[]);
    let mut printed = save(running, &api, &snap);
    let memory = snap.join("memory");
    let length = printed.len() as u32;
    // The signal may have come between the two instructions.
    assert!([length, length + 1].contains(&number(&memory, COUNT)));
    assert_eq!(number(&memory, MARK), 0x1234_5678);
    // Most of the guest's memory was never touched.
    let about = fs::metadata(&memory).unwrap();
    assert!(about.len() >= 32 * MIB && about.blocks() * 512 <= 2 * MIB);
    for name in ["manifest.json", "state.json", "memory"] {
        let mode = fs::metadata(snap.join(name)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let here = vm.path("").to_str().unwrap().to_owned();
    let state = fs::read_to_string(snap.join("state.json")).unwrap();
    assert!(!state.contains(&here), "{here}");
    for _ in 0..5 {
        let (running, api) = restored(&vm, &snap, &[]);
        printed.extend(save(running, &api, &snap));
    }
    follows(&printed);
}

#[test]
fn a_machine_that_is_kept_running_and_its_copies_all_go_on() {
    let test = "a_machine_that_is_kept_running_and_its_copies_all_go_on";
    let Some(mut vm) = Vm::new(test, &counting_guest()) else {
        return;
    };
    let snap = vm.path("snap");
    let (running, api) = first(&mut vm, &[]);
    let order = [
        "snapshot".as_ref(),
        snap.as_os_str(),
        "--keep-running".as_ref(),
    ];
    assert_eq!(ctl(&api, &order), "Running\n");
    let saved = number(&snap.join("memory"), COUNT) as usize;
    // The original is not held up.
    let mut running = running;
    running.await_many(saved + MANY);
    ctl(&api, &["stop"]);
    let original = running.end();
    follows(&original.expect(0).stdout);
    for _ in 0..2 {
        let (copy, api) = restored(&vm, &snap, &[]);
        ctl(&api, &["stop"]);
        let copy = copy.end();
        // It begins with the next number, or with one that was counted but not printed yet.
        let start = saved - usize::from(copy.stdout[0] == saved as u8);
        let all = [&original.stdout[..start], &copy.stdout[..]].concat();
        follows(&all);
    }
    assert_eq!(number(&snap.join("memory"), COUNT) as usize, saved);
}

#[test]
fn what_can_not_be_written_leaves_the_machine_running() {
    let test = "what_can_not_be_written_leaves_the_machine_running";
    let Some(mut vm) = Vm::new(test, &counting_guest()) else {
        return;
    };
    let (mut running, api) = first(&mut vm, &[]);
    let bad = vm.path("no/such/snap");
    ctl_fails(
        &api,
        &["snapshot".as_ref(), bad.as_os_str()],
        "create its directory first",
    );
    ctl_fails(
        &api,
        &["snapshot".as_ref(), vm.path("").as_os_str()],
        "is no snapshot",
    );
    assert!(ctl(&api, &["info"]).contains("state: Running\n"));
    let before = running.output().len();
    running.await_many(before + MANY);
    ctl(&api, &["stop"]);
    follows(&running.end().expect(0).stdout);
}

#[test]
fn a_restored_machine_waits_unless_it_is_told() {
    let test = "a_restored_machine_waits_unless_it_is_told";
    let Some(mut vm) = Vm::new(test, &counting_guest()) else {
        return;
    };
    let snap = vm.path("snap");
    let (running, api) = first(&mut vm, &[]);
    let mut printed = save(running, &api, &snap);
    let mut waiting = vm.restoring(&snap);
    waiting.args(["--api-sock".as_ref(), api.as_os_str()]);
    let mut running = waiting.start();
    Client::connect(&mut running, &api);
    // It is loaded first.
    while !ctl(&api, &["info"]).contains("state: Paused\n") {}
    assert_eq!(running.output(), b"");
    assert_eq!(ctl(&api, &["resume"]), "Running\n");
    running.await_many(MANY);
    printed.extend(save(running, &api, &snap));
    follows(&printed);
}

/// Registers, then calls before each number. A wrong answer ends the run with status 1.
fn calling_guest() -> Asm {
    guest(|asm| {
        Registration::new("a registration", Registered).prepare(asm);
        asm.wrmsr(MAGIC, PARA);
        asm.forever(|asm| {
            call(asm, STUB, &registers(VMM_HC_NOP));
            // test rax, rax
            asm.raw(&[0x48, 0x85, 0xc0]).if_different(|asm| {
                let mut registers = registers(VMM_HC_EXIT);
                registers[RBX] = 1;
                call(asm, STUB, &registers);
            });
            count(asm);
        });
    })
}

#[test]
fn a_guest_that_registered_goes_on_calling() {
    let test = "a_guest_that_registered_goes_on_calling";
    let Some(mut vm) = Vm::new(test, &calling_guest()) else {
        return;
    };
    let snap = vm.path("snap");
    let (running, api) = first(&mut vm, &["--hypercall", "pio=0x10"]);
    let mut printed = save(running, &api, &snap);
    for _ in 0..2 {
        let (running, api) = restored(&vm, &snap, &[]);
        printed.extend(save(running, &api, &snap));
    }
    follows(&printed);
}

/// Prints the number of requests that were answered, with EAX as it is then.
fn print_count(asm: &mut Asm) {
    asm.load(COUNT).port(SERIAL).raw(&[0xee]);
}

#[test]
fn devices_go_on_where_they_were() {
    let test = "devices_go_on_where_they_were";
    for (virtio, disk) in [
        ("pci", true),
        ("mmio", true),
        ("pci", false),
        ("mmio", false),
    ] {
        let requests = if disk { DISK } else { ENTROPY };
        let guest = match virtio {
            "pci" => by_pci(&requests, print_count),
            _ => by_mmio(&requests, print_count),
        };
        let Some(mut vm) = Vm::new(test, &guest) else {
            return;
        };
        let (snap, image) = (vm.path("snap"), vm.path("disk.img"));
        fs::write(&image, vec![0; MIB as usize]).unwrap();
        let path = format!("path={}", image.display());
        let host = if disk {
            vec!["--disk", &path]
        } else {
            Vec::new()
        };
        let rng = if disk { "off" } else { "on" };
        let machine = [&host[..], &["--virtio", virtio, "--rng", rng]].concat();
        let (running, api) = first(&mut vm, &machine);
        let mut printed = save(running, &api, &snap);
        if disk {
            let mut vm = vm.restoring(&snap);
            vm.args(["--resume"]);
            vm.run()
                .expect(1)
                .says(&["--disk", "none is given", "\"disk.img\""]);
        }
        for _ in 0..3 {
            let (running, api) = restored(&vm, &snap, &host);
            printed.extend(save(running, &api, &snap));
        }
        follows(&printed);
        if disk {
            // Reads and writes take turns, and each write is of one more.
            let (written, counted) = (number(&image, 512), number(&snap.join("memory"), COUNT));
            let in_memory = number(&snap.join("memory"), BUFFER);
            assert!(written.abs_diff(counted / 2) <= 1, "{written} {counted}");
            assert!(written.abs_diff(in_memory) <= 1, "{written} {in_memory}");
        }
    }
}

/// Machines that share an image go on from one snapshot, each with what it wrote itself.
#[test]
fn an_overlay_goes_on_in_each_copy() {
    let test = "an_overlay_goes_on_in_each_copy";
    let Some(mut vm) = Vm::new(test, &by_pci(&DISK, print_count)) else {
        return;
    };
    let (snap, image) = (vm.path("snap"), vm.path("disk.img"));
    fs::write(&image, vec![0; MIB as usize]).unwrap();
    let path = format!("path={},overlay=tmp", image.display());
    let (running, api) = first(&mut vm, &["--disk", &path]);
    let before = save(running, &api, &snap);
    let mode = fs::metadata(snap.join("overlay0")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
    for copy in ["a", "b"] {
        let (mut printed, mut from) = (before.clone(), snap.clone());
        for _ in 0..2 {
            let (running, api) = restored(&vm, &from, &["--disk", &path]);
            from = vm.path(copy);
            printed.extend(save(running, &api, &from));
        }
        follows(&printed);
        // Each number was read from the disk, and is one more than the one before.
        let counted = number(&from.join("memory"), COUNT);
        let in_memory = number(&from.join("memory"), BUFFER);
        assert!(
            in_memory.abs_diff(counted / 2) <= 1,
            "{in_memory} {counted}"
        );
    }
    assert!(fs::read(&image).unwrap().iter().all(|byte| *byte == 0));
    // Damage is noticed before the guest runs.
    let overlay = fs::File::options().write(true).open(snap.join("overlay0"));
    overlay.unwrap().write_all_at(b"x", 70_000).unwrap();
    let mut vm = vm.restoring(&snap);
    vm.args(["--resume", "--disk", &path]);
    vm.run().expect(1).says(&["overlay", "checksum"]);
}

/// In Firecracker's words: two files, a new process, and a client that loads them.
#[test]
fn clients_save_and_load_two_files() {
    let test = "clients_save_and_load_two_files";
    let Some(mut vm) = Vm::new(test, &by_mmio(&DISK, print_count)) else {
        return;
    };
    let image = vm.path("disk.img");
    fs::write(&image, vec![0; MIB as usize]).unwrap();
    let path = format!("path={}", image.display());
    let (mut running, api) = first(&mut vm, &["--disk", &path, "--virtio", "mmio"]);
    let mut client = Client::connect(&mut running, &api);
    let mut printed = Vec::new();
    let body = r#"{"snapshot_path": "vm.state", "mem_file_path": "vm.memory"}"#;
    client.refused("PUT", "/snapshot/create", body, "pause it first");
    for round in 0..3 {
        client.done("PATCH", "/vm", r#"{"state": "Paused"}"#);
        client.done("PUT", "/snapshot/create", body);
        client.act("Stop");
        let ended = running.end();
        printed.extend(ended.expect(0).stdout.clone());
        running = vm.loading(&api).start();
        client = Client::connect(&mut running, &api);
        let load = |memory: &str, more: &str| {
            format!(
                r#"{{"snapshot_path": "vm.state", "mem_backend": {{"backend_type": "File", "backend_path": "{memory}"}}{more}}}"#
            )
        };
        client.refused(
            "PUT",
            "/snapshot/load",
            &load("disk.img", ""),
            "memory file is not complete",
        );
        let nets = r#", "network_overrides": [{"iface_id": "eth0", "host_dev_name": "tap0"}]"#;
        client.refused(
            "PUT",
            "/snapshot/load",
            &load("vm.memory", nets),
            "network_overrides: ",
        );
        let realtime = r#", "clock_realtime": true"#;
        let (resume, runs) = match round {
            0 => (r#", "resume_vm": true"#, "Running"),
            _ => ("", "Paused"),
        };
        client.done("PUT", "/snapshot/load", &load("vm.memory", resume));
        assert_eq!(client.state(), runs);
        client.refused(
            "PUT",
            "/snapshot/load",
            &load("vm.memory", realtime),
            "after starting",
        );
        assert_eq!(client.get("/vm/config")["drives"][0]["drive_id"], "disk0");
        client.done("PATCH", "/vm", r#"{"state": "Resumed"}"#);
        running.await_many(MANY);
    }
    client.act("Stop");
    printed.extend(running.end().expect(0).stdout.clone());
    follows(&printed);
}

/// The vector of the event device's interrupt.
const EVENT: u8 = 0x41;

/// Prints its generation ID. After each interrupt of the event device, it prints the events and the ID.
fn generation_guest() -> Asm {
    let id = |asm: &mut Asm| {
        asm.show(
            layout::VM_GENERATION_ID,
            layout::VM_GENERATION_ID_SIZE as u32,
        );
    };
    guest(|asm| {
        let on_event = guest(|asm| {
            asm.input(layout::GED_EVENTS).port(SERIAL).raw(&[0xee]);
            id(asm);
            asm.wait_for_interrupts();
        });
        asm.idt(&[(EVENT, on_event)]);
        // Mask the PICs, which get the edge as well.
        asm.out(0x21, 0xff).out(0xa1, 0xff);
        asm.route(layout::GED_GSI, EVENT);
        id(asm);
        asm.wait_for_interrupts();
    })
}

/// Copies, and copies of copies.
#[test]
fn each_restore_is_a_new_generation_and_an_interrupt() {
    let test = "each_restore_is_a_new_generation_and_an_interrupt";
    let Some(mut vm) = Vm::new(test, &generation_guest()) else {
        return;
    };
    let snap = vm.path("snap");
    let api = vm.path("api");
    vm.args(["--api-sock".as_ref(), api.as_os_str()]);
    let size = layout::VM_GENERATION_ID_SIZE as usize;
    let mut running = vm.start();
    Client::connect(&mut running, &api);
    running.await_many(size);
    let mut ids = vec![save(running, &api, &snap)];
    for round in 0..4 {
        let mut copy = vm.restoring(&snap);
        copy.args(["--resume".as_ref(), "--api-sock".as_ref(), api.as_os_str()]);
        let mut running = copy.start();
        Client::connect(&mut running, &api);
        running.await_many(1 + size);
        let next = vm.path(&format!("snap-{round}"));
        let printed = save(running, &api, if round == 1 { &snap } else { &next });
        assert_eq!(printed[0], layout::GED_GENERATION);
        ids.push(printed[1..].to_vec());
    }
    assert!(ids.iter().all(|id| id.len() == size), "{ids:x?}");
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 5, "{ids:x?}");
}

#[test]
fn damaged_snapshots_are_refused_before_the_guest_runs() {
    let test = "damaged_snapshots_are_refused_before_the_guest_runs";
    let Some(mut vm) = Vm::new(test, &counting_guest()) else {
        return;
    };
    let snap = vm.path("snap");
    let (running, api) = first(&mut vm, &[]);
    save(running, &api, &snap);
    let refuse = |why: &str| {
        let mut vm = vm.restoring(&snap);
        vm.args(["--resume"]);
        vm.run().expect(1).printed("").says(&[why]);
    };
    let with = |name: &str, change: &dyn Fn(&Path), why: &str| {
        let path = snap.join(name);
        let before = vm.path("before");
        fs::rename(&path, &before).unwrap();
        change(&path);
        refuse(why);
        let _ = fs::remove_file(&path);
        fs::rename(&before, &path).unwrap();
    };
    let before = vm.path("before");
    let cut = |path: &Path, by: u64| {
        fs::copy(&before, path).unwrap();
        let file = fs::File::options().write(true).open(path).unwrap();
        let size = file.metadata().unwrap().len();
        file.set_len(size - by).unwrap();
    };
    with(
        "memory",
        &|path| cut(path, PAGE_SIZE),
        "memory file is not complete",
    );
    with(
        "memory",
        &|path| cut(path, 1),
        "memory file is not complete",
    );
    with("memory", &|_| (), "can't read");
    with(
        "state.json",
        &|path| cut(path, 1),
        "its size is not the manifest's",
    );
    with(
        "manifest.json",
        &|path| cut(path, 1),
        "manifest can't be read",
    );
    with(
        "state.json",
        &|path| {
            let text = fs::read_to_string(&before).unwrap();
            fs::write(path, text.replacen('1', "2", 1)).unwrap();
        },
        "its checksum is not the manifest's",
    );
    // Of another snapshot.
    let (running, api) = restored(&vm, &snap, &[]);
    let other = vm.path("other");
    save(running, &api, &other);
    with(
        "memory",
        &|path| {
            fs::copy(other.join("memory"), path).unwrap();
        },
        "two files of one snapshot",
    );
    let (running, api) = restored(&vm, &snap, &[]);
    ctl(&api, &["stop"]);
    running.end().expect(0);
}
