// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The workspace's directories: its root, its target directory, xtask's cache and scratch space.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process::{capture_ok, make_directory};

/// The target triple that static binaries are built for.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The root of the workspace.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        manifest.parent().map(Path::to_owned).unwrap_or(manifest)
    })
}

/// A cargo command that runs in the workspace.
pub fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    // Variables that cargo sets for xtask must not reach the crates that xtask builds.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command.current_dir(root());
    command
}

/// `cargo metadata` of the workspace, with its dependencies.
pub fn metadata() -> Result<&'static Value> {
    static METADATA: OnceLock<Value> = OnceLock::new();
    if let Some(value) = METADATA.get() {
        return Ok(value);
    }
    let mut command = cargo();
    command.args(["metadata", "--format-version", "1", "--all-features"]);
    command.args(["--filter-platform", TARGET]);
    let value = serde_json::from_slice(&capture_ok(&mut command)?)
        .context("cargo metadata printed no JSON")?;
    Ok(METADATA.get_or_init(|| value))
}

/// The workspace's target directory.
pub fn target_dir() -> Result<PathBuf> {
    let target = metadata()?["target_directory"].as_str();
    Ok(PathBuf::from(
        target.context("cargo metadata names no target directory")?,
    ))
}

/// The directory for downloads: `target/xtask`.
pub fn cache_dir() -> Result<PathBuf> {
    let cache = target_dir()?.join("xtask");
    make_directory(&cache)?;
    Ok(cache)
}

/// The Rust files in a directory and below.
pub fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(directory);
    for entry in entries.with_context(|| format!("can't list {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

/// A directory that is removed when this is dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes an empty directory in the cache.
    pub fn new() -> Result<Self> {
        let cache = cache_dir()?;
        remove_leftovers(&cache, &|pid| Path::new(&format!("/proc/{pid}")).exists());
        let path = cache.join(format!("run-{}", nonce()));
        fs::create_dir(&path).with_context(|| format!("can't make {}", path.display()))?;
        Ok(Scratch(path))
    }

    /// The path of `name` in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// Removes the scratch directories of processes that were killed.
fn remove_leftovers(cache: &Path, lives: &dyn Fn(u32) -> bool) {
    let entries = fs::read_dir(cache).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix("run-")?.split_once('-'))
            .and_then(|(pid, _)| u32::from_str_radix(pid, 16).ok());
        if pid.is_some_and(|pid| !lives(pid)) {
            // If it can't be removed, it does no harm in target/.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // If it can't be removed, it does no harm in target/.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A random word that no program prints by accident.
pub fn nonce() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("{:x}-{:x}", std::process::id(), now.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_dead_lose_their_scratch() {
        let scratch = Scratch::new().unwrap();
        for name in ["run-a-1", "run-b-1", "run-x", "linux-6.1"] {
            fs::create_dir(scratch.path(name)).unwrap();
        }
        remove_leftovers(&scratch.path(""), &|pid| pid == 0xb);
        let left = ["run-b-1", "run-x", "linux-6.1"];
        assert!(left.iter().all(|name| scratch.path(name).is_dir()));
        assert!(!scratch.path("run-a-1").exists());
    }
}
