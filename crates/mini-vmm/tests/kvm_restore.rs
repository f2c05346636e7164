// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a restored machine's memory comes from.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use bare::ctl::ctl;
use bare::http::Client;
use bare::virtio::COUNT;
use bare::{Asm, Running, Vm, guest};
use mini_vmm::layout::{MIB, PAGE_SIZE, SERIAL};
use mini_vmm::memory::handler;

/// Where a guest has data that it only reads, and how many pages of it.
const DATA: u64 = 8 * MIB;
const PAGES: u64 = 64;

/// Writes a word to each page of its data. Then counts for ever in memory, prints the lowest byte of each number, and
/// reads the data.
fn reading_guest() -> Asm {
    guest(|asm| {
        for page in 0..PAGES {
            asm.store(DATA + page * PAGE_SIZE, 0x1234_5678);
        }
        asm.forever(|asm| {
            // Slower than whoever reads it: `mov ecx, n; loop`
            asm.ecx(2000).raw(&[0xe2, 0xfe]);
            // `inc dword [COUNT]; mov al, [COUNT]; out`
            asm.rdi(COUNT).raw(&[0xff, 0x07]).load(COUNT);
            asm.port(SERIAL).raw(&[0xee]);
            for page in 0..PAGES {
                asm.load(DATA + page * PAGE_SIZE);
            }
        });
    })
}

/// A machine that has printed this much, saved in a directory, and what it printed.
fn saved(vm: &mut Vm, snap: &Path) -> Vec<u8> {
    let api = vm.path("api");
    vm.args(["--api-sock".as_ref(), api.as_os_str()]);
    let mut running = vm.start();
    Client::connect(&mut running, &api);
    running.await_many(3);
    save(running, &api, snap)
}

/// Saves a machine and ends it. Returns all that it printed.
fn save(running: Running, api: &Path, snap: &Path) -> Vec<u8> {
    ctl(api, &["snapshot".as_ref(), snap.as_os_str()]);
    ctl(api, &["stop"]);
    let ended = running.end();
    ended.expect(0);
    ended.stdout
}

/// Checks that all numbers are there, once and in order.
#[track_caller]
fn follows(printed: &[u8]) {
    for (byte, number) in printed.iter().zip(1u64..) {
        assert_eq!(u64::from(*byte), number % 256, "number {number}");
    }
}

/// A process that brings the pages of `memory`; returns those that were asked for.
fn bring(socket: &Path, memory: PathBuf) -> JoinHandle<Vec<u64>> {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        let memory = File::open(memory).unwrap();
        let page = |offset| {
            let mut page = [0; 4096];
            memory.read_exact_at(&mut page, offset).unwrap();
            page
        };
        handler::serve(&listener, |_| (), page).unwrap()
    })
}

/// Whether this host gives us a userfaultfd. Says so if not.
fn has_userfaultfd(test: &str) -> bool {
    let memory = mini_vmm::memory::allocate(32 * MIB).unwrap();
    match mini_vmm::memory::Served::new(&memory, Path::new("/none")) {
        Err(error @ mini_vmm::memory::ServedError::Create(_)) => {
            eprintln!("skipping {test}: {error}");
            false
        }
        _ => true,
    }
}

#[test]
fn another_process_brings_the_memory() {
    let test = "another_process_brings_the_memory";
    let Some(mut vm) = Vm::new(test, &reading_guest()) else {
        return;
    };
    if !has_userfaultfd(test) {
        return;
    }
    let (snap, socket, api) = (vm.path("snap"), vm.path("handler"), vm.path("api"));
    let mut printed = saved(&mut vm, &snap);
    // Only the handler has the file now.
    let memory = vm.path("elsewhere");
    std::fs::rename(snap.join("memory"), &memory).unwrap();
    let handler = bring(&socket, memory);
    let mut restored = vm.restoring(&snap);
    let from = format!("uffd={}", socket.display());
    restored.args(["--restore-memory", &from, "--resume", "--api-sock"]);
    restored.args([&api]);
    let mut running = restored.start();
    Client::connect(&mut running, &api);
    running.await_many(3);
    // A snapshot of it has all of its memory, also what was never asked for.
    let second = vm.path("second");
    printed.extend(save(running, &api, &second));
    let asked = handler.join().unwrap();
    assert!(asked.contains(&COUNT) && asked.contains(&(DATA + 5 * PAGE_SIZE)));
    let mut word = [0; 4];
    let file = File::open(second.join("memory")).unwrap();
    file.read_exact_at(&mut word, DATA + 7 * PAGE_SIZE).unwrap();
    assert_eq!(u32::from_le_bytes(word), 0x1234_5678);
    let mut third = vm.restoring(&second);
    third.args(["--resume", "--api-sock"]);
    third.args([&api]);
    let mut running = third.start();
    Client::connect(&mut running, &api);
    running.await_many(3);
    ctl(&api, &["stop"]);
    printed.extend(running.end().expect(0).stdout.clone());
    follows(&printed);
}

/// Whoever is restored next has it in the host's cache before the guest asks.
#[test]
fn what_a_guest_touches_is_recorded_for_the_next_one() {
    let test = "what_a_guest_touches_is_recorded_for_the_next_one";
    let Some(mut vm) = Vm::new(test, &reading_guest()) else {
        return;
    };
    let (snap, api, set) = (vm.path("snap"), vm.path("api"), vm.path("snap/working-set"));
    saved(&mut vm, &snap);
    let goes_on = |flags: &[&str]| {
        let mut restored = vm.restoring(&snap);
        restored.args(["--resume", "--api-sock"]).args([&api]);
        restored.args(flags);
        let mut running = restored.start();
        Client::connect(&mut running, &api);
        running.await_many(3);
        ctl(&api, &["stop"]);
        running.end().expect(0).stderr.clone()
    };
    goes_on(&["--record-working-set"]);
    let recorded: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&set).unwrap()).unwrap();
    let has = |address: u64| {
        let ranges = recorded["ranges"].as_array().unwrap().iter();
        let ranges = ranges.map(|range| range[0].as_u64().unwrap()..range[1].as_u64().unwrap());
        ranges.into_iter().any(|range| range.contains(&address))
    };
    assert!(has(COUNT) && has(DATA) && has(DATA + (PAGES - 1) * PAGE_SIZE));
    assert!(!has(30 * MIB), "{recorded}");
    // The next one uses it, and says nothing.
    assert_eq!(goes_on(&[]), "");
    for damaged in [
        "",
        "{}",
        r#"{"id": "00000000000000000000000000000000", "ranges": []}"#,
    ] {
        std::fs::write(&set, damaged).unwrap();
        let said = goes_on(&[]);
        assert!(
            said.contains("working-set") && said.contains("is not used"),
            "{said}"
        );
    }
    // It belongs to the snapshot that is replaced.
    let mut restored = vm.restoring(&snap);
    restored.args(["--resume", "--api-sock"]).args([&api]);
    let mut running = restored.start();
    Client::connect(&mut running, &api);
    running.await_many(3);
    save(running, &api, &snap);
    assert!(!set.exists());
}

/// In Firecracker's words.
#[test]
fn clients_name_a_page_fault_handler() {
    let test = "clients_name_a_page_fault_handler";
    let Some(mut vm) = Vm::new(test, &reading_guest()) else {
        return;
    };
    if !has_userfaultfd(test) {
        return;
    }
    let (socket, api) = (vm.path("handler"), vm.path("api"));
    vm.args(["--api-sock".as_ref(), api.as_os_str()]);
    let mut running = vm.start();
    let mut client = Client::connect(&mut running, &api);
    running.await_many(3);
    client.done("PATCH", "/vm", r#"{"state": "Paused"}"#);
    let body = r#"{"snapshot_path": "vm.state", "mem_file_path": "vm.memory"}"#;
    client.done("PUT", "/snapshot/create", body);
    client.act("Stop");
    let mut printed = running.end().expect(0).stdout.clone();
    let mut running = vm.loading(&api).start();
    let mut client = Client::connect(&mut running, &api);
    let load = format!(
        r#"{{"snapshot_path": "vm.state", "mem_backend": {{"backend_type": "Uffd", "backend_path": "{}"}}, "resume_vm": true}}"#,
        socket.display()
    );
    client.refused("PUT", "/snapshot/load", &load, "no page fault handler");
    let handler = bring(&socket, vm.path("vm.memory"));
    client.done("PUT", "/snapshot/load", &load);
    running.await_many(3);
    client.act("Stop");
    printed.extend(running.end().expect(0).stdout.clone());
    follows(&printed);
    assert!(handler.join().unwrap().contains(&DATA));
}
