// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The balloon.

use serde_json::json;

use super::*;
use crate::api::playground::Playground;

const BALLOON: &str = r#"{"amount_mib": 16, "deflate_on_oom": true}"#;
const FULL: &str = r#"{"amount_mib": 16, "deflate_on_oom": false, "stats_polling_interval_s": 5,
    "free_page_hinting": true, "free_page_reporting": true}"#;

#[test]
fn a_balloon_is_described() {
    let (mut routes, _orders) = routes();
    assert!(get(&mut routes, "/vm/config")["balloon"].is_null());
    refused(
        &mut routes,
        ("GET", "/balloon", ""),
        400,
        "the machine has no balloon",
    );
    done(&mut routes, "PUT", "/balloon", BALLOON);
    let shown = json!({"amount_mib": 16, "deflate_on_oom": true, "stats_polling_interval_s": 0,
        "free_page_hinting": false, "free_page_reporting": false});
    assert_eq!(get(&mut routes, "/balloon"), shown);
    assert_eq!(get(&mut routes, "/vm/config")["balloon"], shown);
    done(&mut routes, "PUT", "/balloon", FULL);
    let options = get(&mut routes, "/options");
    assert_eq!(
        options["balloon"],
        json!({"size": "16M", "deflate-on-oom": false, "stats": 5, "reporting": true, "hinting": true})
    );
    for (body, why) in [
        (r#"{"amount_mib": 16}"#, "deflate_on_oom: "),
        (r#"{"deflate_on_oom": true}"#, "amount_mib: "),
        (
            r#"{"amount_mib": -1, "deflate_on_oom": true}"#,
            "amount_mib: ",
        ),
        (
            r#"{"amount_mib": 18446744073709551615, "deflate_on_oom": true}"#,
            "amount_mib: ",
        ),
        (
            r#"{"amount_mib": 999999, "deflate_on_oom": true}"#,
            "amount_mib: ",
        ),
        (
            r#"{"amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 4294967296}"#,
            "stats_polling_interval_s: ",
        ),
        (
            r#"{"amount_mib": 1, "deflate_on_oom": true, "x": 1}"#,
            "x: ",
        ),
    ] {
        refused(&mut routes, ("PUT", "/balloon", body), 400, why);
    }
    // The machine doesn't become smaller than its balloon.
    let small = r#"{"mem_size_mib": 32, "vcpu_count": 1}"#;
    done(&mut routes, "PUT", "/machine-config", small);
    let larger = r#"{"amount_mib": 33, "deflate_on_oom": true}"#;
    refused(
        &mut routes,
        ("PUT", "/balloon", larger),
        400,
        "amount_mib: ",
    );
    let large = r#"{"mem_size_mib": 64, "vcpu_count": 1}"#;
    done(&mut routes, "PUT", "/machine-config", large);
    done(&mut routes, "PUT", "/balloon", larger);
    refused(
        &mut routes,
        ("PUT", "/machine-config", small),
        400,
        "mem_size_mib: ",
    );
}

#[test]
fn what_a_balloon_does_not_have_is_refused() {
    let (mut routes, _orders) = routes();
    let requests = [
        ("PATCH", "/balloon", r#"{"amount_mib": 1}"#),
        ("GET", "/balloon/statistics", ""),
        (
            "PATCH",
            "/balloon/statistics",
            r#"{"stats_polling_interval_s": 1}"#,
        ),
        ("GET", "/balloon/hinting/status", ""),
        ("PATCH", "/balloon/hinting/start", ""),
        ("PATCH", "/balloon/hinting/stop", "{}"),
    ];
    for request in requests {
        refused(&mut routes, request, 400, "the machine has no balloon");
    }
    done(&mut routes, "PUT", "/balloon", BALLOON);
    for (request, why) in requests.into_iter().zip([
        "The requested operation is not supported before",
        "the balloon has no statistics",
        "stats_polling_interval_s: ",
        "the balloon has no hints",
        "the balloon has no hints",
        "the balloon has no hints",
    ]) {
        refused(&mut routes, request, 400, why);
    }
    done(&mut routes, "PUT", "/balloon", FULL);
    for request in requests {
        let why = "The requested operation is not supported before";
        refused(&mut routes, request, 400, why);
    }
    for path in ["/balloon/x", "/balloon/hinting", "/balloon/hinting/start/x"] {
        refused(&mut routes, ("GET", path, ""), 404, "there is no path");
    }
}

#[test]
fn changes_are_shown_and_those_that_are_refused_are_undone() {
    let mut machine = Playground::default();
    let served = machine.served();
    done(served, "PUT", "/balloon", FULL);
    machine.start();
    let served = machine.served();
    let accepted = [
        ("/balloon", r#"{"amount_mib": 32}"#),
        ("/balloon/statistics", r#"{"stats_polling_interval_s": 7}"#),
    ];
    for (path, body) in accepted {
        done(served, "PATCH", path, body);
    }
    let shown = get(served, "/balloon");
    assert_eq!(
        (&shown["amount_mib"], &shown["stats_polling_interval_s"]),
        (&json!(32), &json!(7))
    );
    for (path, body, why) in [
        ("/balloon", r#"{"amount_mib": 999999}"#, "amount_mib: "),
        ("/balloon", "{}", "amount_mib: "),
        (
            "/balloon/statistics",
            r#"{"stats_polling_interval_s": 0}"#,
            "stats_polling_interval_s: ",
        ),
    ] {
        refused(served, ("PATCH", path, body), 400, why);
    }
    assert_eq!(get(served, "/balloon"), shown);
}
