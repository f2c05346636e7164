// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Checks that no test of the crates fails because a machine is slow: limits are minutes, and no test asserts an upper
//! bound of time.

use std::path::Path;

use crate::process::read;
use crate::workspace::{root, sources};

/// The least limit in seconds, so that it only ends hangs.
const LEAST: u64 = 600;

/// What is wrong with a line of a test.
fn complaint(line: &str) -> Option<&'static str> {
    let limit = line.split_once(": Duration = Duration::from_secs(");
    let seconds = limit.and_then(|(_, rest)| rest.split(')').next()?.parse::<u64>().ok());
    if line.trim_start().contains("const ") && seconds.is_some_and(|seconds| seconds < LEAST) {
        return Some("a short limit");
    }
    let is_bound = ["elapsed() <", "took <", "waited <"]
        .iter()
        .any(|bound| line.contains(bound));
    (is_bound && !line.contains("< SOON")).then_some("an upper bound of time")
}

#[test]
fn no_test_asks_for_speed() {
    let mut found = Vec::new();
    for package in std::fs::read_dir(root().join("crates")).unwrap() {
        let tests = package.unwrap().path().join("tests");
        if !tests.is_dir() {
            continue;
        }
        for source in sources(&tests).unwrap() {
            // It measures idleness, not speed.
            if source.ends_with(Path::new("bare/watch.rs")) {
                continue;
            }
            let text = String::from_utf8(read(&source).unwrap()).unwrap();
            for (number, line) in (1..).zip(text.lines()) {
                if let Some(complaint) = complaint(line) {
                    found.push(format!("{}:{number}: {complaint}", source.display()));
                }
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn bounds_are_told_from_waits() {
    assert!(complaint("const SOON: Duration = Duration::from_secs(20);").is_some());
    assert!(complaint("const SOON: Duration = Duration::from_secs(600);").is_none());
    assert!(complaint("    assert!(took < Duration::from_secs(4));").is_some());
    assert!(complaint("    assert!(took >= Duration::from_secs(4));").is_none());
    assert!(complaint("    while start.elapsed() < SOON {").is_none());
}
