// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests go on from Diffs that were merged.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bare::counting::{MANY, counting_guest, first, follows, restored};
use bare::ctl::{ctl, ctl_fails};
use bare::{Running, Vm, program};
use mini_vmm::layout::PAGE_SIZE;

/// Writes a Diff, and returns what the state is then.
fn diff(api: &Path, dir: &Path, more: &[&str]) -> String {
    let mut order = vec!["snapshot".as_ref(), dir.as_os_str(), "--diff".as_ref()];
    order.extend(more.iter().map(AsRef::<std::ffi::OsStr>::as_ref));
    ctl(api, &order)
}

/// Ends a process. Returns all that it printed.
fn stop(running: Running, api: &Path) -> Vec<u8> {
    ctl(api, &["stop"]);
    let ended = running.end();
    ended.expect(0);
    ended.stdout
}

fn merge(base: &Path, diff: &Path, out: &Path) -> Output {
    let mut command = Command::new(program());
    command.args(["snapshot", "merge"]).args([base, diff, out]);
    command.output().unwrap()
}

#[track_caller]
fn merged(base: &Path, diff: &Path, out: &Path) {
    let output = merge(base, diff, out);
    assert!(output.status.success(), "{output:?}");
    assert!(
        output.stdout.is_empty() && output.stderr.is_empty(),
        "{output:?}"
    );
}

fn more(running: &mut Running) {
    let before = running.output().len();
    running.await_many(before + MANY);
}

fn pages_on_disk(dir: &Path) -> u64 {
    fs::metadata(dir.join("memory")).unwrap().blocks() * 512 / PAGE_SIZE
}

#[test]
fn a_guest_counts_on_through_diffs_of_two_processes() {
    let test = "a_guest_counts_on_through_diffs_of_two_processes";
    let Some(mut vm) = Vm::new(test, &counting_guest()) else {
        return;
    };
    let (mut running, api) = first(&mut vm, &[]);
    let dir = |name: &str| -> PathBuf { vm.path(name) };
    let (base, whole) = (dir("base"), dir("whole"));
    // There is nothing that it could continue, so it is whole.
    assert_eq!(diff(&api, &base, &["--keep-running"]), "Running\n");
    more(&mut running);
    assert_eq!(diff(&api, &dir("1"), &["--keep-running"]), "Running\n");
    more(&mut running);
    assert_eq!(diff(&api, &dir("2"), &[]), "Paused\n");
    ctl_fails(
        &api,
        &["snapshot".as_ref(), dir("2").as_os_str(), "--diff".as_ref()],
        "does not replace the snapshot that it continues",
    );
    // Nothing ran since then. All that the guest touched is there, and not more.
    assert!(ctl(&api, &["memory", "dirty"]).starts_with("dirty: "));
    let resident: serde_json::Value =
        serde_json::from_str(&ctl(&api, &["memory", "resident", "--json"])).unwrap();
    let bytes = resident["bytes"].as_u64().unwrap();
    assert!((PAGE_SIZE..32 << 20).contains(&bytes), "{bytes}");
    assert!(
        resident["ranges"]
            .as_array()
            .is_some_and(|ranges| !ranges.is_empty())
    );
    let mut printed = stop(running, &api);
    // The page of the counter, the stack if there is one, the list and the page that pairs the files.
    for name in ["1", "2"] {
        let pages = pages_on_disk(&dir(name));
        assert!(
            pages <= 8 || pages < pages_on_disk(&base),
            "{name}: {pages}"
        );
    }
    let mut alone = vm.restoring(&dir("1"));
    alone.args(["--resume"]);
    alone
        .run()
        .expect(1)
        .says(&["mini-vmm snapshot merge BASE DIFF OUT"]);
    let output = merge(&base, &dir("2"), &whole);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("merge Diffs in their order"), "{text}");
    merged(&base, &dir("1"), &whole);
    merged(&whole, &dir("2"), &whole);
    // The next process continues the chain.
    let (running, api) = restored(&vm, &whole, &[]);
    assert_eq!(diff(&api, &dir("3"), &[]), "Paused\n");
    printed.extend(stop(running, &api));
    merged(&whole, &dir("3"), &whole);
    let (running, api) = restored(&vm, &whole, &[]);
    printed.extend(stop(running, &api));
    follows(&printed);
}
