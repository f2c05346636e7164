// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The metadata service's document and settings.

use super::*;
use crate::config::{LinkSpec, NetSpec};
use crate::mmds::{self, MmdsSpec, Store, Version};

#[test]
fn a_document_is_put_and_patched_in_every_state() {
    let mut machine = playground::Playground::default();
    let routes = machine.served();
    assert_eq!(get(routes, "/mmds"), serde_json::json!({}));
    let early = ("PATCH", "/mmds", "{}");
    refused(routes, early, 400, "The MMDS data store is not initialized");
    done(routes, "PUT", "/mmds", r#"{"a": {"b": 1, "c": [2]}}"#);
    machine.start();
    let routes = machine.served();
    done(routes, "PATCH", "/mmds/", r#"{"a": {"b": null, "d": 3}}"#);
    let document = serde_json::json!({"a": {"c": [2], "d": 3}});
    assert_eq!(get(routes, "/mmds"), document);
    for body in ["", "{", "{} {}"] {
        for method in ["PUT", "PATCH"] {
            refused(routes, (method, "/mmds", body), 400, "send a JSON object");
        }
    }
    let large = format!(r#"{{"a": "{}"}}"#, "b".repeat(MAX_BODY));
    for method in ["PUT", "PATCH"] {
        refused(routes, (method, "/mmds", &large), 413, "--mmds-size-limit");
    }
    assert_eq!(get(routes, "/mmds"), document);
    done(routes, "PUT", "/mmds", "null");
    assert_eq!(get(routes, "/mmds"), serde_json::json!({}));
    refused(routes, ("DELETE", "/mmds", ""), 400, "use GET, PUT, PATCH");
}

#[test]
fn settings_name_networks_and_an_address() {
    let (mut routes, _orders) = routes();
    let (_file, path) = kernel();
    let boot = format!(r#"{{"kernel_image_path": "{path}"}}"#);
    done(&mut routes, "PUT", "/boot-source", &boot);
    let eth0 = r#"{"network_interfaces": ["eth0"]}"#;
    let put = |body| ("PUT", "/mmds/config", body);
    refused(
        &mut routes,
        put(eth0),
        400,
        "network_interfaces: there is no \"eth0\"",
    );
    assert_eq!(get(&mut routes, "/vm/config")["mmds-config"], Value::Null);
    for (id, tap) in [("eth0", "tap0"), ("eth1", "tap1")] {
        let net = format!(r#"{{"host_dev_name": "{tap}"}}"#);
        done(
            &mut routes,
            "PUT",
            &format!("/network-interfaces/{id}"),
            &net,
        );
    }
    for (body, why) in [
        ("{}", "network_interfaces: this field is missing"),
        (r#"{"network_interfaces": []}"#, "network_interfaces: "),
        (r#"{"network_interfaces": "eth0"}"#, "network_interfaces: "),
        (
            r#"{"network_interfaces": ["eth0", 1]}"#,
            "network_interfaces: ",
        ),
        (
            r#"{"network_interfaces": ["eth0", "eth2"]}"#,
            "no \"eth2\"; the networks are: eth0, eth1",
        ),
        (
            r#"{"network_interfaces": ["eth0"], "version": "V3"}"#,
            "version: ",
        ),
        (
            r#"{"network_interfaces": ["eth0"], "ipv4_address": "10.0.0.1"}"#,
            "ipv4_address: ",
        ),
        (
            r#"{"network_interfaces": ["eth0"], "ipv4_address": "x"}"#,
            "ipv4_address: ",
        ),
        (
            r#"{"network_interfaces": ["eth0"], "imds_compat": 1}"#,
            "imds_compat: ",
        ),
        (
            r#"{"network_interfaces": ["eth0"], "x": 1}"#,
            "x: there is no such field",
        ),
    ] {
        refused(&mut routes, put(body), 400, why);
    }
    let mmds = |routes: &Served| routes.routes.machine.model().complete().unwrap().mmds;
    assert_eq!(mmds(&routes), None);
    done(&mut routes, "PUT", "/mmds/config", eth0);
    let default = mmds(&routes).unwrap();
    assert_eq!((default.version, default.nets), (Version::V1, vec![0]));
    let whole = r#"{"version": "V2", "network_interfaces": ["eth1"], "ipv4_address": "169.254.170.2", "imds_compat": true}"#;
    done(&mut routes, "PUT", "/mmds/config", whole);
    done(&mut routes, "PUT", "/mmds", r#"{"a": 1}"#);
    let spec = mmds(&routes).unwrap();
    assert_eq!(
        (spec.version, spec.nets, spec.imds_compat),
        (Version::V2, vec![1], true)
    );
    assert_eq!(
        (spec.address.octets(), &spec.store.get()["a"]),
        ([169, 254, 170, 2], &1.into())
    );
    let shown = get(&mut routes, "/vm/config")["mmds-config"].clone();
    assert_eq!(shown, serde_json::from_str::<Value>(whole).unwrap());
    // A network that is gone can't lead to the service.
    done(&mut routes, "PATCH", "/options", r#"{"net": []}"#);
    let fault = routes.routes.machine.model().complete().unwrap_err();
    assert!(
        fault.message.starts_with("network_interfaces: "),
        "{fault:?}"
    );
}

#[test]
fn a_config_file_and_a_metadata_file_are_enough() {
    let (file, path) = kernel();
    let mut model = Model::firecracker(false);
    let text = format!(
        r#"{{"mmds-config": {{"network_interfaces": ["a"]}}, "boot-source": {{"kernel_image_path": "{path}"}},
        "network-interfaces": [{{"iface_id": "a", "host_dev_name": "tap0"}}]}}"#
    );
    model.apply(text.as_bytes()).unwrap();
    model.set_mmds_limit(10);
    let mut read = |text: &str| {
        std::fs::write(file.path(), text).unwrap();
        model
            .read_metadata(file.path())
            .map_err(|error| error.to_string())
    };
    for (text, why) in [
        ("{", "is not JSON: "),
        (r#"{"a": "bcdefgh"}"#, "more than 10 bytes"),
        (&" ".repeat(41), "more than 40 bytes"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.contains(&path) && error.contains(why), "{error}");
    }
    read(&format!("{{\"a\":  \"b\"}}{}", " ".repeat(20))).unwrap();
    assert_eq!(model.finish().unwrap().mmds.unwrap().store.get()["a"], "b");
    let error = model
        .read_metadata(Path::new("/no/such"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/no/such") && error.contains("name a JSON file"),
        "{error}"
    );
}

#[test]
fn a_saved_machine_finds_what_its_new_process_stores() {
    let net = |tap: &str| NetSpec::new(LinkSpec::Tap(tap.to_owned()));
    let saved = VmSpec {
        net: vec![net("tap0"), net("tap1")],
        mmds: Some(MmdsSpec {
            version: Version::V2,
            nets: vec![1],
            address: mmds::ADDRESS,
            imds_compat: true,
            store: Store::new(0),
        }),
        ..VmSpec::new("")
    };
    let model = Model::new(saved, "");
    model.put_metadata(serde_json::json!({"a": 1})).unwrap();
    let config = model.whole()["mmds-config"].clone();
    assert_eq!(config["network_interfaces"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&config["version"], &config["imds_compat"]),
        (&"V2".into(), &true.into())
    );
    let service = model.saved().unwrap().mmds.unwrap();
    assert_eq!(
        (service.version, service.nets.as_slice()),
        (Version::V2, &[1][..])
    );
    assert_eq!(*service.store.get(), serde_json::json!({"a": 1}));
}
