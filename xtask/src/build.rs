// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Builds of the workspace's crates.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process::{capture_ok, step};
use crate::workspace::{TARGET, cache_dir, cargo, root, target_dir};

/// Links statically, because the beds' root file system has no C library.
const STATIC: &str = "-C target-feature=+crt-static";

/// Makes `command` build static binaries. The explicit target keeps the flag off build scripts and
/// procedural macros.
pub fn statically(command: &mut Command) -> &mut Command {
    command
        .args(["--target", TARGET])
        .env("RUSTFLAGS", STATIC)
        .env("RUSTDOCFLAGS", STATIC)
}

/// The static release binary of mini-vmm.
pub fn mini_vmm() -> Result<PathBuf> {
    static_release("mini-vmm")
}

/// Builds the static release binary of a package, which has the package's name. Returns its path.
fn static_release(package: &str) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--release", "--package", package]);
    statically(&mut command);
    let built = step(&format!("building {package}"), || capture_ok(&mut command));
    built.with_context(|| format!("{package} does not build"))?;
    Ok(target_dir()?.join(TARGET).join("release").join(package))
}

/// A cargo command for the example guest in `guest/bare`, which is a separate workspace.
pub fn bare_cargo(subcommand: &[&str]) -> Result<Command> {
    let mut command = cargo();
    command.current_dir(root().join("guest/bare"));
    // Its own configuration has its flags.
    command.env_remove("RUSTFLAGS");
    command.args(subcommand);
    command.env("CARGO_TARGET_DIR", cache_dir()?.join("bare"));
    Ok(command)
}

/// A cargo command for the tests in `clients`, which is a separate workspace.
pub fn clients_cargo(subcommand: &[&str]) -> Result<Command> {
    let mut command = cargo();
    command.current_dir(root().join("clients"));
    command.args(subcommand);
    command.env("CARGO_TARGET_DIR", cache_dir()?.join("clients"));
    Ok(command)
}

/// A program of `clients/examples`.
pub fn client(name: &str) -> Result<PathBuf> {
    let mut command = clients_cargo(&["build", "--locked", "--example", name])?;
    step(&format!("building {name}"), || capture_ok(&mut command))
        .with_context(|| format!("{name} does not build"))?;
    Ok(cache_dir()?.join("clients/debug/examples").join(name))
}

/// The example guest in `guest/bare`, an ELF file that mini-vmm boots.
pub fn bare_guest() -> Result<PathBuf> {
    let mut command = bare_cargo(&["build", "--release", "--locked"])?;
    step("building guest/bare", || capture_ok(&mut command))
        .context("guest/bare does not build")?;
    let release = format!("bare/{TARGET}/release/bare-guest");
    Ok(cache_dir()?.join(release))
}

/// The static release binary of the bench's probe.
pub fn bench_probe() -> Result<PathBuf> {
    static_release("bench-probe")
}

/// What a test executable was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The unit tests of a library or a binary.
    Unit,
    /// A file of `tests/`.
    Integration,
}

/// One test executable.
#[derive(Clone, Debug)]
pub struct TestBinary {
    /// Its package.
    pub package: String,
    /// Its target: the crate, or the file of `tests/`.
    pub target: String,
    /// What it was made from.
    pub kind: Kind,
    /// The executable.
    pub path: PathBuf,
    /// The package's directory, where tests run.
    pub directory: PathBuf,
}

/// The test executables that `cargo test` would run, and the programs that integration tests start.
#[derive(Clone, Debug, Default)]
pub struct TestBuild {
    /// The test executables.
    pub tests: Vec<TestBinary>,
    /// The workspace's own programs.
    pub programs: Vec<PathBuf>,
}

/// Builds the tests of the workspace, statically, with all features. `prepare` may change the
/// command.
pub fn tests(prepare: impl FnOnce(&mut Command)) -> Result<TestBuild> {
    let mut command = cargo();
    command.args(["test", "--no-run", "--workspace", "--all-features"]);
    command.args(["--message-format", "json-render-diagnostics"]);
    statically(&mut command);
    prepare(&mut command);
    parse_messages(&capture_ok(&mut command)?)
}

/// Reads cargo's JSON messages (The Cargo Book, "External tools").
fn parse_messages(messages: &[u8]) -> Result<TestBuild> {
    let mut build = TestBuild::default();
    for line in messages.split(|&byte| byte == b'\n') {
        // Build scripts and procedural macros may print other lines.
        let Ok(message) = serde_json::from_slice::<Value>(line) else {
            continue;
        };
        let Some(executable) = message["executable"].as_str() else {
            continue;
        };
        let target = &message["target"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let kinds = target["kind"].as_array().cloned().unwrap_or_default();
        let is = |kind: &str| kinds.iter().any(|value| value == kind);
        if message["profile"]["test"] != true {
            if is("bin") {
                build.programs.push(executable.into());
            }
            continue;
        }
        let manifest = PathBuf::from(text(&message["manifest_path"]));
        let directory = manifest.parent().context("a package has no directory")?;
        build.tests.push(TestBinary {
            package: directory
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
            target: text(&target["name"]),
            kind: if is("test") {
                Kind::Integration
            } else {
                Kind::Unit
            },
            path: executable.into(),
            directory: directory.to_owned(),
        });
    }
    build
        .tests
        .sort_by(|a, b| (&a.package, &a.target, &a.path).cmp(&(&b.package, &b.target, &b.path)));
    Ok(build)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_tests_and_programs() {
        let messages = br#"warning: not JSON
{"reason":"compiler-artifact","executable":null,"target":{"kind":["lib"],"name":"a"},"profile":{"test":false}}
{"reason":"compiler-artifact","executable":"/t/kvm-1","manifest_path":"/w/a/Cargo.toml","target":{"kind":["test"],"name":"kvm"},"profile":{"test":true}}
{"reason":"compiler-artifact","executable":"/t/a-1","manifest_path":"/w/a/Cargo.toml","target":{"kind":["lib"],"name":"a"},"profile":{"test":true}}
{"reason":"compiler-artifact","executable":"/t/a","manifest_path":"/w/a/Cargo.toml","target":{"kind":["bin"],"name":"a"},"profile":{"test":false}}
{"reason":"build-finished","success":true}
"#;
        let build = parse_messages(messages).unwrap();
        assert_eq!(build.programs, [PathBuf::from("/t/a")]);
        let named: Vec<_> = build
            .tests
            .iter()
            .map(|test| (test.target.as_str(), test.kind, test.package.as_str()))
            .collect();
        assert_eq!(
            named,
            [("a", Kind::Unit, "a"), ("kvm", Kind::Integration, "a")]
        );
        assert_eq!(build.tests[0].directory, PathBuf::from("/w/a"));
    }
}
