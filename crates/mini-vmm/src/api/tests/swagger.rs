// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every field of Firecracker's API: known here, or refused by name. `docs/api.md` says which.

use super::*;
use crate::api::playground::Playground;

/// Firecracker 1.17's operations with bodies: method, path, what a body needs, and all fields.
const OPERATIONS: [(&str, &str, &str, &str); 20] = [
    ("PUT", "/actions", "", "action_type"),
    (
        "PUT",
        "/boot-source",
        r#""kernel_image_path": "FILE""#,
        "boot_args initrd_path kernel_image_path",
    ),
    (
        "PUT",
        "/cpu-config",
        "",
        "kvm_capabilities cpuid_modifiers msr_modifiers reg_modifiers vcpu_features",
    ),
    (
        "PUT",
        "/drives/a",
        r#""path_on_host": "FILE", "is_root_device": false"#,
        "drive_id partuuid is_root_device cache_type is_read_only path_on_host rate_limiter io_engine socket",
    ),
    (
        "PATCH",
        "/drives/a",
        "",
        "drive_id path_on_host rate_limiter",
    ),
    ("PUT", "/entropy", "", "rate_limiter"),
    (
        "PUT",
        "/logger",
        "",
        "level log_path show_level show_log_origin module",
    ),
    (
        "PUT",
        "/machine-config",
        r#""vcpu_count": 1, "mem_size_mib": 64"#,
        "cpu_template smt mem_size_mib track_dirty_pages vcpu_count huge_pages",
    ),
    (
        "PATCH",
        "/machine-config",
        r#""vcpu_count": 1"#,
        "cpu_template smt mem_size_mib track_dirty_pages vcpu_count huge_pages",
    ),
    (
        "PUT",
        "/metrics",
        r#""metrics_path": "FILE""#,
        "metrics_path emit_id properties",
    ),
    (
        "PUT",
        "/mmds/config",
        r#""network_interfaces": ["a"]"#,
        "version network_interfaces ipv4_address imds_compat",
    ),
    (
        "PUT",
        "/network-interfaces/a",
        r#""host_dev_name": "tap0""#,
        "guest_mac host_dev_name iface_id mtu rx_rate_limiter tx_rate_limiter",
    ),
    (
        "PATCH",
        "/network-interfaces/a",
        "",
        "iface_id rx_rate_limiter tx_rate_limiter",
    ),
    ("PUT", "/serial", "", "serial_out_path rate_limiter"),
    ("PATCH", "/vm", "", "state"),
    ("PUT", "/vsock", "", "guest_cid uds_path vsock_id"),
    (
        "PUT",
        "/balloon",
        r#""amount_mib": 0, "deflate_on_oom": true"#,
        "amount_mib deflate_on_oom stats_polling_interval_s free_page_hinting free_page_reporting",
    ),
    ("PATCH", "/balloon", "", "amount_mib"),
    (
        "PATCH",
        "/balloon/statistics",
        "",
        "stats_polling_interval_s",
    ),
    ("PATCH", "/balloon/hinting/start", "", "acknowledge_on_stop"),
];

/// Paths that this version does not have.
const ABSENT: [(&str, &str); 5] = [
    ("GET", "/hotplug/memory"),
    ("PUT", "/hotplug/memory"),
    ("PATCH", "/hotplug/memory"),
    ("PUT", "/pmem/a"),
    ("PATCH", "/pmem/a"),
];

#[test]
fn each_field_is_known_or_refused_by_name() {
    let (_file, file) = kernel();
    let mut machine = Playground::default();
    let served = machine.served();
    let drive = format!(r#"{{"path_on_host": "{file}", "is_root_device": false}}"#);
    done(served, "PUT", "/drives/a", &drive);
    let net = r#"{"host_dev_name": "tap0"}"#;
    done(served, "PUT", "/network-interfaces/a", net);
    for (method, path, needed, fields) in OPERATIONS {
        let needed = format!("{{{}}}", needed.replace("FILE", &file));
        for field in fields.split(' ') {
            let mut body: Value = serde_json::from_str(&needed).unwrap();
            body[field] = serde_json::json!([[]]);
            let fault = ask(served, method, path, &body.to_string()).unwrap_err();
            let name = format!("{method} {path} {field}: {fault:?}");
            let is_absent = fault.message.starts_with(&format!("{path}: "));
            assert!(
                is_absent || fault.message.starts_with(&format!("{field}: ")),
                "{name}"
            );
            assert!(!fault.message.contains("there is no such field"), "{name}");
            assert_eq!(fault.status, 400, "{name}");
        }
    }
    for (method, path) in ABSENT {
        let body = if method == "GET" { "" } else { "{}" };
        let fault = ask(served, method, path, body).unwrap_err();
        let name = format!("{method} {path}: {fault:?}");
        assert!(
            fault.message.contains("this version does not have it"),
            "{name}"
        );
        assert_eq!(fault.status, 400, "{name}");
    }
}
