// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Drives, networks, metrics and config files.

use super::*;

#[test]
fn drives_come_in_the_guests_order_and_the_root_is_named() {
    let (mut routes, _orders) = routes();
    let (_file, path) = kernel();
    let put = |routes: &mut Served, id: &str, rest: &str| {
        let body = format!(r#"{{"drive_id": "{id}", "path_on_host": "{path}", {rest}}}"#);
        done(routes, "PUT", &format!("/drives/{id}"), &body);
    };
    put(&mut routes, "data", r#""is_root_device": false"#);
    let limiter = r#""rate_limiter": {"bandwidth": {"size": 1000, "refill_time": 100, "one_time_burst": 7}, "ops": {"size": 1, "refill_time": 10000, "one_time_burst": 0}}"#;
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
        (&"1000/100+7".into(), &"1/10000+0".into())
    );
    let drives = get(&mut routes, "/vm/config")["drives"].clone();
    assert_eq!(
        (&drives[0]["drive_id"], &drives[1]["drive_id"]),
        (&"root".into(), &"data".into())
    );
    assert_eq!(
        drives[0]["rate_limiter"]["bandwidth"],
        serde_json::json!({"size": 1000, "refill_time": 100, "one_time_burst": 7})
    );
    assert_eq!(
        (&disks[0]["engine"], &disks[1]["engine"]),
        (&"sync".into(), &"auto".into())
    );
    assert_eq!(
        (&drives[0]["io_engine"], &drives[1]["io_engine"]),
        (&"Sync".into(), &"Async".into())
    );
    assert_eq!(drives[0]["cache_type"], "Writeback");
    let boot = format!(r#"{{"kernel_image_path": "{path}", "boot_args": "a"}}"#);
    done(&mut routes, "PUT", "/boot-source", &boot);
    let line = |served: &Served| served.routes.machine.model().complete().unwrap().cmdline;
    assert_eq!(line(&routes), "a root=/dev/vda ro");
    // The same ID is the same disk, with all that is said now.
    put(
        &mut routes,
        "root",
        r#""is_root_device": true, "partuuid": "0eaa91a0-01""#,
    );
    assert_eq!(line(&routes), "a root=PARTUUID=0eaa91a0-01 rw");
    put(
        &mut routes,
        "data",
        r#""is_root_device": false, "io_engine": "Async", "cache_type": "Unsafe""#,
    );
    let data = get(&mut routes, "/options")["disk"][1].clone();
    assert_eq!(
        (&data["engine"], &data["cache"]),
        (&"async".into(), &"unsafe".into())
    );
    assert_eq!(
        get(&mut routes, "/vm/config")["drives"][1]["cache_type"],
        "Unsafe"
    );
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
                r#""is_root_device": false, "rate_limiter": {"ops": {"size": 1, "refill_time": 1, "one_time_burst": -1}}"#,
            ),
            "one_time_burst",
        ),
    ] {
        refused(&mut routes, ("PUT", at, &body), 400, why);
    }
    for (at, body, why) in [
        ("/drives/none", "{}", "before starting"),
        ("/network-interfaces/none", "{}", "before starting"),
        (
            "/drives/root",
            r#"{"rate_limiter": {"ops": 1}}"#,
            "rate_limiter: ops: ",
        ),
        (
            "/drives/root",
            r#"{"path_on_host": "/other"}"#,
            "before starting",
        ),
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
        (&"06:00:ac:10:00:02".into(), &"500/500+0".into())
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
    // Each direction has its own limits.
    let one = body(&format!(r#""rx_rate_limiter": {limiter}"#));
    done(&mut routes, "PUT", "/network-interfaces/eth0", &one);
    let options = get(&mut routes, "/options");
    let net = &options["net"][0];
    assert_eq!(net["rx-bandwidth"], "500/500+0");
    assert!(net["bandwidth"].is_null() && net["tx-bandwidth"].is_null());
    let nets = get(&mut routes, "/vm/config")["network-interfaces"].clone();
    assert_eq!(nets[0]["rx_rate_limiter"]["bandwidth"]["size"], 500);
    assert!(nets[0]["tx_rate_limiter"].is_null());
}

#[test]
fn random_numbers_and_the_console_have_limits() {
    let (mut routes, _orders) = routes();
    let bucket = r#"{"size": 1000, "refill_time": 100, "one_time_burst": 5}"#;
    let body = format!(r#"{{"rate_limiter": {{"bandwidth": {bucket}}}}}"#);
    done(&mut routes, "PUT", "/entropy", &body);
    done(
        &mut routes,
        "PUT",
        "/serial",
        &format!(r#"{{"rate_limiter": {bucket}}}"#),
    );
    let options = get(&mut routes, "/options");
    assert_eq!(options["rng"], "bandwidth=1000/100+5");
    assert_eq!(options["serial-bandwidth"], "1000/100+5");
    let shown = get(&mut routes, "/vm/config")["entropy"].clone();
    assert_eq!(shown["rate_limiter"]["bandwidth"]["one_time_burst"], 5);
    // What is shown can be given, and without a limiter there is none.
    done(&mut routes, "PUT", "/entropy", &shown.to_string());
    done(&mut routes, "PUT", "/entropy", "{}");
    done(&mut routes, "PUT", "/serial", "{}");
    let options = get(&mut routes, "/options");
    assert_eq!(
        (&options["rng"], &options["serial-bandwidth"]),
        (&"on".into(), &"off".into())
    );
    for (at, limiter) in [
        ("/entropy", r#"{"ops": {"size": 1}}"#),
        ("/serial", r#"{"size": 1}"#),
    ] {
        let body = format!(r#"{{"rate_limiter": {limiter}}}"#);
        refused(&mut routes, ("PUT", at, &body), 400, "rate_limiter: ");
    }
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
    assert_eq!(
        (spec.cpus, spec.memory, spec.rng.is_some()),
        (2, 64 << 20, true)
    );
    for (text, why) in [
        ("{", "not JSON"),
        (r#"{"vsock": {}}"#, "vsock: guest_cid: "),
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
