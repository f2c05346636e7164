// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that come and go.

use super::*;
use crate::api::playground::Playground;

/// A machine that runs, with slots for `slots` devices and a disk without one.
fn running(options: &str) -> (Playground, tempfile::NamedTempFile) {
    let (file, path) = image();
    let mut machine = Playground::default();
    let served = machine.served();
    let drive = format!(r#"{{"path_on_host": "{path}", "is_root_device": false}}"#);
    done(served, "PUT", "/drives/first", &drive);
    done(served, "PATCH", "/options", options);
    machine.start();
    (machine, file)
}

fn image() -> (tempfile::NamedTempFile, String) {
    let (file, path) = kernel();
    file.as_file().set_len(512).unwrap();
    (file, path)
}

#[test]
fn disks_come_and_go_by_firecrackers_words_and_ours() {
    let (mut machine, first) = running(r#"{"hotplug": 2}"#);
    let served = machine.served();
    let (_a, a) = image();
    let (_b, b) = image();
    let put = |path: &str| format!(r#"{{"path_on_host": "{path}", "is_root_device": false}}"#);
    for _ in 0..3 {
        done(served, "PUT", "/drives/a", &put(&a));
        let ours = format!(r#"{{"disk": "path={b},readonly"}}"#);
        done(served, "PUT", "/devices/b", &ours);
        let config = get(served, "/vm/config");
        let ids: Vec<_> = (0..3)
            .map(|at| config["drives"][at]["drive_id"].clone())
            .collect();
        assert_eq!(ids, ["first", "a", "b"]);
        let options = get(served, "/options");
        let slots: Vec<_> = (0..3)
            .map(|at| options["disk"][at]["slot"].clone())
            .collect();
        assert_eq!(slots, [Value::Null, 30.into(), 31.into()]);
        let one = first.path().to_str().unwrap();
        for (method, path, body, why) in [
            ("PUT", "/drives/c", put(&a), "all 2 slots"),
            ("PUT", "/drives/a", put(&b), "already"),
            ("DELETE", "/drives/first", String::new(), "has no slot"),
            (
                "DELETE",
                "/drives/none",
                String::new(),
                "the disks are: first, a, b",
            ),
            (
                "DELETE",
                "/devices/none",
                String::new(),
                "the devices are: first, a, b",
            ),
        ] {
            refused(served, (method, path, &body), 400, why);
        }
        done(served, "DELETE", "/drives/a", "");
        refused(served, ("PUT", "/drives/c", &put(one)), 400, "are one file");
        refused(served, ("PUT", "/drives/b", &put(&a)), 400, "already");
        done(served, "DELETE", "/devices/b", r#"{"force": true}"#);
        assert_eq!(get(served, "/options")["disk"].as_array().unwrap().len(), 1);
    }
}

#[test]
fn what_can_not_come_is_refused_and_opens_nothing() {
    let (_a, a) = image();
    let drive = format!(r#"{{"path_on_host": "{a}", "is_root_device": false}}"#);
    let root = format!(r#"{{"path_on_host": "{a}", "is_root_device": true}}"#);
    let ours = format!(r#"{{"disk": "path={a}"}}"#);
    for (options, why) in [
        (
            "{}",
            "not supported after starting the microVM: it has no slots",
        ),
        (r#"{"virtio": "mmio"}"#, "it has no slots"),
        (
            r#"{"hotplug": 1, "sealed": true}"#,
            "a sealed machine has started",
        ),
    ] {
        let (mut machine, _first) = running(options);
        let served = machine.served();
        for (path, body) in [("/drives/a", &drive), ("/devices/a", &ours)] {
            refused(served, ("PUT", path, body), 400, why);
        }
        let net = r#"{"host_dev_name": "tap0"}"#;
        refused(served, ("PUT", "/network-interfaces/a", net), 400, why);
    }
    let (mut machine, _first) = running(r#"{"hotplug": 1}"#);
    let served = machine.served();
    for (path, body, why) in [
        ("/drives/a", &*root, "is_root_device: the guest has started"),
        ("/devices/a", "{}", "give one of disk and net"),
        (
            "/devices/a",
            r#"{"disk": "path=/none"}"#,
            "disk: there is no disk image",
        ),
        ("/devices/a", r#"{"disk": "speed=1"}"#, "disk: "),
        (
            "/devices/a",
            r#"{"net": "fd=0"}"#,
            "net: descriptors are inherited",
        ),
        ("/devices/a", r#"{"net": "tap=no-such-tap"}"#, "net: "),
        ("/devices/a b", &*ours, "is not a name"),
        (
            "/devices/a",
            r#"{"disc": "path=a"}"#,
            "disc: there is no such field",
        ),
    ] {
        refused(served, ("PUT", path, body), 400, why);
    }
    done(served, "PUT", "/devices/a", &ours);
    let mut before = Playground::default();
    let served = before.served();
    refused(
        served,
        ("PUT", "/devices/a", &ours),
        400,
        "before starting the microVM",
    );
    refused(
        served,
        ("DELETE", "/drives/a", ""),
        400,
        "before starting the microVM",
    );
    let mmio = r#"{"hotplug": 1, "virtio": "mmio"}"#;
    refused(
        served,
        ("PATCH", "/options", mmio),
        400,
        "leave out --hotplug",
    );
    refused(
        served,
        ("PATCH", "/options", r#"{"hotplug": 17}"#),
        400,
        "at most 16",
    );
}
