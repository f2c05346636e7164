// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Programs that xtask needs, from Debian's packages.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{capture, capture_ok, has_program, step};

/// A program, or a file by its absolute path, and the package that contains it.
pub type Need<'a> = (&'a str, &'a str);

/// Whether xtask may install packages.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

fn is_missing(need: &str) -> bool {
    if need.starts_with('/') {
        !Path::new(need).exists()
    } else {
        !has_program(need)
    }
}

/// Makes sure that every program of `needs` is installed. As root it installs what is missing; otherwise it prints the
/// command that does.
pub fn require(needs: &[Need]) -> Result<()> {
    let mut packages: Vec<&str> = needs
        .iter()
        .filter(|(program, _)| is_missing(program))
        .map(|&(_, package)| package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !is_root() {
        bail!(
            "missing programs; install them with:\n  sudo apt-get update && sudo apt-get install -y --no-install-recommends {list}"
        );
    }
    step(&format!("installing {list}"), || install(&packages))?;
    match needs.iter().find(|(program, _)| is_missing(program)) {
        Some((program, package)) => {
            bail!("package {package} is installed, but {program} is still missing")
        }
        None => Ok(()),
    }
}

/// apt-get, which waits for another running one, and tries again if a server fails.
fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=3"]);
    command
}

/// Installs packages; needs root.
fn install(packages: &[&str]) -> Result<()> {
    let mut install = apt_get();
    install.args(["install", "-y", "-qq", "--no-install-recommends"]);
    install.args(packages);
    install.env("DEBIAN_FRONTEND", "noninteractive");
    // The lists may be missing or stale: update them if the first try fails.
    if capture(&mut install)?.status.success() {
        return Ok(());
    }
    update()?;
    capture_ok(&mut install).map(drop)
}

/// Refreshes apt's lists; needs root.
fn update() -> Result<()> {
    let mut update = apt_get();
    update.args(["update", "-qq"]);
    update.env("DEBIAN_FRONTEND", "noninteractive");
    capture_ok(&mut update).map(drop)
}
