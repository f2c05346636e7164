// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The parts of `cargo xtask test` that run on the host.

use std::process::Command;

use anyhow::Result;
use serde_json::Value;

use super::libtest;
use super::summary::Tally;
use super::{Run, beds, coverage, licenses};
use crate::build::{Kind, TestBinary, statically};
use crate::host;
use crate::packages;
use crate::process::{capture, capture_ok};
use crate::workspace::{cargo, metadata};

/// A part of the test run.
#[derive(Debug)]
pub struct Part {
    /// Its name on the command line.
    pub name: &'static str,
    /// Whether it takes less than a minute once everything is built.
    pub quick: bool,
    /// Runs it.
    pub run: fn(&mut Run),
}

/// All parts, in order: what fails fast comes first.
#[rustfmt::skip]
pub const PARTS: &[Part] = &[
    Part { name: "format", quick: true, run: format },
    Part { name: "licenses", quick: true, run: licenses },
    Part { name: "clippy", quick: true, run: clippy },
    Part { name: "docs", quick: true, run: docs },
    Part { name: "unit", quick: true, run: unit },
    Part { name: "doctests", quick: true, run: doctests },
    Part { name: "integration", quick: true, run: integration },
    Part { name: "amd", quick: false, run: beds::amd },
    Part { name: "intel", quick: false, run: beds::intel },
    Part { name: "coverage", quick: false, run: coverage },
];

fn format(run: &mut Run) {
    run.row("format", "host", || {
        capture_ok(cargo().args(["fmt", "--all", "--check"]))?;
        Ok(Tally::pass())
    });
}

fn licenses(run: &mut Run) {
    run.row("licenses", "host", licenses::check);
}

fn coverage(run: &mut Run) {
    run.row("coverage", "host", coverage::check);
}

fn clippy(run: &mut Run) {
    run.row("clippy", "host", || {
        let mut all = cargo();
        all.args(["clippy", "--workspace", "--all-targets", "--all-features"]);
        capture_ok(all.args(["--", "-D", "warnings"]))?;
        for library in libraries_with_features()? {
            let mut bare = cargo();
            bare.args(["clippy", "--package", &library, "--no-default-features"]);
            capture_ok(bare.args(["--", "-D", "warnings"]))?;
        }
        Ok(Tally::pass())
    });
}

/// The workspace's library packages that have default features, which must build without them.
fn libraries_with_features() -> Result<Vec<String>> {
    let metadata = metadata()?;
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    let is_ours = |package: &Value| {
        let members = metadata["workspace_members"].as_array();
        members.is_some_and(|members| members.contains(&package["id"]))
    };
    Ok(packages
        .iter()
        .filter(|package| is_ours(package) && package["features"]["default"].is_array())
        .filter_map(|package| package["name"].as_str().map(str::to_owned))
        .collect())
}

fn docs(run: &mut Run) {
    run.row("docs", "host", || {
        let mut doc = cargo();
        doc.args(["doc", "--workspace", "--no-deps", "--all-features"]);
        capture_ok(doc.env("RUSTDOCFLAGS", "-D warnings"))?;
        Ok(Tally::pass())
    });
}

fn doctests(run: &mut Run) {
    run.row("doc tests", "host", || {
        let mut command = cargo();
        command.args(["test", "--doc", "--workspace", "--all-features"]);
        statically(&mut command);
        without_kvm_if_unusable(&mut command);
        let (text, success) = run_captured(&mut command)?;
        Ok(libtest::count("doc tests", &text, success))
    });
}

fn unit(run: &mut Run) {
    // Without the compiler of ACPI tables their test skips, and says so.
    if let Err(error) = packages::require(&[("iasl", "acpica-tools")]) {
        eprintln!("xtask: {error:#}");
    }
    host_tests(run, "unit tests", Kind::Unit);
}

fn integration(run: &mut Run) {
    host_tests(run, "integration tests", Kind::Integration);
}

fn host_tests(run: &mut Run, part: &str, kind: Kind) {
    let tests = match run.tests() {
        Ok(build) => build.tests.clone(),
        Err(error) => {
            run.row(part, "host", || Err(error));
            return;
        }
    };
    let place = match host::kvm() {
        Ok(()) => "host, /dev/kvm",
        Err(_) => "host, no /dev/kvm",
    };
    run.row(part, place, || {
        let mut tally = Tally::default();
        for test in tests.iter().filter(|test| test.kind == kind) {
            tally.add(on_host(test)?);
        }
        Ok(tally)
    });
}

/// Runs a test executable as `cargo test` does.
fn on_host(test: &TestBinary) -> Result<Tally> {
    let mut command = Command::new(&test.path);
    command.arg("--show-output").current_dir(&test.directory);
    command.env("CARGO_MANIFEST_DIR", &test.directory);
    without_kvm_if_unusable(&mut command);
    let (text, success) = run_captured(&mut command)?;
    Ok(libtest::count(&test.target, &text, success))
}

fn without_kvm_if_unusable(command: &mut Command) {
    if host::kvm().is_err() {
        command.env("MINI_VMM_NO_KVM", "1");
    }
}

fn run_captured(command: &mut Command) -> Result<(String, bool)> {
    let output = capture(command)?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push('\n');
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Ok((text, output.status.success()))
}
