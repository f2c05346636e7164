// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Seeds that can't be made, from a user's view. Nothing here needs /dev/kvm.

// clippy.toml allows this in test functions. Helpers of tests may panic, too.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// The one sentence about a machine with the seed from `dir`, and a serial console in `serial`.
fn refusal(dir: &Path, serial: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mini-vmm"));
    command.env_remove("MINI_VMM_LOG").stdin(Stdio::null());
    let kernel = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    command.args(["--kernel", kernel, "--cloud-init"]).arg(dir);
    command.arg(format!("--serial=file={}", serial.to_str().unwrap()));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("mini-vmm: error: "), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn each_bad_seed_is_one_sentence_and_nothing_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (serial, user_data) = (dir.path().join("serial"), dir.path().join("user-data"));
    fs::write(&serial, "output of an earlier run\n").unwrap();
    let says = |dir: &Path, part: &str| {
        let text = refusal(dir, &serial);
        assert!(text.contains(part), "{text}");
        let after = fs::read_to_string(&serial).unwrap();
        assert_eq!(after, "output of an earlier run\n");
    };
    says(
        &dir.path().join("missing"),
        "name a directory with a file `user-data`",
    );
    says(
        dir.path(),
        "has no `user-data`; put the guest's configuration there",
    );
    fs::create_dir(&user_data).unwrap();
    says(dir.path(), "it is not a regular file");
    fs::remove_dir(&user_data).unwrap();
    fs::File::create(&user_data)
        .unwrap()
        .set_len(5 << 20)
        .unwrap();
    says(dir.path(), "more than 4 MiB");
}

#[test]
fn the_serial_output_does_not_overwrite_a_seed() {
    let dir = tempfile::tempdir().unwrap();
    let user_data = dir.path().join("user-data");
    fs::write(&user_data, "#cloud-config\n").unwrap();
    let text = refusal(dir.path(), &user_data);
    assert!(text.contains("would overwrite this file"), "{text}");
    assert_eq!(fs::read_to_string(&user_data).unwrap(), "#cloud-config\n");
}
