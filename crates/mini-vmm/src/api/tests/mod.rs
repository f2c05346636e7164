// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests to a machine that never starts. No KVM.

mod balloon;
mod calls;
mod changes;
mod devices;
mod fields;
mod loading;
mod mmds;
mod openapi;
mod plugged;
mod served;
mod snapshots;
mod swagger;
mod vsock;

use proptest::prelude::*;
use serde_json::Value;

use super::http::{Answer, Data, Request};
use super::playground::Served;
use super::*;
use crate::config::VmSpec;
use crate::vmm::{Orders, deaf};

/// A machine without a kernel, and the end that would run it.
fn routes() -> (Served, Orders) {
    let (remote, orders) = deaf();
    (Served::new(remote), orders)
}

fn ask(served: &mut Served, method: &str, path: &str, body: &str) -> Answer {
    served.ask(Request {
        method,
        path,
        body: body.as_bytes(),
        stays: true,
    })
}

#[track_caller]
fn get(routes: &mut Served, path: &str) -> Value {
    match ask(routes, "GET", path, "") {
        Ok(Some(Data::Json(value))) => value,
        other => panic!("{path}: {other:?}"),
    }
}

#[track_caller]
fn done(routes: &mut Served, method: &str, path: &str, body: &str) {
    assert_eq!(ask(routes, method, path, body), Ok(None), "{path}");
}

/// Checks that a request is refused with `status`, that the message contains `why`, and that nothing changed.
#[track_caller]
fn refused(routes: &mut Served, request: (&str, &str, &str), status: u16, why: &str) {
    let before = get(routes, "/options");
    let (method, path, body) = request;
    let fault = ask(routes, method, path, body).unwrap_err();
    assert_eq!(fault.status, status, "{request:?}: {fault:?}");
    assert!(fault.message.contains(why), "{request:?}: {fault:?}");
    assert_eq!(get(routes, "/options"), before, "{request:?}");
}

fn kernel() -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    (file, path)
}

#[test]
fn the_description_is_what_clients_put_together() {
    let (mut routes, _orders) = routes();
    let (_file, kernel) = kernel();
    assert_eq!(get(&mut routes, "/")["state"], "Not started");
    assert_eq!(
        get(&mut routes, "/version")["firecracker_version"],
        API_VERSION
    );
    let boot = format!(
        r#"{{"kernel_image_path": "{kernel}", "initrd_path": "{kernel}", "boot_args": "a b"}}"#
    );
    done(&mut routes, "PUT", "/boot-source", &boot);
    let machine = r#"{"vcpu_count": 2, "mem_size_mib": 64, "smt": false, "track_dirty_pages": false, "huge_pages": "None", "cpu_template": "None"}"#;
    done(&mut routes, "PUT", "/machine-config", machine);
    done(
        &mut routes,
        "PATCH",
        "/machine-config/",
        r#"{"vcpu_count": 3}"#,
    );
    done(&mut routes, "PUT", "/entropy", "{}");
    done(
        &mut routes,
        "PUT",
        "/serial",
        r#"{"serial_out_path": "/tmp/out"}"#,
    );
    done(
        &mut routes,
        "PATCH",
        "/options",
        r#"{"on-reboot": "reset", "nested": true}"#,
    );
    let options = get(&mut routes, "/options");
    for (key, value) in [
        ("kernel", &*kernel),
        ("initrd", &*kernel),
        ("cmdline", "a b"),
        ("memory", "64M"),
        ("rng", "on"),
        ("serial", "file=/tmp/out"),
        ("on-reboot", "reset"),
        ("nested", "on"),
    ] {
        assert_eq!(options[key], value, "{key}");
    }
    assert_eq!(options["cpus"], 3);
    let config = get(&mut routes, "/vm/config");
    assert_eq!(
        config["machine-config"],
        get(&mut routes, "/machine-config")
    );
    assert_eq!(config["machine-config"]["mem_size_mib"], 64);
    assert_eq!(config["boot-source"]["boot_args"], "a b");
    assert!(config["entropy"].is_object() && config["vsock"].is_null());
    // Each PUT is the whole: what is left out gets its default.
    let boot = format!(r#"{{"kernel_image_path": "{kernel}"}}"#);
    done(&mut routes, "PUT", "/boot-source", &boot);
    let options = get(&mut routes, "/options");
    assert!(options["initrd"].is_null());
    assert_eq!(options["cmdline"], VmSpec::new("").cmdline);
}

#[test]
fn mistakes_name_their_field_and_change_nothing() {
    let (mut routes, _orders) = routes();
    let (_file, kernel) = kernel();
    let boot = |rest: &str| format!(r#"{{"kernel_image_path": "{kernel}", {rest}}}"#);
    let long = boot(&format!(r#""boot_args": "{}""#, "a".repeat(1 << 16)));
    for (method, path, body, why) in [
        ("PUT", "/boot-source", "{}", "kernel_image_path: "),
        (
            "PUT",
            "/boot-source",
            r#"{"kernel_image_path": "/no/such"}"#,
            "kernel_image_path: ",
        ),
        (
            "PUT",
            "/boot-source",
            &boot(r#""initrd_path": "/no/such""#),
            "initrd_path: ",
        ),
        (
            "PUT",
            "/boot-source",
            &boot(r#""boot_args": "a\u0000""#),
            "boot_args: ",
        ),
        ("PUT", "/boot-source", &long, "boot_args: "),
        (
            "PUT",
            "/boot-source",
            &boot(r#""boot_arg": """#),
            "boot_arg: ",
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count": 1}"#,
            "mem_size_mib: ",
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"mem_size_mib": 64}"#,
            "vcpu_count: ",
        ),
        (
            "PATCH",
            "/machine-config",
            r#"{"vcpu_count": 0}"#,
            "vcpu_count: ",
        ),
        (
            "PATCH",
            "/machine-config",
            r#"{"vcpu_count": 257}"#,
            "vcpu_count: ",
        ),
        (
            "PATCH",
            "/machine-config",
            r#"{"mem_size_mib": 1}"#,
            "mem_size_mib: ",
        ),
        (
            "PATCH",
            "/machine-config",
            r#"{"vcpu_count": 2, "mem_size_mib": 18446744073709551615}"#,
            "mem_size_mib: ",
        ),
        (
            "PATCH",
            "/machine-config",
            "{}",
            "vcpu_count, mem_size_mib or track_dirty_pages",
        ),
        (
            "PATCH",
            "/machine-config",
            r#"{"smt": true, "vcpu_count": 2}"#,
            "smt: ",
        ),
        (
            "PATCH",
            "/machine-config",
            r#"{"huge_pages": "2M"}"#,
            "huge_pages: ",
        ),
        (
            "PATCH",
            "/machine-config",
            r#"{"track_dirty_pages": 1}"#,
            "track_dirty_pages: ",
        ),
        (
            "PATCH",
            "/machine-config",
            r#"{"cpu_template": "T2"}"#,
            "cpu_template: ",
        ),
        (
            "PUT",
            "/entropy",
            r#"{"rate_limiter": 1}"#,
            "rate_limiter: ",
        ),
        (
            "PUT",
            "/serial",
            r#"{"serial_out_path": 1}"#,
            "serial_out_path: ",
        ),
        (
            "PATCH",
            "/options",
            r#"{"cpus": 2, "memroy": "1G"}"#,
            "memory",
        ),
        (
            "PATCH",
            "/options",
            r#"{"cpus": 2, "memory": "1K"}"#,
            "memory",
        ),
        ("PATCH", "/options", r#"{"cpus": 2} {}"#, "trailing"),
        ("PATCH", "/vm", r#"{"state": "Paused"}"#, "before starting"),
        ("PATCH", "/vm", r#"{"state": "Running"}"#, "state: "),
        (
            "PUT",
            "/actions",
            r#"{"action_type": "InstanceStart"}"#,
            "kernel_image_path: ",
        ),
        (
            "PUT",
            "/actions",
            r#"{"action_type": "SendCtrlAltDel"}"#,
            "before starting",
        ),
        (
            "PUT",
            "/actions",
            r#"{"action_type": "Fly"}"#,
            "action_type: ",
        ),
        ("GET", "/vm", "", "before starting"),
        ("GET", "/version", "{}", "body"),
        ("DELETE", "/vm", "", "GET, PATCH"),
        ("PUT", "/logger", r#"{"level": "Loud"}"#, "level: "),
        (
            "PUT",
            "/logger",
            r#"{"log_path": "/no/such"}"#,
            "log_path: ",
        ),
        (
            "PUT",
            "/logger",
            r#"{"show_log_origin": 1}"#,
            "show_log_origin: ",
        ),
        ("PUT", "/logger", r#"{"module": 1}"#, "module: "),
        ("PUT", "/vsock", "{}", "guest_cid: "),
        ("PUT", "/vsock", r#"{"guest_cid": 3}"#, "uds_path: "),
        ("PUT", "/snapshot/load", "{}", "snapshot_path: "),
    ] {
        refused(&mut routes, (method, path, body), 400, why);
    }
    for path in ["/no", "/vm/no", "/versions", "//version", "version"] {
        refused(&mut routes, ("GET", path, ""), 404, "/vm/config");
    }
}

#[test]
fn every_listed_path_has_its_methods_and_no_others() {
    let (mut routes, _orders) = routes();
    for (path, methods) in routes::PATHS {
        for method in ["GET", "PUT", "PATCH", "DELETE", "POST"] {
            let body = if method == "GET" { "" } else { "[]" };
            let answer = ask(&mut routes, method, path, body);
            let is_unknown =
                answer.is_err_and(|fault| fault.message.contains("is not possible on"));
            let is_listed = methods.split(", ").any(|listed| listed == method);
            assert_eq!(is_unknown, !is_listed, "{method} {path}");
        }
    }
}

/// Requests that are almost right.
fn requests() -> impl Strategy<Value = Vec<(usize, &'static str, String)>> {
    let method = prop::sample::select(vec!["GET", "PUT", "PATCH", "DELETE"]);
    let field = prop::sample::select(vec![
        "kernel_image_path",
        "boot_args",
        "vcpu_count",
        "mem_size_mib",
        "smt",
        "state",
        "action_type",
        "cpus",
        "memory",
        "rng",
    ]);
    let value = prop::sample::select(vec![
        "1",
        "64",
        "\"64M\"",
        "true",
        "null",
        "\"Paused\"",
        "\"InstanceStart\"",
        "\"/dev/null\"",
        "[]",
        "{}",
        "\"\"",
    ]);
    let body = prop::collection::vec((field, value), 0..4).prop_map(|entries| {
        let entries = entries
            .iter()
            .map(|(field, value)| format!("\"{field}\": {value}"));
        format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
    });
    let body = prop_oneof![4 => body, 1 => "\\PC{0,20}", 1 => Just(String::new())];
    prop::collection::vec((0..routes::PATHS.len(), method, body), 0..20)
}

proptest! {
    /// Whatever clients send before the start, the description stays possible, and only an accepted request changes it.
    #[test]
    fn no_sequence_of_requests_leads_to_an_impossible_description(requests in requests()) {
        let (mut routes, orders) = routes();
        // Nothing runs machines here: a start finds its other end gone.
        drop(orders);
        for (path, method, body) in requests {
            let before = get(&mut routes, "/options");
            let answer = ask(&mut routes, method, routes::PATHS[path].0, &body);
            let after = get(&mut routes, "/options");
            if answer.is_err() || method == "GET" {
                prop_assert_eq!(&after, &before);
            }
            let spec = after.to_string();
            let draft = crate::config::Draft::default().read_json(&spec);
            prop_assert!(draft.unwrap().finish_partly().is_ok(), "{}", spec);
        }
    }
}
