// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Changes of a machine that runs.

use super::*;
use crate::api::playground::Playground;

/// A machine that runs, with a disk in `file` and a network.
fn running(file: &str, options: &str) -> Playground {
    let mut machine = Playground::default();
    let served = machine.served();
    let drive = format!(r#"{{"path_on_host": "{file}", "is_root_device": false}}"#);
    done(served, "PUT", "/drives/a", &drive);
    let net = r#"{"host_dev_name": "tap0"}"#;
    done(served, "PUT", "/network-interfaces/n", net);
    done(served, "PATCH", "/options", options);
    machine.start();
    machine
}

/// A file that can be a disk.
fn image() -> (tempfile::NamedTempFile, String) {
    let (file, path) = kernel();
    file.as_file().set_len(512).unwrap();
    (file, path)
}

#[test]
fn limits_are_merged_and_shown() {
    let (_file, path) = image();
    let mut machine = running(&path, "{}");
    let served = machine.served();
    let patch = |served: &mut Served, at: &str, limiter: &str| {
        done(served, "PATCH", at, &format!("{{{limiter}}}"));
        get(served, "/vm/config")
    };
    let both = r#""rate_limiter": {"bandwidth": {"size": 10, "refill_time": 100}, "ops": {"size": 5, "refill_time": 1000}}"#;
    patch(served, "/drives/a", both);
    let off = r#""rate_limiter": {"bandwidth": {"size": 0, "refill_time": 0}}"#;
    let config = patch(served, "/drives/a", off);
    let limiter = &config["drives"][0]["rate_limiter"];
    assert!(limiter["bandwidth"].is_null());
    assert_eq!(limiter["ops"]["size"], 5);
    patch(
        served,
        "/network-interfaces/n",
        &both.replace("rate", "rx_rate"),
    );
    let config = patch(
        served,
        "/network-interfaces/n",
        &off.replace("rate", "tx_rate"),
    );
    let net = &config["network-interfaces"][0];
    assert_eq!(net["rx_rate_limiter"]["bandwidth"]["size"], 10);
    assert!(net["tx_rate_limiter"].is_null());
    let options = get(served, "/options");
    assert_eq!(options["disk"][0]["iops"], "5/1000+0");
    assert_eq!(options["net"][0]["rx-iops"], "5/1000+0");
    for (at, body, why) in [
        (
            "/network-interfaces/m",
            "{}",
            "iface_id: there is no \"m\"; the networks are: n",
        ),
        (
            "/network-interfaces/n",
            r#"{"host_dev_name": "t"}"#,
            "host_dev_name: there is no such",
        ),
        (
            "/network-interfaces/n",
            r#"{"tx_rate_limiter": {"ops": {}}}"#,
            "tx_rate_limiter: ops: size: ",
        ),
        (
            "/drives/a",
            r#"{"is_read_only": true}"#,
            "is_read_only: there is no such",
        ),
    ] {
        refused(served, ("PATCH", at, body), 400, why);
    }
}

#[test]
fn another_image_is_opened_by_the_rules_of_the_start() {
    let (_file, path) = image();
    let (_other, other) = image();
    let (_log, log) = image();
    let metrics = format!(r#"{{"metrics": "{log}"}}"#);
    let mut machine = running(&path, &metrics);
    let served = machine.served();
    let body = |path: &str| format!(r#"{{"path_on_host": "{path}"}}"#);
    done(served, "PATCH", "/drives/a", &body(&path));
    assert_eq!(get(served, "/options")["disk"][0]["path"], path);
    let empty = tempfile::NamedTempFile::new().unwrap();
    for (path, why) in [
        ("/no/such", "path_on_host: \"/no/such\" can't be read"),
        (
            "/dev/null",
            "path_on_host: the disk image \"/dev/null\" is a character device",
        ),
        (
            empty.path().to_str().unwrap(),
            "path_on_host: the disk image",
        ),
        (&log, "path_on_host: this process writes its log"),
    ] {
        refused(served, ("PATCH", "/drives/a", &body(path)), 400, why);
    }
    done(served, "PATCH", "/drives/a", &body(&other));
    assert_eq!(get(served, "/options")["disk"][0]["path"], other);

    for (options, why) in [
        (
            r#"{"sealed": true}"#.to_owned(),
            "a sealed machine has started",
        ),
        (
            format!(r#"{{"disk": [{{"path": "{path}", "overlay": "tmp"}}]}}"#),
            "only a raw image",
        ),
        (
            format!(r#"{{"disk": [{{"path": "{path}"}}, {{"path": "{other}"}}]}}"#),
            "are one file",
        ),
    ] {
        let mut machine = running(&path, &options);
        let id = if options.contains("disk") {
            "disk0"
        } else {
            "a"
        };
        let at = format!("/drives/{id}");
        refused(machine.served(), ("PATCH", &at, &body(&other)), 400, why);
    }
}
