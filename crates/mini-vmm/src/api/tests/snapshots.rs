// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What clients ask of snapshots.

use std::fs;

use super::*;
use crate::api::fields::Fields;
use crate::api::snapshots::{self, Load};
use crate::snapshot::{Kind, format_1};

#[test]
fn a_diff_is_ordered_by_both_ways() {
    let files = |more: &str| {
        let body = format!(r#"{{"snapshot_path": "s", "mem_file_path": "m"{more}}}"#);
        snapshots::files(Fields::parse(body.as_bytes()).unwrap())
    };
    let directory = |more: &str| {
        let body = format!(r#"{{"directory": "d"{more}}}"#);
        snapshots::directory(Fields::parse(body.as_bytes()).unwrap())
    };
    for (order, kind) in [
        (files(""), Kind::Full),
        (files(r#", "snapshot_type": "Full""#), Kind::Full),
        (files(r#", "snapshot_type": "Diff""#), Kind::Diff),
        (directory(""), Kind::Full),
        (directory(r#", "diff": false"#), Kind::Full),
        (directory(r#", "diff": true"#), Kind::Diff),
    ] {
        assert_eq!(order.unwrap().kind, kind);
    }
    assert!(files(r#", "snapshot_type": "Half""#).is_err());
}

#[test]
fn changes_are_tracked_for_those_who_ask() {
    let (mut routes, _orders) = routes();
    let tracks = |routes: &mut Served| get(routes, "/machine-config")["track_dirty_pages"].clone();
    for (method, body, expected) in [
        ("PATCH", r#"{"track_dirty_pages": true}"#, true),
        ("PATCH", r#"{"vcpu_count": 1}"#, true),
        ("PUT", r#"{"vcpu_count": 1, "mem_size_mib": 64}"#, false),
        (
            "PUT",
            r#"{"vcpu_count": 1, "mem_size_mib": 64, "track_dirty_pages": true}"#,
            true,
        ),
        ("PATCH", r#"{"track_dirty_pages": false}"#, false),
    ] {
        done(&mut routes, method, "/machine-config", body);
        assert_eq!(tracks(&mut routes), expected, "{body}");
    }
    for (more, expected) in [
        ("", false),
        (r#", "enable_diff_snapshots": true"#, true),
        (r#", "track_dirty_pages": true"#, true),
        (
            r#", "enable_diff_snapshots": false, "track_dirty_pages": true"#,
            true,
        ),
    ] {
        let body = format!(r#"{{"snapshot_path": "s", "mem_file_path": "m"{more}}}"#);
        let load = Load::files(Fields::parse(body.as_bytes()).unwrap()).unwrap();
        assert_eq!(load.tracks, expected, "{more}");
    }
}

#[test]
fn a_directory_is_restored_with_a_number_and_devices() {
    let dir = tempfile::tempdir().unwrap();
    format_1::write_asked(dir.path());
    let (mut routes, _orders) = routes();
    let body = |more: &str| format!(r#"{{"directory": {:?}{more}}}"#, dir.path());
    let mut refuses = |more: &str, why: &str| {
        refused(
            &mut routes,
            ("PUT", "/snapshot/restore", &body(more)),
            400,
            why,
        );
    };
    for number in ["0", "2147483648", "4294967296", "18446744073709551615"] {
        let why = "a clone's number is 1 to 2147483647";
        refuses(&format!(r#", "clone_id": {number}"#), why);
    }
    for number in ["-1", "1.5", r#""1""#] {
        refuses(&format!(r#", "clone_id": {number}"#), "clone_id: ");
    }
    for (options, why) in [
        (
            r#"{"kernel": "k"}"#,
            "options: \"kernel\" is none of disk, cloud-init, net, vsock, shared-memory, console-port, console",
        ),
        (
            r#"{"disk": "path=d.img"}"#,
            "options: the saved machine has 0 of what --disk adds",
        ),
        (r#"{"disk": 1}"#, "options: "),
        ("[]", "options: "),
    ] {
        refuses(&format!(r#", "options": {options}"#), why);
    }
    refuses(
        r#", "snapshot_path": "s""#,
        "snapshot_path: there is no such field",
    );
    refuses(
        r#", "mem_backend": {}"#,
        "mem_backend: there is no such field",
    );
    fs::remove_file(dir.path().join("memory")).unwrap();
    refuses("", "can't read");
}

#[test]
fn a_guest_that_did_not_ask_gets_no_number() {
    let dir = tempfile::tempdir().unwrap();
    format_1::write_asked(dir.path());
    let load = |more: &str| {
        let body = format!(r#"{{"directory": {:?}{more}}}"#, dir.path());
        Load::directory(Fields::parse(body.as_bytes()).unwrap()).unwrap()
    };
    let rax = |load: &Load| load.open().unwrap().state.vcpus[0].vcpu.regs.rax;
    assert_eq!(rax(&load("")), 1);
    assert_eq!(rax(&load(r#", "clone_id": 7"#)), 7);
    assert_eq!(rax(&load(r#", "clone_id": 2147483647"#)), 2_147_483_647);
    format_1::forget_caller(dir.path());
    let error = load(r#", "clone_id": 7"#).open().unwrap_err();
    assert!(
        error.to_string().contains("did not ask for this snapshot"),
        "{error}"
    );
    load("").open().unwrap();
}
