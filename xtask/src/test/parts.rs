// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The parts of `cargo xtask test` that run on the host.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::Value;

use super::libtest;
use super::summary::Tally;
use super::{LONG, Run, beds, coverage, licenses, packaged};
use crate::bed::Vendor;
use crate::build::{Kind, TestBinary, bare_cargo, clients_cargo, mini_vmm, statically};
use crate::packages;
use crate::process::{capture_ok, capture_watched, last_lines};
use crate::watch::Patience;
use crate::workspace::{cargo, metadata};
use crate::{host, kernels, venv};

/// A part of the test run.
#[derive(Debug)]
pub struct Part {
    /// Its name on the command line.
    pub name: &'static str,
    /// Whether it takes less than a minute once everything is built.
    pub quick: bool,
    /// The bed that it needs, if any.
    pub bed: Option<Vendor>,
    /// Runs it.
    pub run: fn(&mut Run),
}

/// The limits for test executables on the host.
pub const TESTS: Patience = Patience::of_work(600);

/// Like [`TESTS`], for documentation tests, which are built while they run.
const DOC_TESTS: Patience = Patience::of_work(1800);

/// All parts in order, fast ones first.
#[rustfmt::skip]
pub const PARTS: &[Part] = &[
    Part { name: "format", quick: true, bed: None, run: format },
    Part { name: "licenses", quick: true, bed: None, run: licenses },
    Part { name: "packages", quick: true, bed: None, run: packages },
    Part { name: "clippy", quick: true, bed: None, run: clippy },
    Part { name: "docs", quick: true, bed: None, run: docs },
    Part { name: "unit", quick: true, bed: None, run: unit },
    Part { name: "doctests", quick: true, bed: None, run: doctests },
    Part { name: "integration", quick: true, bed: None, run: integration },
    Part { name: "clients", quick: false, bed: None, run: clients },
    Part { name: "amd", quick: false, bed: Some(Vendor::Amd), run: beds::amd },
    Part { name: "intel", quick: false, bed: Some(Vendor::Intel), run: beds::intel },
    Part { name: "bench", quick: false, bed: None, run: bench },
    Part { name: "coverage", quick: false, bed: None, run: coverage },
];

fn format(run: &mut Run) {
    run.row("format", "host", || {
        capture_ok(cargo().args(["fmt", "--all", "--check"]))?;
        capture_ok(&mut bare_cargo(&["fmt", "--check"])?)?;
        capture_ok(&mut clients_cargo(&["fmt", "--check"])?)?;
        Ok(Tally::pass())
    });
}

fn licenses(run: &mut Run) {
    run.row("licenses", "host", licenses::check);
}

fn packages(run: &mut Run) {
    let long = run.long;
    run.row("packages", "host", || packaged::check(long));
}

fn coverage(run: &mut Run) {
    run.row("coverage", "host", coverage::check);
}

/// Measurements for information. They fail only if nothing can be measured.
fn bench(run: &mut Run) {
    run.row("bench", "host, /dev/kvm", || {
        if let Err(reason) = host::kvm() {
            return Ok(Tally::skip(format!("bench: {reason}")));
        }
        eprint!("{}", crate::bench::look()?);
        Ok(Tally::pass())
    });
}

fn clippy(run: &mut Run) {
    run.row("clippy", "host", || {
        let mut all = cargo();
        all.args(["clippy", "--workspace", "--all-targets", "--all-features"]);
        capture_ok(all.args(["--", "-D", "warnings"]))?;
        let mut guest = bare_cargo(&["clippy", "--release", "--locked"])?;
        capture_ok(guest.args(["--", "-D", "warnings"]))?;
        for (library, features) in libraries_with_features()? {
            // No features, and each feature alone.
            for feature in [String::new()].iter().chain(&features) {
                let mut bare = cargo();
                bare.args(["clippy", "--package", &library, "--no-default-features"]);
                bare.args(["--features", feature]);
                capture_ok(bare.args(["--", "-D", "warnings"]))?;
            }
        }
        Ok(Tally::pass())
    });
}

/// The workspace's library packages with default features, which must build without them, and their features.
fn libraries_with_features() -> Result<Vec<(String, Vec<String>)>> {
    let metadata = metadata()?;
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    let is_ours = |package: &Value| {
        let members = metadata["workspace_members"].as_array();
        members.is_some_and(|members| members.contains(&package["id"]))
    };
    Ok(packages
        .iter()
        .filter(|package| is_ours(package) && package["features"]["default"].is_array())
        .filter_map(|package| {
            let features = package["features"]["default"].as_array()?.iter();
            let features = features.filter_map(Value::as_str).map(str::to_owned);
            Some((package["name"].as_str()?.to_owned(), features.collect()))
        })
        .collect())
}

fn docs(run: &mut Run) {
    run.row("docs", "host", || {
        for (library, _) in libraries_with_features()? {
            let mut bare = cargo();
            bare.args(["doc", "--package", &library, "--no-deps"]);
            bare.arg("--no-default-features");
            capture_ok(bare.env("RUSTDOCFLAGS", "-D warnings"))?;
        }
        // Last, so that the documentation that remains has all features.
        let mut all = cargo();
        all.args(["doc", "--workspace", "--no-deps", "--all-features"]);
        capture_ok(all.env("RUSTDOCFLAGS", "-D warnings"))?;
        Ok(Tally::pass())
    });
}

fn doctests(run: &mut Run) {
    run.row("doc tests", "host", || {
        let mut command = cargo();
        command.args(["test", "--doc", "--workspace", "--all-features"]);
        statically(&mut command);
        without_kvm_if_unusable(&mut command);
        run_counted("doc tests", &command, DOC_TESTS)
    });
}

fn unit(run: &mut Run) {
    // Without the ACPI compiler, the test of the tables prints SKIP.
    if let Err(error) = packages::require(&[("iasl", "acpica-tools")]) {
        eprintln!("xtask: {error:#}");
    }
    host_tests(run, "unit tests", Kind::Unit);
}

fn integration(run: &mut Run) {
    host_tests(run, "integration tests", Kind::Integration);
}

/// Clients of Firecracker's API, from crates.io and PyPI. mini-vmm itself needs none of these packages.
fn clients(run: &mut Run) {
    run.row("clients", "host, /dev/kvm", || {
        let mut tests = clients_cargo(&["clippy", "--all-targets", "--locked"])?;
        capture_ok(tests.args(["--", "-D", "warnings"]))?;
        if let Err(reason) = host::kvm() {
            return Ok(Tally::skip(format!("clients: {reason}")));
        }
        // Otherwise nobody reads why a test was skipped.
        let mut tests = clients_cargo(&["test", "--locked", "--", "--show-output"])?;
        tests.env("MINI_VMM_BIN", mini_vmm()?);
        tests.env("MINI_VMM_CLIENTS_PYTHON", venv::python()?);
        run_counted("clients", &tests, DOC_TESTS)
    });
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
    let (long, patience) = (run.long, TESTS.times(run.patience()));
    run.row(part, place, || {
        let mut tally = Tally::default();
        // If Debian has none, the test of stock kernels prints SKIP.
        let kernels = match kind {
            Kind::Integration => kernels::image_directory().unwrap_or_else(|error| {
                tally.add(Tally::fail(format!("stock kernels: {error:#}")));
                None
            }),
            Kind::Unit => None,
        };
        for test in tests.iter().filter(|test| test.kind == kind) {
            let end = on_host(test, kernels.as_deref(), long, patience);
            tally.add(end.unwrap_or_else(|error| Tally::fail(format!("{error:#}"))));
        }
        Ok(tally)
    });
}

/// Runs a test executable as `cargo test` does.
fn on_host(
    test: &TestBinary,
    kernels: Option<&Path>,
    long: bool,
    patience: Patience,
) -> Result<Tally> {
    let mut command = Command::new(&test.path);
    command.arg("--show-output").current_dir(&test.directory);
    command.env("CARGO_MANIFEST_DIR", &test.directory);
    if let Some(kernels) = kernels {
        command.env("MINI_VMM_TEST_KERNELS", kernels);
    }
    without_kvm_if_unusable(&mut command);
    command.env(LONG, if long { "1" } else { "0" });
    run_counted(&test.target, &command, patience)
}

pub fn without_kvm_if_unusable(command: &mut Command) {
    if host::kvm().is_err() {
        command.env("MINI_VMM_NO_KVM", "1");
    }
}

/// Runs tests and counts them. A run that hangs is one failure, which names the run.
pub fn run_counted(name: &str, command: &Command, patience: Patience) -> Result<Tally> {
    let watched = capture_watched(command, patience)?;
    Ok(match watched.end {
        Ok(status) => libtest::count(name, &watched.text, status.success()),
        Err(hang) => Tally::fail(format!(
            "{name} {hang}; its last lines:\n{}",
            last_lines(&watched.text, 40)
        )),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn tests_that_hang_are_a_failure_by_name() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo test a ... ok; sleep 60"]);
        let patience = Patience {
            still: Duration::from_millis(200),
            ..TESTS
        };
        let tally = run_counted("kick", &command, patience).unwrap();
        assert_eq!((tally.passed, tally.failures.len()), (0, 1));
        let failure = &tally.failures[0];
        assert!(
            failure.starts_with("kick hung: idle") && failure.contains("test a"),
            "{failure}"
        );
    }
}
