// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests that the workspace declares one Rust version, and that dependencies need no newer one. (Clippy's
//! `incompatible_msrv` checks our own code's use of the standard library.)

use serde_json::Value;

use crate::process::read;
use crate::workspace::{metadata, root};

/// `1.88` or `1.88.0` as numbers.
fn numbers(version: &str) -> [u32; 3] {
    let mut numbers = version.split('.').map(|number| number.parse().unwrap());
    [(); 3].map(|()| numbers.next().unwrap_or(0))
}

fn manifest(path: &str) -> toml::Table {
    let text = read(&root().join(path)).unwrap();
    toml::from_str(&String::from_utf8(text).unwrap()).unwrap()
}

/// The workspace's declared version.
fn declared() -> String {
    let workspace = &manifest("Cargo.toml")["workspace"]["package"];
    workspace["rust-version"].as_str().unwrap().to_owned()
}

#[test]
fn every_dependency_is_content_with_it() {
    let declared = declared();
    let packages = metadata().unwrap()["packages"].as_array().unwrap();
    let too_new: Vec<String> = packages
        .iter()
        .filter_map(|package| Some((&package["name"], package["rust_version"].as_str()?)))
        .filter(|(_, version)| numbers(version) > numbers(&declared))
        .map(|(name, version)| format!("{name} needs Rust {version}"))
        .collect();
    assert!(too_new.is_empty(), "{declared} is declared: {too_new:?}");
    assert!(packages.len() > 20);
}

#[test]
fn it_is_declared_once_and_documented() {
    let declared = declared();
    let metadata = metadata().unwrap();
    let members = metadata["workspace_members"].as_array().unwrap();
    let is_ours = |package: &&Value| members.contains(&package["id"]);
    let packages = metadata["packages"].as_array().unwrap();
    for package in packages.iter().filter(is_ours) {
        let path = package["manifest_path"].as_str().unwrap();
        let version = &manifest(path)["package"]["rust-version"];
        let inherits = version.get("workspace").and_then(toml::Value::as_bool);
        assert_eq!(inherits, Some(true), "{path}");
    }
    // Separate workspaces, which can't inherit it.
    for path in [
        "clients/Cargo.toml",
        "fuzz/Cargo.toml",
        "guest/bare/Cargo.toml",
    ] {
        let version = &manifest(path)["package"]["rust-version"];
        assert_eq!(version.as_str(), Some(declared.as_str()), "{path}");
    }
    let readme = String::from_utf8(read(&root().join("README.md")).unwrap()).unwrap();
    let text = format!("Rust toolchain ({declared} or later)");
    assert!(readme.contains(&text), "README.md lacks '{text}'");
}

#[test]
fn versions_compare_by_number() {
    assert!(numbers("1.100") > numbers("1.88.1"));
    assert_eq!(numbers("1.85"), numbers("1.85.0"));
}
