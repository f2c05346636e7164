// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The socket device.

use super::*;

#[test]
fn a_vsock_is_described() {
    let (mut routes, _orders) = routes();
    assert!(get(&mut routes, "/vm/config")["vsock"].is_null());
    let body = r#"{"vsock_id": "any", "guest_cid": 3, "uds_path": "./v.sock"}"#;
    done(&mut routes, "PUT", "/vsock", body);
    let shown = get(&mut routes, "/vm/config")["vsock"].clone();
    assert_eq!(
        shown,
        serde_json::json!({"guest_cid": 3, "uds_path": "./v.sock"})
    );
    let options = get(&mut routes, "/options");
    assert_eq!(
        options["vsock"],
        serde_json::json!({"cid": 3, "socket": "./v.sock"})
    );
    // There is one, and the last request counts.
    let body = r#"{"guest_cid": 4, "uds_path": "w.sock"}"#;
    done(&mut routes, "PUT", "/vsock", body);
    assert_eq!(get(&mut routes, "/options")["vsock"]["cid"], 4);
    let long = "x".repeat(97);
    for (body, why) in [
        (
            r#"{"guest_cid": 2, "uds_path": "v"}"#.to_owned(),
            "guest_cid: ",
        ),
        (
            r#"{"guest_cid": 4294967295, "uds_path": "v"}"#.to_owned(),
            "guest_cid: ",
        ),
        (
            r#"{"guest_cid": 99999999999, "uds_path": "v"}"#.to_owned(),
            "guest_cid: ",
        ),
        (
            r#"{"guest_cid": "3", "uds_path": "v"}"#.to_owned(),
            "guest_cid: ",
        ),
        (
            r#"{"guest_cid": 3, "uds_path": ""}"#.to_owned(),
            "uds_path: ",
        ),
        (
            format!(r#"{{"guest_cid": 3, "uds_path": "{long}"}}"#),
            "uds_path: ",
        ),
        (
            r#"{"guest_cid": 3, "uds_path": "v", "vsock_id": 1}"#.to_owned(),
            "vsock_id: ",
        ),
    ] {
        refused(&mut routes, ("PUT", "/vsock", &body), 400, why);
    }
    assert_eq!(get(&mut routes, "/options")["vsock"]["socket"], "w.sock");
    done(
        &mut routes,
        "PATCH",
        "/options",
        r#"{"vsock": {"cid": 5, "socket": "x"}}"#,
    );
    assert_eq!(get(&mut routes, "/vm/config")["vsock"]["guest_cid"], 5);
}
