// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests to a machine that never starts, and a server with real sockets. No KVM.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use proptest::prelude::*;
use serde_json::Value;

use super::http::{Answer, Data, Request};
use super::server::Handler;
use super::*;
use crate::config::VmSpec;
use crate::vmm::{Orders, deaf};

/// A machine without a kernel, and the end that would run it.
fn routes() -> (Routes, Orders) {
    let (remote, orders) = deaf();
    let spec = VmSpec::new("");
    let machine = Machine::new(remote, Model::new(spec, ""));
    let identity = Settings::new("").identity;
    (Routes { identity, machine }, orders)
}

fn ask(routes: &mut Routes, method: &str, path: &str, body: &str) -> Answer {
    routes.handle(Request {
        method,
        path,
        body: body.as_bytes(),
        stays: true,
    })
}

#[track_caller]
fn get(routes: &mut Routes, path: &str) -> Value {
    match ask(routes, "GET", path, "") {
        Ok(Some(Data::Json(value))) => value,
        other => panic!("{path}: {other:?}"),
    }
}

#[track_caller]
fn done(routes: &mut Routes, method: &str, path: &str, body: &str) {
    assert_eq!(ask(routes, method, path, body), Ok(None), "{path}");
}

/// Checks that a request is refused with `status`, that the message contains `why`, and that nothing changed.
#[track_caller]
fn refused(routes: &mut Routes, request: (&str, &str, &str), status: u16, why: &str) {
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
            "vcpu_count or mem_size_mib",
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
            r#"{"track_dirty_pages": true}"#,
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
            r#"{"rate_limiter": {}}"#,
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
            r#"{"show_log_origin": true}"#,
            "show_log_origin: ",
        ),
        ("PUT", "/logger", r#"{"module": "api"}"#, "module: "),
        ("PUT", "/vsock", "{}", "/vsock: "),
        ("PUT", "/snapshot/load", "{}", "/snapshot/load: "),
    ] {
        refused(&mut routes, (method, path, body), 400, why);
    }
    for path in ["/no", "/vm/no", "/versions", "//version", "version"] {
        refused(&mut routes, ("GET", path, ""), 404, "/vm/config");
    }
}

#[test]
fn drives_come_in_the_guests_order_and_the_root_is_named() {
    let (mut routes, _orders) = routes();
    let (_file, path) = kernel();
    let put = |routes: &mut Routes, id: &str, rest: &str| {
        let body = format!(r#"{{"drive_id": "{id}", "path_on_host": "{path}", {rest}}}"#);
        done(routes, "PUT", &format!("/drives/{id}"), &body);
    };
    put(&mut routes, "data", r#""is_root_device": false"#);
    let limiter = r#""rate_limiter": {"bandwidth": {"size": 1000, "refill_time": 100}, "ops": {"size": 1, "refill_time": 10000, "one_time_burst": 0}}"#;
    put(
        &mut routes,
        "root",
        &format!(r#""is_root_device": true, "is_read_only": true, "io_engine": "Sync", {limiter}"#),
    );
    let disks = get(&mut routes, "/options")["disk"].clone();
    assert_eq!(
        (&disks[0]["readonly"], &disks[1]["readonly"]),
        (&true.into(), &false.into())
    );
    assert_eq!(
        (&disks[0]["bandwidth"], &disks[0]["iops"]),
        (&"10000".into(), &1.into())
    );
    let drives = get(&mut routes, "/vm/config")["drives"].clone();
    assert_eq!(
        (&drives[0]["drive_id"], &drives[1]["drive_id"]),
        (&"root".into(), &"data".into())
    );
    assert_eq!(drives[0]["rate_limiter"]["bandwidth"]["size"], 10_000);
    let boot = format!(r#"{{"kernel_image_path": "{path}", "boot_args": "a"}}"#);
    done(&mut routes, "PUT", "/boot-source", &boot);
    let line = |routes: &Routes| routes.machine.model().complete().unwrap().cmdline;
    assert_eq!(line(&routes), "a root=/dev/vda ro");
    // The same ID is the same disk, with all that is said now.
    put(
        &mut routes,
        "root",
        r#""is_root_device": true, "partuuid": "0eaa91a0-01""#,
    );
    assert_eq!(line(&routes), "a root=PARTUUID=0eaa91a0-01 rw");
    assert_eq!(
        get(&mut routes, "/options")["disk"]
            .as_array()
            .unwrap()
            .len(),
        2
    );

    let body = |rest: &str| format!(r#"{{"path_on_host": "{path}", {rest}}}"#);
    let not_root = body(r#""is_root_device": false"#);
    for (at, body, why) in [
        (
            "/drives/two",
            body(r#""is_root_device": true"#),
            "is_root_device: ",
        ),
        (
            "/drives/two",
            body(r#""is_read_only": true"#),
            "is_root_device: ",
        ),
        (
            "/drives/two",
            body(r#""is_root_device": false, "drive_id": "one""#),
            "drive_id: ",
        ),
        ("/drives/a-b", not_root.clone(), "drive_id: "),
        ("/drives/a/b", not_root.clone(), "drive_id: "),
        ("/drives/\u{e9}", not_root.clone(), "drive_id: "),
        (
            "/drives/two",
            r#"{"path_on_host": "/no/such", "is_root_device": false}"#.into(),
            "path_on_host: ",
        ),
        (
            "/drives/two",
            body(r#""is_root_device": false, "cache_type": "Fast""#),
            "cache_type: ",
        ),
        (
            "/drives/two",
            body(r#""is_root_device": false, "io_engine": 1"#),
            "io_engine: ",
        ),
        (
            "/drives/two",
            body(r#""is_root_device": false, "socket": "s""#),
            "socket: ",
        ),
        (
            "/drives/root",
            body(r#""is_root_device": true, "partuuid": "a b""#),
            "partuuid: ",
        ),
        (
            "/drives/two",
            body(r#""is_root_device": false, "rate_limiter": {"ops": {"size": 1}}"#),
            "rate_limiter: ops: refill_time: ",
        ),
        (
            "/drives/two",
            body(
                r#""is_root_device": false, "rate_limiter": {"ops": {"size": 1, "refill_time": 1, "one_time_burst": 1}}"#,
            ),
            "one_time_burst",
        ),
    ] {
        refused(&mut routes, ("PUT", at, &body), 400, why);
    }
    for (at, body, why) in [
        ("/drives/none", "{}", "drive_id: "),
        (
            "/drives/root",
            r#"{"path_on_host": "/other"}"#,
            "path_on_host: ",
        ),
        ("/drives/root", r#"{"rate_limiter": {}}"#, "rate_limiter: "),
        ("/drives/root", "{}", "before starting"),
    ] {
        refused(&mut routes, ("PATCH", at, body), 400, why);
    }
    // Our own options replace all disks.
    done(&mut routes, "PATCH", "/options", r#"{"disk": []}"#);
    assert_eq!(
        get(&mut routes, "/vm/config")["drives"],
        Value::Array(Vec::new())
    );
}

#[test]
fn networks_are_taps_with_a_name() {
    let (mut routes, _orders) = routes();
    let body = |rest: &str| format!(r#"{{"host_dev_name": "tap0", {rest}}}"#);
    let limiter = r#"{"bandwidth": {"size": 500, "refill_time": 500}}"#;
    let whole = body(&format!(
        r#""iface_id": "eth0", "guest_mac": "06:00:ac:10:00:02", "mtu": 1400, "rx_rate_limiter": {limiter}, "tx_rate_limiter": {limiter}"#
    ));
    done(&mut routes, "PUT", "/network-interfaces/eth0", &whole);
    let options = get(&mut routes, "/options");
    let net = &options["net"][0];
    assert_eq!((&net["tap"], &net["mtu"]), (&"tap0".into(), &1400.into()));
    assert_eq!(
        (&net["mac"], &net["bandwidth"]),
        (&"06:00:ac:10:00:02".into(), &"1000".into())
    );
    let nets = get(&mut routes, "/vm/config")["network-interfaces"].clone();
    assert_eq!(
        (&nets[0]["iface_id"], &nets[0]["host_dev_name"]),
        (&"eth0".into(), &"tap0".into())
    );
    for (at, body, why) in [
        ("eth1", body(r#""iface_id": "eth1""#), "host_dev_name: "),
        ("eth0", body(r#""iface_id": "eth1""#), "iface_id: "),
        (
            "eth0",
            r#"{"guest_mac": "06:00:ac:10:00:02"}"#.to_owned(),
            "host_dev_name: ",
        ),
        ("eth0", body(r#""guest_mac": "06:00""#), "guest_mac: "),
        (
            "eth0",
            body(r#""guest_mac": "01:00:5e:00:00:01""#),
            "guest_mac: ",
        ),
        ("eth0", body(r#""mtu": 67"#), "mtu: "),
        ("eth0", body(r#""mtu": 65536"#), "mtu: "),
        (
            "eth0",
            body(&format!(r#""rx_rate_limiter": {limiter}"#)),
            "tx_rate_limiter: ",
        ),
        (
            "eth0",
            body(r#""rx_rate_limiter": {"ops": 1}"#),
            "rx_rate_limiter: ops: ",
        ),
        (
            "eth0",
            body(r#""allow_mmds_requests": true"#),
            "allow_mmds_requests: ",
        ),
    ] {
        refused(
            &mut routes,
            ("PUT", &format!("/network-interfaces/{at}"), &body),
            400,
            why,
        );
    }
    refused(
        &mut routes,
        ("PATCH", "/network-interfaces/eth0", "{}"),
        400,
        "PUT",
    );
}

#[test]
fn a_config_file_is_the_bodies_of_requests() {
    let (_file, path) = kernel();
    let mut model = Model::firecracker(false);
    let empty = r#""balloon": null, "network-interfaces": [], "vsock": null"#;
    let good = format!(
        r#"{{"boot-source": {{"kernel_image_path": "{path}", "boot_args": "a"}},
        "drives": [{{"drive_id": "r", "path_on_host": "{path}", "is_root_device": true}}],
        "machine-config": {{"vcpu_count": 2, "mem_size_mib": 64}}, "entropy": {{}}, {empty}}}"#
    );
    model.apply(good.as_bytes()).unwrap();
    let spec = model.finish().unwrap();
    assert_eq!(spec.cmdline, "a pci=off root=/dev/vda rw");
    assert_eq!((spec.cpus, spec.memory, spec.rng), (2, 64 << 20, true));
    for (text, why) in [
        ("{", "not JSON"),
        (r#"{"vsock": {}}"#, "vsock: "),
        (
            r#"{"network-interfaces": [{}]}"#,
            "network-interfaces: iface_id: ",
        ),
        (r#"{"drives": {}}"#, "drives: "),
        (r#"{"drives": [{}]}"#, "drives: drive_id: "),
        (
            r#"{"machine-config": {"vcpu_count": 2, "mem_size_mib": 1}}"#,
            "machine-config: mem_size_mib: ",
        ),
        (
            r#"{"machine-config": {"vcpu_count": 3, "mem_size_mib": 64}, "x": 1}"#,
            "x: ",
        ),
    ] {
        let before = model.whole();
        let fault = model.apply(text.as_bytes()).unwrap_err();
        assert!(fault.message.contains(why), "{text}: {fault:?}");
        assert_eq!(model.whole(), before);
    }
    let error = model
        .read_config(Path::new("/no/such"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/no/such") && error.contains("name a JSON file"),
        "{error}"
    );
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

/// A server at a socket, with the end that would run its machine.
fn serve() -> (Api, Orders, PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api");
    let (remote, orders) = deaf();
    let api = Api::serve(
        Settings::new(&path),
        Model::new(VmSpec::new(""), ""),
        remote,
    )
    .unwrap();
    (api, orders, path, dir)
}

/// Reads one answer. Its body, if any, is JSON.
fn read_answer(client: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    let head = String::from_utf8(answer).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    client.read_exact(&mut body).unwrap();
    head + std::str::from_utf8(&body).unwrap()
}

const VERSION: &[u8] = b"GET /version HTTP/1.0\r\n\r\n";

#[test]
fn clients_do_not_disturb_each_other() {
    let (api, _orders, path, _dir) = serve();
    let connect = || UnixStream::connect(&path).unwrap();
    // One is silent, one stops within its request, one reads nothing, one is gone, one sends garbage.
    let _silent = connect();
    let mut stuck = connect();
    stuck
        .write_all(b"PUT /boot-source HTTP/1.1\r\nContent-Len")
        .unwrap();
    let mut deaf = connect();
    deaf.set_nonblocking(true).unwrap();
    while deaf.write(&VERSION.repeat(100)).is_ok() {}
    connect()
        .write_all(b"PUT /entropy HTTP/1.1\r\nContent-Length: 2\r\n\r\n")
        .unwrap();
    let mut garbage = connect();
    garbage.write_all(&[0xff; 100_000]).unwrap_or_default();
    let mut client = connect();
    for _ in 0..10 {
        client.write_all(VERSION).unwrap();
        let answer = read_answer(&mut client);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains(API_VERSION));
    }
    let mut rest = String::new();
    let _ = garbage.read_to_string(&mut rest);
    assert!(
        rest.is_empty() || rest.starts_with("HTTP/1.1 400 "),
        "{rest}"
    );
    drop(api);
    assert!(!path.exists(), "the socket is removed at the end");
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn idle_clients_make_room_for_new_ones() {
    let (_api, _orders, path, _dir) = serve();
    let mut clients: Vec<_> = (0..300)
        .map(|_| UnixStream::connect(&path).unwrap())
        .collect();
    let last = clients.last_mut().unwrap();
    last.write_all(VERSION).unwrap();
    assert!(read_answer(last).contains(API_VERSION));
    assert_eq!(
        clients[0].read(&mut [0]).unwrap_or(0),
        0,
        "the first made room"
    );
}

#[test]
fn a_path_that_is_taken_is_refused_with_the_next_step() {
    let (_api, _orders, path, _dir) = serve();
    let at = |path: &Path| {
        let (remote, _orders) = deaf();
        let api = Api::serve(Settings::new(path), Model::new(VmSpec::new(""), ""), remote);
        api.unwrap_err().to_string()
    };
    assert!(at(&path).contains("another process listens"));
    let stale = path.with_file_name("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(at(&stale).contains("remove it"));
    assert!(stale.exists(), "a stale socket is left alone");
    assert!(at(&path.with_file_name("no/such")).contains("choose another path"));
}

#[test]
fn a_stop_ends_a_process_that_waits() {
    let (_api, orders, path, _dir) = serve();
    let run = thread::spawn(move || orders.run().unwrap());
    let mut client = UnixStream::connect(&path).unwrap();
    let stop = b"PUT /actions HTTP/1.1\r\nContent-Length: 22\r\n\r\n{\"action_type\":\"Stop\"}";
    client.write_all(stop).unwrap();
    assert!(read_answer(&mut client).starts_with("HTTP/1.1 204 No Content"));
    assert_eq!(run.join().unwrap(), crate::outcome::Outcome::Stopped);
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(read_answer(&mut client).contains("has ended"));
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

#[test]
fn metrics_are_scraped_in_every_state_and_flushed_once_there_is_a_file() {
    let (mut routes, _orders) = routes();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics");
    let flush = ("PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#);
    refused(&mut routes, flush, 400, "there is no file for metrics");
    for (body, why) in [
        ("{}", "metrics_path: this field is missing"),
        (r#"{"metrics_path": 1}"#, "metrics_path: 1 is not the path"),
        (
            r#"{"metrics_path": "/nonexistent/m"}"#,
            "metrics_path: /nonexistent/m: metrics can't be written",
        ),
        (
            r#"{"metrics_path": "m", "x": 1}"#,
            "x: there is no such field",
        ),
    ] {
        refused(&mut routes, ("PUT", "/metrics", body), 400, why);
    }
    let body = serde_json::json!({ "metrics_path": path }).to_string();
    done(&mut routes, "PUT", "/metrics", &body);
    let whole = get(&mut routes, "/vm/config");
    assert_eq!(whole["metrics"]["metrics_path"], path.to_str().unwrap());
    let Ok(Some(Data::Metrics(text))) = ask(&mut routes, "GET", "/metrics", "") else {
        panic!("no metrics");
    };
    let requests = r#"mini_vmm_api_requests_total{method="PUT",path="/metrics"} 5"#;
    let failures = r#"mini_vmm_api_request_failures_total{method="PUT",path="/metrics"} 4"#;
    assert!(text.lines().any(|line| line == requests), "{text}");
    assert!(text.lines().any(|line| line == failures), "{text}");
}
