// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Socket devices that are not possible, from a user's view. Nothing here needs /dev/kvm.

// clippy.toml allows this in test functions. Helpers of tests may panic, too.
#![allow(clippy::unwrap_used)]

mod bare;

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

/// The one sentence about a machine with this device, and its exit code.
fn refusal(vsock: &str) -> (Option<i32>, String) {
    let mut command = Command::new(bare::program());
    command.env_remove("MINI_VMM_LOG").stdin(Stdio::null());
    command.args([
        "--kernel",
        concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        "--serial=off",
        &format!("--vsock={vsock}"),
    ]);
    let output = command.output().unwrap();
    assert!(output.stdout.is_empty(), "{vsock}: {output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), text)
}

#[track_caller]
fn check(vsock: &str, part: &str) {
    let (code, text) = refusal(vsock);
    assert_eq!(code, Some(1), "{vsock}: {text}");
    assert!(text.starts_with("mini-vmm: error: "), "{vsock}: {text}");
    assert_eq!(text.lines().count(), 1, "{vsock}: {text}");
    assert!(text.contains(part), "{vsock}: {text} lacks {part:?}");
}

#[test]
fn each_bad_device_is_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for cid in ["0", "1", "2", "4294967295"] {
        let vsock = format!("cid={cid},socket={}", at("v"));
        check(&vsock, "is reserved; choose one from 3 to 4294967294");
    }
    let long = "x".repeat(100);
    check(
        &format!("cid=3,socket={long}"),
        "is too long; shorten it to 96 bytes",
    );
    fs::write(at("file"), "data").unwrap();
    check(
        &format!("cid=3,socket={}", at("file")),
        "this is no socket and is left alone",
    );
    assert_eq!(fs::read(at("file")).unwrap(), b"data");
    let _taken = UnixListener::bind(at("taken")).unwrap();
    check(
        &format!("cid=3,socket={}", at("taken")),
        "another process listens on this socket",
    );
    check(
        &format!("cid=3,socket={}", at("none/v")),
        "the vsock socket can't be made",
    );
    assert!(!dir.path().join("v").exists(), "nothing was made");
}

#[test]
fn a_machine_that_cant_start_leaves_no_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    // The kernel is no kernel.
    let (code, text) = refusal(&format!("cid=3,socket={}", path.display()));
    assert_eq!(code, Some(1), "{text}");
    assert!(!path.exists());
}
