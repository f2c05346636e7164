// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Debian packages: programs that are needed here, and files that are only unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{capture, capture_ok, has_program, step};
use crate::workspace::{Scratch, cache_dir};

/// A program, or a file by its absolute path, and the package that brings it.
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

/// Makes sure that every program of `needs` is there: root installs what is missing, others are
/// told the command that does.
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

/// apt-get, which waits for another one to end, and tries again where a server fails.
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
    // The lists may be missing or stale: update only when the first try fails.
    if capture(&mut install)?.status.success() {
        return Ok(());
    }
    update()?;
    capture_ok(&mut install).map(drop)
}

/// Refreshes apt's lists.
fn update() -> Result<()> {
    if !is_root() {
        bail!("apt's package lists are missing or stale; run: sudo apt-get update");
    }
    let mut update = apt_get();
    update.args(["update", "-qq"]);
    update.env("DEBIAN_FRONTEND", "noninteractive");
    capture_ok(&mut update).map(drop)
}

/// The packages whose name matches the extended regular expression `pattern`; the lists are
/// refreshed when there is none.
pub fn names_matching(pattern: &str) -> Result<Vec<String>> {
    let search = || -> Result<Vec<String>> {
        let output = capture_ok(Command::new("apt-cache").args(["search", "-n", pattern]))?;
        let text = String::from_utf8_lossy(&output);
        let names = text.lines().filter_map(|line| line.split(' ').next());
        Ok(names.map(str::to_owned).collect())
    };
    let names = search()?;
    if !names.is_empty() || !is_root() {
        return Ok(names);
    }
    step("refreshing apt's package lists", update)?;
    search()
}

/// Downloads `package` and unpacks it to the cache as `name`; nothing is installed. Returns where.
pub fn unpack(package: &str, name: &str) -> Result<PathBuf> {
    unpack_all(&[package], name)
}

/// As [`unpack`], for packages that belong into one tree.
pub fn unpack_all(packages: &[&str], name: &str) -> Result<PathBuf> {
    let place = cache_dir()?.join(name);
    let scratch = Scratch::new()?;
    step(
        &format!("fetching {}", packages.join(", ")),
        || -> Result<()> {
            let tree = scratch.path("tree");
            for package in packages {
                let deb = download(package, &scratch)?;
                capture_ok(Command::new("dpkg").arg("-x").arg(&deb).arg(&tree))?;
                // So that the next one's is the only one.
                fs::remove_file(&deb)?;
            }
            // The rename comes last, so that a cached tree is a whole one.
            fs::rename(&tree, &place).with_context(|| format!("can't make {}", place.display()))
        },
    )?;
    Ok(place)
}

/// Downloads `package` to `scratch` and returns its file there.
fn download(package: &str, scratch: &Scratch) -> Result<PathBuf> {
    let mut download = apt_get();
    download.args(["download", "-qq", package]);
    download.current_dir(scratch.path(""));
    if !capture(&mut download)?.status.success() {
        update()?;
        capture_ok(&mut download)?;
    }
    let debs = fs::read_dir(scratch.path(""))?;
    debs.flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download {package} left no package"))
}
