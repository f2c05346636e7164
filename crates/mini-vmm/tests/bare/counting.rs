// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that prints numbers, so that one can see whether it goes on where it was.

use std::path::{Path, PathBuf};

use mini_vmm::layout::{MIB, SERIAL};

use super::ctl::ctl;
use super::http::Client;
use super::virtio::COUNT;
use super::{Asm, Running, Vm, guest};

/// A page that only the guest's start touches.
pub const MARK: u64 = 8 * MIB;
/// How many bytes a guest prints in one process before it is saved.
pub const MANY: usize = 40;

/// Counts in memory, and prints the lowest byte of each number: `inc dword [COUNT]; mov al, [COUNT]; out`.
pub fn count(asm: &mut Asm) {
    asm.rdi(COUNT).raw(&[0xff, 0x07]).load(COUNT);
    asm.port(SERIAL).raw(&[0xee]);
}

/// Counts for ever.
pub fn counting_guest() -> Asm {
    guest(|asm| {
        asm.store(MARK, 0x1234_5678);
        asm.forever(|asm| {
            // Slower than whoever reads it: `mov ecx, n; loop`
            asm.ecx(2000).raw(&[0xe2, 0xfe]);
            count(asm);
        });
    })
}

/// A process that has printed enough, and its API.
pub fn printed(mut running: Running, api: PathBuf) -> (Running, PathBuf) {
    Client::connect(&mut running, &api);
    running.await_many(MANY);
    (running, api)
}

/// A new machine that has printed enough, with its API.
pub fn first(vm: &mut Vm, flags: &[&str]) -> (Running, PathBuf) {
    let api = vm.path("api");
    vm.args(["--api-sock".as_ref(), api.as_os_str()]);
    vm.args(flags);
    printed(vm.start(), api)
}

/// A process that goes on with the snapshot, and has printed enough.
pub fn restored(vm: &Vm, snap: &Path, flags: &[&str]) -> (Running, PathBuf) {
    let api = vm.path("api");
    let mut vm = vm.restoring(snap);
    vm.args(["--resume".as_ref(), "--api-sock".as_ref(), api.as_os_str()]);
    vm.args(flags);
    printed(vm.start(), api)
}

/// Saves a machine and ends it. Returns all that it printed.
pub fn save(running: Running, api: &Path, snap: &Path) -> Vec<u8> {
    let said = ctl(api, &["snapshot".as_ref(), snap.as_os_str()]);
    assert_eq!(said, "Paused\n");
    ctl(api, &["stop"]);
    let ended = running.end();
    ended.expect(0);
    ended.stdout
}

/// Checks that all numbers are there, once and in order.
#[track_caller]
pub fn follows(printed: &[u8]) {
    for (byte, number) in printed.iter().zip(1u64..) {
        assert_eq!(u64::from(*byte), number % 256, "number {number}");
    }
}
