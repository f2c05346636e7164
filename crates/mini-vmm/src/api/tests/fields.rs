// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! CPU templates, and the log.

use super::*;

/// A template that hides AVX2, which is a bit of leaf 7.
const NO_AVX2: &str = r#"{"cpuid_modifiers": [{"leaf": "0x7", "subleaf": "0x0", "flags": 1,
    "modifiers": [{"register": "ebx", "bitmap": "0bx0xxxxx"}]}]}"#;

#[test]
fn a_template_is_cpu_features() {
    let (mut routes, _orders) = routes();
    let nothing = get(&mut routes, "/vm/config")["cpu-config"].clone();
    assert!(nothing.is_null());
    let first = r#"{"cpuid_modifiers": [{"leaf": "1", "subleaf": "0", "flags": 0,
        "modifiers": [{"register": "ecx", "bitmap": "0b0"}]}], "kvm_capabilities": []}"#;
    done(&mut routes, "PUT", "/cpu-config", first);
    let features = |routes: &mut Served| get(routes, "/options")["cpu-features"].to_string();
    assert_eq!(features(&mut routes), r#"["-pni"]"#);
    done(&mut routes, "PUT", "/cpu-config", NO_AVX2);
    assert_eq!(features(&mut routes), r#"["-avx2"]"#);
    let shown = get(&mut routes, "/vm/config")["cpu-config"].clone();
    assert_eq!(shown["cpuid_modifiers"][0]["leaf"], "0x7");
    // What is shown can be given.
    done(&mut routes, "PUT", "/cpu-config", &shown.to_string());
    let bad = NO_AVX2.replace("0bx0", "0b00");
    refused(
        &mut routes,
        ("PUT", "/cpu-config", &bad),
        400,
        "cpuid_modifiers: bitmap: bit 6 of",
    );
    // The last one to say it decides.
    done(
        &mut routes,
        "PATCH",
        "/options",
        r#"{"cpu-features": ["-avx"]}"#,
    );
    assert!(get(&mut routes, "/vm/config")["cpu-config"].is_null());
    assert_eq!(features(&mut routes), r#"["-avx"]"#);
}

#[test]
fn a_template_of_a_config_file_is_there_or_in_a_file_of_its_own() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), NO_AVX2).unwrap();
    let path = serde_json::json!(file.path()).to_string();
    for value in [NO_AVX2, &path] {
        let mut model = Model::new(VmSpec::new("vmlinux"), "");
        model
            .apply(format!(r#"{{"cpu-config": {value}}}"#).as_bytes())
            .unwrap();
        assert_eq!(model.options().unwrap()["cpu-features"][0], "-avx2");
    }
    for (value, why) in [
        (r#""/no/such""#, "cpu-config: \"/no/such\": can't be read"),
        ("1", "cpu-config: 1 is not"),
        (
            r#"{"cpuid_modifiers": [1]}"#,
            "cpu-config: cpuid_modifiers: ",
        ),
    ] {
        let mut model = Model::new(VmSpec::new("vmlinux"), "");
        let fault = model
            .apply(format!(r#"{{"cpu-config": {value}}}"#).as_bytes())
            .unwrap_err();
        assert!(fault.message.starts_with(why), "{fault:?}");
    }
}

#[test]
fn what_is_said_about_the_log_adds_up() {
    let (mut routes, _orders) = routes();
    for body in [
        r#"{"module": "mini_vmm::api", "show_level": false}"#,
        r#"{"show_log_origin": true}"#,
    ] {
        done(&mut routes, "PUT", "/logger", body);
    }
    let logger = get(&mut routes, "/vm/config")["logger"].clone();
    assert_eq!(logger["module"], "mini_vmm::api");
    assert_eq!(
        (&logger["show_level"], &logger["show_log_origin"]),
        (&false.into(), &true.into())
    );
    crate::logging::restyle(crate::logging::Style::default());
}

#[test]
fn a_snapshot_is_loaded_before_anything_is_described() {
    let load = r#"{"snapshot_path": "/no/such", "mem_file_path": "/no/such/either"}"#;
    let template = r#"{"cpuid_modifiers": []}"#;
    for (path, body) in [
        (
            "/machine-config",
            r#"{"vcpu_count": 1, "mem_size_mib": 128}"#,
        ),
        ("/entropy", "{}"),
        ("/cpu-config", template),
    ] {
        let (mut routes, _orders) = routes();
        refused(
            &mut routes,
            ("PUT", "/snapshot/load", load),
            400,
            "/no/such",
        );
        done(&mut routes, "PUT", path, body);
        let why = "after configuring boot-specific resources";
        refused(&mut routes, ("PUT", "/snapshot/load", load), 400, why);
    }
}
