// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `mini-vmm ctl`, as people use it.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};

/// What it prints on success.
#[track_caller]
pub fn ctl<S: AsRef<OsStr>>(api: &Path, args: &[S]) -> String {
    let output = ctl_output(api, args);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Checks why it fails.
#[track_caller]
pub fn ctl_fails<S: AsRef<OsStr>>(api: &Path, args: &[S], why: &str) {
    let output = ctl_output(api, args);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.lines().count() == 1 && text.contains(why), "{text}");
}

fn ctl_output<S: AsRef<OsStr>>(api: &Path, args: &[S]) -> Output {
    let mut command = Command::new(super::program());
    command.arg("ctl").arg(api).args(args);
    command.output().unwrap()
}
