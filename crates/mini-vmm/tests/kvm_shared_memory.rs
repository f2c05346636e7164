// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests share a file with the host, and no snapshot has it.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bare::counting::{MANY, first, restored, save};
use bare::ctl::ctl;
use bare::{Asm, Vm, guest, is_emulated};
use mini_vmm::layout::{BOOT_PAGE_TABLES, GIB, MIB, PAGE_SIZE, SERIAL, shared_memory};
use rustix::process::Signal;

/// Where a guest with little RAM has it.
const SHARED: u64 = shared_memory(MIB);
/// A page directory for it.
const DIRECTORY: u64 = 6 * MIB;
const SIZE: u64 = 4 * PAGE_SIZE;
/// What the host writes, and what the guest answers.
const ASKED: u32 = 0x1234_5678;

/// Maps the shared memory where it is. The guest's page tables begin with the first 4 GiB only.
fn map(asm: &mut Asm) {
    let entry = BOOT_PAGE_TABLES + PAGE_SIZE + SHARED / GIB * 8;
    asm.rdi(entry).rax(DIRECTORY | 3).raw(&[0x48, 0xab]); // stosq
    asm.rdi(DIRECTORY).rax(SHARED | 0x83).raw(&[0x48, 0xab]);
}

/// Copies the file's first word to its second page, and counts in its last word for ever.
fn sharing_guest() -> Asm {
    guest(|asm| {
        map(asm);
        asm.rsi(SHARED).rdi(SHARED + PAGE_SIZE).raw(&[0xa5]); // movsd
        asm.forever(|asm| {
            // inc dword [rdi]; mov al, [rdi]; out dx, al
            asm.rdi(SHARED + SIZE - 4).raw(&[0xff, 0x07, 0x8a, 0x07]);
            asm.port(SERIAL).raw(&[0xee]);
        });
    })
}

fn word(file: &Path, at: u64) -> u32 {
    let mut bytes = [0; 4];
    File::open(file)
        .unwrap()
        .read_exact_at(&mut bytes, at)
        .unwrap();
    u32::from_le_bytes(bytes)
}

fn create(path: &Path, size: u64) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    file.write_all_at(&ASKED.to_le_bytes(), 0).unwrap();
}

fn resize(path: &Path, size: u64) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(size).unwrap();
}

#[test]
fn a_guest_and_the_host_share_a_file_that_no_snapshot_has() {
    let test = "a_guest_and_the_host_share_a_file_that_no_snapshot_has";
    let Some(mut vm) = Vm::new(test, &sharing_guest()) else {
        return;
    };
    let (file, other, snap) = (vm.path("shared"), vm.path("other"), vm.path("snap"));
    create(&file, SIZE);
    create(&other, SIZE);
    let flag = |path: &Path| format!("--shared-memory=path={}", path.display());
    let (running, api) = first(&mut vm, &[&flag(&file)]);
    assert_eq!(word(&file, PAGE_SIZE), ASKED);
    assert!(word(&file, SIZE - 4) as usize >= MANY);
    // A Diff has none of it, either, and the lists of pages don't.
    let diff = vm.path("diff");
    for more in [&[][..], &["--diff"], &["--diff"]] {
        let mut order = vec!["snapshot".as_ref(), diff.as_os_str()];
        order.extend(more.iter().map(AsRef::<std::ffi::OsStr>::as_ref));
        if more.len() == 1 {
            fs::remove_dir_all(&diff).unwrap();
        }
        ctl(&api, &order);
        assert!(!has(&diff.join("memory"), ASKED), "{more:?}");
    }
    ctl(&api, &["resume"]);
    save(running, &api, &snap);
    assert!(!has(&snap.join("memory"), ASKED));
    let state = fs::read_to_string(snap.join("state.json")).unwrap();
    let here = vm.path("").to_str().unwrap().to_owned();
    assert!(!state.contains(&here) && state.contains(r#""size":"16K""#));

    // It is given again, and another file will do.
    let mut without = vm.restoring(&snap);
    without
        .args(["--resume"])
        .run()
        .expect(1)
        .says(&["what --shared-memory adds"]);
    let stands = word(&file, SIZE - 4);
    let (running, api) = restored(&vm, &snap, &[&flag(&other)]);
    ctl(&api, &["stop"]);
    running.end().expect(0);
    assert_eq!(word(&file, SIZE - 4), stands);
    assert!(word(&other, SIZE - 4) as usize >= MANY);
    let (running, api) = restored(&vm, &snap, &[&flag(&file)]);
    ctl(&api, &["stop"]);
    running.end().expect(0);
    assert!(word(&file, SIZE - 4) > stands);

    // It must have what the guest knows of.
    for (size, why) in [
        (SIZE - PAGE_SIZE, "but the shared memory needs 16384"),
        (0, "needs 16384"),
    ] {
        resize(&other, size);
        let mut short = vm.restoring(&snap);
        short
            .args(["--resume", &flag(&other)])
            .run()
            .expect(1)
            .says(&[why]);
    }
    let wrong = format!("{},size=8K", flag(&file));
    let mut wrong_size = vm.restoring(&snap);
    wrong_size.args(["--resume", &wrong]);
    wrong_size
        .run()
        .expect(1)
        .says(&["16384 bytes of shared memory, not 8192"]);
}

/// Whether a file has the bytes of this word.
fn has(file: &Path, word: u32) -> bool {
    let bytes = fs::read(file).unwrap();
    bytes.windows(4).any(|four| four == word.to_le_bytes())
}

/// KVM can't have the pages that are gone. That is a failure with a sentence, not a signal.
#[test]
fn a_file_that_becomes_shorter_ends_the_machine_with_a_reason() {
    let test = "a_file_that_becomes_shorter_ends_the_machine_with_a_reason";
    let Some(mut vm) = Vm::new(test, &sharing_guest()) else {
        return;
    };
    let file = vm.path("shared");
    create(&file, SIZE);
    let flag = format!("--shared-memory=path={},size=16K", file.display());
    let mut running = vm.args([flag]).start();
    running.await_many(MANY);
    resize(&file, 0);
    if is_emulated() {
        // This KVM emulates each instruction, and a page that it can't have reads as ones.
        while !running.output().ends_with(&[0xff; 3]) {
            let many = running.output().len();
            running.await_many(many + 1);
        }
        running.signal(Signal::TERM);
        running.end().expect(143);
        return;
    }
    let ended = running.end();
    ended
        .expect(33)
        .says(&["--shared-memory", "has become shorter"]);
}
