// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests in a network namespace of their own, with taps.

use std::env;
use std::process::{Command, Stdio};

/// Set in a test that runs in a namespace.
const INSIDE: &str = "MINI_VMM_TEST_NAMESPACE";
/// Makes the tap `$1`; more words such as `multi_queue`. busybox has another program for that.
const MAKE: &str =
    "ip tuntap add dev $1 mode tap $2 2>/dev/null || { [ -z \"$2\" ] && tunctl -t $1 >/dev/null; }";

/// A shell's command line in a new namespace. Without root it is also one of users.
fn unshare() -> Command {
    let mut command = Command::new("unshare");
    let is_root = rustix::process::geteuid().is_root();
    command.arg(if is_root { "-n" } else { "-rn" });
    command
}

/// Makes a tap in this namespace. Returns whether that worked.
pub fn make_tap(name: &str, more: &str) -> bool {
    let mut shell = Command::new("sh");
    let made = shell.args(["-c", MAKE, "sh", name, more]).status();
    made.is_ok_and(|status| status.success())
}

/// Runs a command of a shell's, which must succeed.
pub fn shell(line: &str) {
    let status = Command::new("sh").args(["-ec", line]).status().unwrap();
    assert!(status.success(), "{line}");
}

/// Whether the test runs in a namespace of its own. Otherwise runs it in one, and checks that it passes; or says why the
/// host can't.
pub fn is_inside(test: &str) -> bool {
    if env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut probe = unshare();
    probe.args(["sh", "-c", MAKE, "sh", "probe0", ""]);
    let probe = probe.stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("SKIP: {test}: this host makes no namespace with a tap");
        return false;
    }
    let mut again = unshare();
    again.arg(env::current_exe().unwrap());
    again.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    let output = again.env(INSIDE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // Also what it skipped.
    eprint!("{said}");
    let ran = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{ran}");
    assert!(ran.contains("1 passed"), "{ran}");
    false
}
