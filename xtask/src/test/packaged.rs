// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests of the published crates: packaged by cargo, and unpacked elsewhere.
//!
//! In the workspace, a test can use files that its package lacks. So the packages' contents are checked, and in the
//! long run their own tests run, from the packages alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::parts::{TESTS, run_counted, without_kvm_if_unusable};
use super::summary::Tally;
use crate::build::statically;
use crate::process::{capture_ok, capture_text, copy, read, write};
use crate::workspace::{Scratch, cache_dir, cargo, metadata, root, sources};

/// Files that each package must have.
const FILES: &[&str] = &[
    "Cargo.toml",
    "CHANGELOG.md",
    "LICENSE-APACHE",
    "LICENSE-BSD-3-Clause",
    "README.md",
];

/// Packages the crates and checks the packages; `long` runs their tests.
pub fn check(long: bool) -> Result<Tally> {
    if !packs_several(&capture_text(cargo().arg("--version"))?) {
        let why = "cargo older than 1.90 packs no crates that depend on one another";
        return Ok(Tally::skip(format!("packages: {why}")));
    }
    let scratch = Scratch::new()?;
    let packages = unpack(&scratch)?;
    let mut tally = Tally::default();
    for (name, place) in &packages {
        let lacks = lacking(place)?;
        tally.add(match lacks.is_empty() {
            true => Tally::pass(),
            false => Tally::fail(format!("{name}: the package lacks {}", lacks.join(", "))),
        });
    }
    if !long {
        tally.left += 1;
        return Ok(tally);
    }
    write(&scratch.path("Cargo.toml"), workspace(&packages))?;
    let lock = root().join("Cargo.lock");
    copy(&lock, &scratch.path("Cargo.lock"))?;
    let mut tests = cargo();
    tests.args(["test", "--workspace", "--all-features", "--no-fail-fast"]);
    statically(&mut tests).current_dir(scratch.path(""));
    // Shows which tests were skipped.
    tests.args(["--", "--show-output"]);
    tests.env("CARGO_TARGET_DIR", cache_dir()?.join("packaged"));
    // These are not debugged, and debug information takes time and space.
    tests.env("CARGO_PROFILE_DEV_DEBUG", "0");
    tests.env("CARGO_INCREMENTAL", "0");
    without_kvm_if_unusable(&mut tests);
    tally.add(run_counted("packages", &tests, TESTS.times(10))?);
    Ok(tally)
}

/// Whether a version such as `cargo 1.90.0 (…)` can package several crates at once.
fn packs_several(version: &str) -> bool {
    let minor = version
        .split_once("cargo 1.")
        .and_then(|(_, rest)| rest.split('.').next()?.parse::<u32>().ok());
    minor.is_none_or(|minor| minor >= 90)
}

/// Packages the crates that can be published, and unpacks them; returns their names and directories.
fn unpack(scratch: &Scratch) -> Result<Vec<(String, PathBuf)>> {
    let metadata = metadata()?;
    let members = metadata["workspace_members"].as_array();
    let all = metadata["packages"].as_array().into_iter().flatten();
    let ours = all.filter(|package| {
        let is_ours = members.is_some_and(|members| members.contains(&package["id"]));
        is_ours && package["publish"] == Value::Null
    });
    let mut pack = cargo();
    pack.args(["package", "--no-verify", "--allow-dirty", "--quiet"]);
    pack.env("CARGO_TARGET_DIR", scratch.path("target"));
    let mut packages = Vec::new();
    for package in ours {
        let [name, version] = ["name", "version"].map(|key| package[key].as_str());
        let name = name.context("a package has no name")?;
        let full = format!("{name}-{}", version.context("a package has no version")?);
        pack.args(["--package", name]);
        packages.push((name.to_owned(), scratch.path(&full)));
    }
    // Uses the network only for dependencies that earlier builds did not need.
    let offline = "CARGO_NET_OFFLINE";
    if capture_ok(pack.env(offline, "true")).is_err() {
        capture_ok(pack.env(offline, "false"))?;
    }
    for (_, place) in &packages {
        let mut archive = place
            .file_name()
            .context("a package has no name")?
            .to_owned();
        archive.push(".crate");
        let mut tar = Command::new("tar");
        tar.arg("-xzf");
        tar.arg(scratch.path("target/package").join(archive));
        capture_ok(tar.arg("-C").arg(scratch.path("")))?;
    }
    ensure!(!packages.is_empty(), "no crate here can be published");
    Ok(packages)
}

/// A workspace of the unpacked packages, which depend on each other instead of the registry's versions.
fn workspace(packages: &[(String, PathBuf)]) -> String {
    let (mut members, mut patches) = (String::new(), String::new());
    for (name, place) in packages {
        members.push_str(&format!("{place:?}, "));
        patches.push_str(&format!("{name} = {{ path = {place:?} }}\n"));
    }
    format!("[workspace]\nresolver = \"3\"\nmembers = [{members}]\n\n[patch.crates-io]\n{patches}")
}

/// The files that an unpacked package lacks.
fn lacking(place: &Path) -> Result<Vec<String>> {
    let missing = FILES.iter().filter(|name| !place.join(name).is_file());
    let mut lacks: Vec<String> = missing.map(|&name| name.to_owned()).collect();
    for source in sources(place)? {
        let text = String::from_utf8_lossy(&read(&source)?).into_owned();
        let directory = source.parent().context("a file has no directory")?;
        for name in included(&text) {
            let file = fs::canonicalize(directory.join(&name)).ok();
            if !file.is_some_and(|file| file.starts_with(place)) {
                lacks.push(format!("{name} (of {})", source.display()));
            }
        }
    }
    Ok(lacks)
}

/// The files that a source includes by name.
fn included(text: &str) -> Vec<String> {
    ["include_str!(\"", "include_bytes!(\"", "#[path = \""]
        .iter()
        .flat_map(|start| text.split(start).skip(1))
        .filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_beside_the_package_is_missed() {
        let scratch = Scratch::new().unwrap();
        let place = scratch.path("p-0.1.0");
        fs::create_dir_all(place.join("src")).unwrap();
        for name in FILES {
            write(&place.join(name), "").unwrap();
        }
        write(&place.join("src/in.txt"), "").unwrap();
        write(&scratch.path("out.txt"), "").unwrap();
        let source = |name: &str| format!("const A: &str = include_str!(\"{name}\");");
        let lacks = |text: String| {
            write(&place.join("src/lib.rs"), text).unwrap();
            lacking(&fs::canonicalize(&place).unwrap()).unwrap()
        };
        assert!(lacks(source("in.txt")).is_empty());
        for name in ["../../out.txt", "none.txt"] {
            let lacks = lacks(source(name));
            assert!(lacks[0].starts_with(name), "{lacks:?}");
        }
        fs::remove_file(place.join("README.md")).unwrap();
        assert_eq!(lacks(source("in.txt")), ["README.md"]);
    }

    #[test]
    fn cargo_is_told_by_its_version() {
        assert!(packs_several("cargo 1.90.0 (840b83a10 2025-07-30)"));
        assert!(packs_several("cargo 1.101.0-nightly"));
        assert!(!packs_several("cargo 1.88.0 (873a06493 2025-05-10)"));
    }

    #[test]
    fn packages_have_one_another() {
        let packages = [("a".to_owned(), PathBuf::from("/x/a-0.1.0"))];
        let text = workspace(&packages);
        let parsed: toml::Table = toml::from_str(&text).unwrap();
        assert_eq!(
            parsed["workspace"]["members"][0].as_str(),
            Some("/x/a-0.1.0")
        );
        let patch = &parsed["patch"]["crates-io"]["a"]["path"];
        assert_eq!(patch.as_str(), Some("/x/a-0.1.0"));
    }
}
