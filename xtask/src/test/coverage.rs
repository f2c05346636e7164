// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Line coverage, compared with the value in `coverage_config_x86_64.json`.
//!
//! It uses rustc's own instrumentation and the LLVM tools of rustc's LLVM version: rustup's if installed, otherwise
//! Debian's. Tests that need /dev/kvm are skipped, so that the number is the same on every machine.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::LONG;
use super::parts::TESTS;
use super::summary::Tally;
use crate::build;
use crate::packages;
use crate::process::{capture_ok, capture_text, capture_watched, last_lines, read, show};
use crate::workspace::{Scratch, TARGET, root};

const CONFIG: &str = "coverage_config_x86_64.json";

/// The allowed difference between measured and recorded coverage, in percentage points.
const TOLERANCE: f64 = 0.5;

/// Measures and compares.
pub fn check() -> Result<Tally> {
    let (profdata, cov) = match tools() {
        Ok(tools) => tools,
        // Root installs missing packages, so this is a failure.
        Err(error) if packages::is_root() => return Err(error.context("no matching LLVM tools")),
        Err(error) => return Ok(Tally::skip(format!("no matching LLVM tools: {error:#}"))),
    };
    let config: Value = serde_json::from_slice(&read(&root().join(CONFIG))?)
        .with_context(|| format!("{CONFIG} is no JSON"))?;
    let recorded = config["coverage_score"]
        .as_f64()
        .with_context(|| format!("{CONFIG} has no coverage_score"))?;
    let exclude = config["exclude_path"].as_str().unwrap_or_default();
    let scratch = Scratch::new()?;
    let objects = run_instrumented(&scratch)?;
    let profile = scratch.path("merged.profdata");
    let raw = fs::read_dir(scratch.path("raw"))?.flatten();
    let mut merge = Command::new(profdata);
    // A program that a test killed, or limited in file size, may have left an incomplete profile.
    merge.args(["merge", "-sparse", "-failure-mode=all", "-o"]);
    merge.arg(&profile);
    capture_ok(merge.args(raw.map(|entry| entry.path())))?;
    let mut export = Command::new(cov);
    export.args(["export", "-summary-only", "-instr-profile"]);
    export.arg(&profile);
    for pattern in ["/rustc/", r"/\.cargo/registry/", exclude] {
        if !pattern.is_empty() {
            export.arg(format!("-ignore-filename-regex={pattern}"));
        }
    }
    for object in &objects {
        export.arg("-object").arg(object);
    }
    let measured = percent(&capture_ok(&mut export)?)?;
    Ok(compare(measured, recorded))
}

fn compare(measured: f64, recorded: f64) -> Tally {
    if (measured - recorded).abs() <= TOLERANCE {
        return Tally::pass();
    }
    let verb = if measured < recorded { "fell" } else { "rose" };
    Tally::fail(format!(
        "line coverage {verb} from {recorded:.1} to {measured:.1} %: {}\"coverage_score\": {measured:.1} in {CONFIG}",
        if measured < recorded {
            "add tests, or write "
        } else {
            "write "
        }
    ))
}

/// The total line coverage in what `llvm-cov export` prints.
fn percent(export: &[u8]) -> Result<f64> {
    let export: Value = serde_json::from_slice(export).context("llvm-cov printed no JSON")?;
    export["data"][0]["totals"]["lines"]["percent"]
        .as_f64()
        .context("llvm-cov printed no line coverage")
}

/// Builds the tests with instrumentation and runs them; returns the programs that ran.
fn run_instrumented(scratch: &Scratch) -> Result<Vec<PathBuf>> {
    let raw = scratch.path("raw");
    fs::create_dir(&raw)?;
    let wrapper = std::env::current_exe().context("xtask has no path")?;
    let build = build::tests(|command| {
        command.args(["--exclude", "xtask", "--exclude", "bench-probe"]);
        // Only the workspace's crates are instrumented. The dependencies are shared with the other tests.
        command.env("RUSTC_WORKSPACE_WRAPPER", &wrapper);
        command.env(AS_RUSTC, "1");
        // Otherwise the workspace's build scripts would be counted too.
        command.env("LLVM_PROFILE_FILE", "/dev/null");
    })?;
    let mut objects = build.programs;
    for test in build.tests {
        let mut command = Command::new(&test.path);
        command.current_dir(&test.directory);
        command.env("CARGO_MANIFEST_DIR", &test.directory);
        command.env("MINI_VMM_NO_KVM", "1").env(LONG, "0");
        command.env("LLVM_PROFILE_FILE", raw.join("%p-%m.profraw"));
        let watched = capture_watched(&command, TESTS)?;
        let how = match watched.end {
            Ok(status) if status.success() => None,
            Ok(status) => Some(format!("failed ({status})")),
            Err(hang) => Some(hang.to_string()),
        };
        if let Some(how) = how {
            let said = last_lines(&watched.text, 60);
            bail!("{} {how}; its last lines:\n{said}", show(&command));
        }
        objects.push(test.path);
    }
    Ok(objects)
}

/// If set, cargo started xtask in place of rustc. A shell script can't be used, because shells drop variables such as
/// `CARGO_BIN_EXE_mini-vmm`, which are no valid names there.
pub const AS_RUSTC: &str = "XTASK_AS_RUSTC";

/// Executes rustc with instrumentation. Returns only if that fails.
pub fn become_rustc() -> io::Error {
    let mut arguments = std::env::args_os().skip(1);
    let rustc = arguments.next().unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command.args(arguments).args(["-C", "instrument-coverage"]);
    command.exec()
}

/// llvm-profdata and llvm-cov of rustc's LLVM version.
fn tools() -> Result<(PathBuf, PathBuf)> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let print = |arguments: &[&str]| capture_text(Command::new(&rustc).args(arguments));
    let sysroot = print(&["--print", "sysroot"])?;
    let rustup = Path::new(&sysroot)
        .join("lib/rustlib")
        .join(TARGET)
        .join("bin");
    if rustup.join("llvm-cov").is_file() {
        return Ok((rustup.join("llvm-profdata"), rustup.join("llvm-cov")));
    }
    let version = llvm_major(&print(&["-vV"])?).context("rustc names no LLVM version")?;
    let [profdata, cov] = ["profdata", "cov"].map(|tool| format!("llvm-{tool}-{version}"));
    packages::require(&[(&cov, &format!("llvm-{version}"))])?;
    Ok((profdata.into(), cov.into()))
}

fn llvm_major(verbose_version: &str) -> Option<u32> {
    let line = verbose_version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_fail_beyond_the_tolerance() {
        assert_eq!(compare(90.4, 90.0), Tally::pass());
        assert_eq!(compare(89.6, 90.0), Tally::pass());
        let fell = compare(89.0, 90.0).failures;
        assert!(fell[0].contains("fell from 90.0 to 89.0"), "{fell:?}");
        let rose = compare(91.0, 90.0).failures;
        assert!(
            rose[0].contains("write \"coverage_score\": 91.0"),
            "{rose:?}"
        );
    }

    #[test]
    fn versions_and_percentages_are_found() {
        assert_eq!(llvm_major("rustc 1.95.0\nLLVM version: 22.1.2\n"), Some(22));
        assert_eq!(llvm_major("rustc 1.95.0"), None);
        let export = br#"{"data":[{"totals":{"lines":{"count":10,"percent":87.5}}}]}"#;
        assert_eq!(percent(export).unwrap(), 87.5);
        assert!(percent(b"{}").is_err());
    }
}
