// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What clients ask of snapshots.

use super::*;
use crate::api::fields::Fields;
use crate::api::snapshots::{self, Load};
use crate::snapshot::Kind;

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
        let load = Load::parse(Fields::parse(body.as_bytes()).unwrap()).unwrap();
        assert_eq!(load.tracks, expected, "{more}");
    }
}
