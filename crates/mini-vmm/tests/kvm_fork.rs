// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests ask for snapshots of themselves (`VMM_HC_SNAPSHOT`), and go on as many machines.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use bare::http::Client;
use bare::lab::{MAGIC, PARA, RBX, REGISTERS, STUB, call, registers, routes};
use bare::registration::Registration;
use bare::registration::Verdict::Registered;
use bare::virtio::COUNT;
use bare::{Asm, Running, Vm, guest, is_long};
use mini_vmm::layout::{self, KIB, MIB, PAGE_SIZE, SERIAL};
use para_abi::KvmErrno;
use para_abi::vmm::VMM_HC_SNAPSHOT;

/// Asks for a snapshot, and prints the 8 bytes of the answer.
fn ask(asm: &mut Asm, flags: u64) {
    let mut registers = registers(VMM_HC_SNAPSHOT);
    registers[RBX] = flags;
    call(asm, STUB, &registers);
    asm.show(REGISTERS, 8);
}

fn register(asm: &mut Asm) {
    Registration::new("a registration", Registered).prepare(asm);
    asm.wrmsr(MAGIC, PARA);
}

/// Asks wrongly, and then for a snapshot.
fn asking_guest() -> Asm {
    guest(|asm| {
        register(asm);
        ask(asm, 1);
        ask(asm, 0);
        asm.power_off();
    })
}

fn answers(printed: &[u8]) -> Vec<i64> {
    let (answers, rest) = printed.as_chunks();
    assert!(rest.is_empty(), "{printed:?}");
    answers.iter().copied().map(i64::from_le_bytes).collect()
}

fn error(errno: KvmErrno) -> i64 {
    errno.as_ret() as i64
}

#[test]
fn the_call_returns_0_in_the_original_and_a_number_in_each_clone() {
    let test = "the_call_returns_0_in_the_original_and_a_number_in_each_clone";
    // Calls must reach the VMM, so auto means pio.
    if !clones_are_numbered(test, &[]) {
        return;
    }
    for route in routes(test).iter().filter(|route| route.is_ours) {
        clones_are_numbered(test, &route.args());
    }
}

/// Checks the answers with these arguments. `false` if there is no KVM.
fn clones_are_numbered(test: &str, args: &[&str]) -> bool {
    let Some(mut vm) = Vm::new(test, &asking_guest()) else {
        return false;
    };
    let dir = vm.path("snaps");
    fs::create_dir(&dir).unwrap();
    // A name that is taken is not ours.
    fs::write(dir.join("1"), "").unwrap();
    vm.args(["--snapshot-dir".as_ref(), dir.as_os_str()]);
    let ended = vm.args(args).run();
    let printed = &ended.expect(0).silent().stdout;
    assert_eq!(
        answers(printed),
        [error(KvmErrno::KVM_EINVAL), 0],
        "{args:?}"
    );
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
    let snap = dir.join("2");
    for (flags, number) in [
        (&["--clone-id", "7"][..], 7),
        (&[], 1),
        (&["--clone-id", "2147483647"], 2_147_483_647),
    ] {
        let mut clone = vm.restoring(&snap);
        let ended = clone.args(["--resume"]).args(flags).run();
        let printed = &ended.expect(0).silent().stdout;
        assert_eq!(answers(printed), [number], "{args:?}");
    }
    let mut clone = vm.restoring(&snap);
    clone.args(["--resume", "--clone-id", "2147483648"]);
    clone.run().expect(1).says(&["is 1 to 2147483647"]);
    true
}

#[test]
fn a_client_of_the_api_numbers_a_clone() {
    let test = "a_client_of_the_api_numbers_a_clone";
    let Some(mut vm) = Vm::new(test, &asking_guest()) else {
        return;
    };
    let dir = vm.path("snaps");
    fs::create_dir(&dir).unwrap();
    vm.args(["--snapshot-dir".as_ref(), dir.as_os_str()]);
    vm.run().expect(0).silent();
    let api = vm.path("api");
    let mut running = vm.loading(&api).start();
    let mut client = Client::connect(&mut running, &api);
    let body = r#"{"directory": "snaps/1", "clone_id": 9}"#;
    client.done("PUT", "/snapshot/restore", body);
    // It powers off at once, perhaps before the answer.
    client.begin("PATCH", "/vm", r#"{"state": "Resumed"}"#);
    let ended = running.end();
    assert_eq!(answers(&ended.expect(0).stdout), [9]);
}

#[test]
fn a_guest_that_may_not_or_can_not_is_told() {
    let test = "a_guest_that_may_not_or_can_not_is_told";
    let Some(mut vm) = Vm::new(test, &asking_guest()) else {
        return;
    };
    let ended = vm.args(["--hypercall", "pio"]).run();
    let unknown = error(KvmErrno::KVM_ENOSYS);
    assert_eq!(answers(&ended.expect(0).stdout), [unknown, unknown]);
    let dir = vm.path("none");
    vm.args(["--snapshot-dir".as_ref(), dir.as_os_str()]);
    let ended = vm.run();
    ended.expect(0).says(&["create that directory"]);
    let expected = [KvmErrno::KVM_EINVAL, KvmErrno::KVM_EIO].map(error);
    assert_eq!(answers(&ended.stdout), expected);
}

/// Counts its snapshots, prints their number, asks for the next one, and prints the answer. The original then powers off;
/// a clone goes on.
fn counting_guest() -> Asm {
    guest(|asm| {
        register(asm);
        asm.store(COUNT, 0);
        asm.forever(|asm| {
            asm.rdi(COUNT).raw(&[0xff, 0x07]).show(COUNT, 8); // inc dword [rdi]
            ask(asm, 0);
            asm.load(REGISTERS).compare_eax(0).if_equal(|asm| {
                asm.power_off();
            });
        });
    })
}

/// Each clone asks for the next snapshot, and ends as its original. With `--long`, ten thousand times.
#[test]
fn clones_of_clones_ask_again() {
    let test = "clones_of_clones_ask_again";
    let Some(mut vm) = Vm::new(test, &counting_guest()) else {
        return;
    };
    let dir = vm.path("snaps");
    fs::create_dir(&dir).unwrap();
    let to = ["--snapshot-dir".as_ref(), dir.as_os_str()];
    assert_eq!(answers(&vm.args(to).run().expect(0).stdout), [1, 0]);
    let rounds = if is_long(test) { 10_000 } else { 5 };
    for round in 0..rounds {
        // The old one's name is free again.
        let old = dir.join(if round % 2 == 0 { "1" } else { "2" });
        let mut clone = vm.restoring(&old);
        let ended = clone.args(to).args(["--resume", "--clone-id", "3"]).run();
        let printed = answers(&ended.expect(0).silent().stdout);
        assert_eq!(printed, [3, round + 2, 0]);
        fs::remove_dir_all(&old).unwrap();
    }
}

/// What all clones read, and none writes.
const SHARED: u64 = 20 * MIB;
const SHARED_SIZE: u64 = 8 * MIB;

/// Fills memory and asks for a snapshot. Then it prints its generation ID, reads all of that memory, and waits.
fn forking_guest() -> Asm {
    guest(|asm| {
        register(asm);
        asm.rdi(SHARED).rax(0x1122_3344_5566_7788);
        asm.ecx((SHARED_SIZE / 8) as u32).raw(&[0xf3, 0x48, 0xab]); // rep stosq
        ask(asm, 0);
        asm.show(
            layout::VM_GENERATION_ID,
            layout::VM_GENERATION_ID_SIZE as u32,
        );
        asm.rsi(SHARED).ecx((SHARED_SIZE / PAGE_SIZE) as u32);
        // lodsb; add rsi, 4095; loop
        asm.raw(&[0xac, 0x48, 0x81, 0xc6, 0xff, 0x0f, 0, 0, 0xe2, 0xf6]);
        asm.port(SERIAL).raw(&[0xee]).halt();
    })
}

/// How many bytes a clone prints: its number, its generation ID, and one byte of memory.
const PRINTED: usize = 8 + layout::VM_GENERATION_ID_SIZE as usize + 1;

/// What a process has of a file, in bytes.
#[derive(Debug, Default)]
struct Share {
    resident: u64,
    proportional: u64,
    written: u64,
}

impl Share {
    fn of(running: &Running, file: &Path) -> Self {
        let maps = fs::read_to_string(format!("/proc/{}/smaps", running.id())).unwrap();
        let (mut share, mut is_it) = (Share::default(), false);
        for line in maps.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            let [key, value, "kB"] = words[..] else {
                if !words[0].ends_with(':') {
                    is_it = words.last() == file.to_str().as_ref();
                }
                continue;
            };
            let bytes = value.parse::<u64>().unwrap() * KIB;
            match key {
                "Rss:" if is_it => share.resident += bytes,
                "Pss:" if is_it => share.proportional += bytes,
                "Private_Dirty:" if is_it => share.written += bytes,
                _ => {}
            }
        }
        share
    }
}

/// A hundred at once; with `--long`, ten times.
#[test]
fn a_hundred_clones_at_once_have_their_own_identity_and_share_the_rest() {
    const CLONES: usize = 100;
    let test = "a_hundred_clones_at_once_have_their_own_identity_and_share_the_rest";
    let Some(mut vm) = Vm::new(test, &forking_guest()) else {
        return;
    };
    let dir = vm.path("");
    vm.args(["--snapshot-dir".as_ref(), dir.as_os_str()]);
    let mut original = vm.start();
    original.await_many(PRINTED);
    let snap = fs::canonicalize(dir.join("1")).unwrap();
    let mut ids = HashSet::from([identity(&original, 0)]);
    let rounds = if is_long(test) { 10 } else { 1 };
    for _ in 0..rounds {
        let mut clones: Vec<_> = (1..=CLONES)
            .map(|number| {
                let number = number.to_string();
                let mut clone = vm.restoring(&snap);
                clone.args(["--resume", "--clone-id", &number]).start()
            })
            .collect();
        for (clone, number) in clones.iter_mut().zip(1..) {
            clone.await_many(PRINTED);
            ids.insert(identity(clone, number));
        }
        check_shares(&clones, &snap.join("memory"));
    }
    assert_eq!(ids.len(), rounds * CLONES + 1);
}

/// The generation ID that a guest has printed. Its call must have returned `number`.
#[track_caller]
fn identity(running: &Running, number: i64) -> Vec<u8> {
    let printed = running.output();
    assert_eq!(answers(&printed[..8]), [number]);
    assert_eq!(printed.len(), PRINTED);
    assert_eq!(printed[PRINTED - 1], 0x88);
    printed[8..PRINTED - 1].to_vec()
}

/// Checks that all of them together have what one has, and what each has written. Each has read all of it, but the host
/// may have taken pages away since then.
fn check_shares(clones: &[Running], memory: &Path) {
    const WRITTEN: u64 = 128 * KIB;
    let (mut resident, mut proportional) = (0, 0);
    for clone in clones {
        let share = Share::of(clone, memory);
        assert!(share.written <= WRITTEN, "{share:?}");
        resident += share.resident;
        proportional += share.proportional;
    }
    let most = SHARED_SIZE + MIB + clones.len() as u64 * WRITTEN;
    assert!(proportional <= most, "{proportional} of {most}");
    assert!(resident > most, "{resident} of {most}");
}
