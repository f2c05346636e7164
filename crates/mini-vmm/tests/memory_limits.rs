// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host refuses to provide memory.

#![allow(clippy::unwrap_used)] // a test may panic

use std::process::Command;

use mini_vmm::layout::GIB;
use mini_vmm::memory;

/// Set for the process whose address space is limited.
const CHILD: &str = "MINI_VMM_TEST_CHILD";

#[test]
fn a_refusal_of_the_host_says_what_would_do() {
    if std::env::var_os(CHILD).is_some() {
        eprintln!("{}", memory::allocate(32 * GIB).unwrap_err());
        return;
    }
    let exe = std::env::current_exe().unwrap();
    let output = Command::new("sh")
        .args(["-c", "ulimit -v 8000000; exec \"$0\" --nocapture"])
        .arg(exe)
        .env(CHILD, "1")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let line = stderr
        .lines()
        .find(|line| line.starts_with("the host does not map 32 GiB of memory ("))
        .unwrap_or_else(|| panic!("{stderr}"));
    assert!(line.contains("ask for less than the "), "{line}");
    assert!(
        line.ends_with("or raise its limits (ulimit -v, vm.overcommit_memory)"),
        "{line}"
    );
}
