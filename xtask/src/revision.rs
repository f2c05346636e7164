// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Other revisions of the repository, and their builds of mini-vmm.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::build;
use crate::process::{capture_ok, capture_text, copy, step};
use crate::workspace::{Scratch, TARGET, cache_dir, cargo, root};

/// A commit, by its full name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision(String);

impl Revision {
    /// The commit that `name` means to git: a hash, a branch, `HEAD~3`.
    ///
    /// # Errors
    /// There is none, or no git repository.
    pub fn named(name: &str) -> Result<Revision> {
        let commit = format!("{name}^{{commit}}");
        let hash = git(&["rev-parse", "--verify", "--end-of-options"], &commit)?;
        Ok(Revision(hash))
    }

    /// The newest first-parent commit that is a day older than the newest one, to compare today's work with.
    ///
    /// # Errors
    /// There is none, as in a shallow clone, or no git repository.
    pub fn of_yesterday() -> Result<Revision> {
        let newest: u64 = git(&["log", "-1", "--format=%ct"], "HEAD")?
            .parse()
            .context("git gave a commit no time")?;
        let before = format!("--before={}", newest.saturating_sub(24 * 60 * 60));
        let hash = git(&["rev-list", "-1", "--first-parent", &before], "HEAD")?;
        if hash.is_empty() {
            anyhow::bail!("no commit here is a day older than the newest one");
        }
        Ok(Revision(hash))
    }

    /// Its static release build of mini-vmm, built once, in a separate directory, so that it doesn't disturb this
    /// build.
    ///
    /// # Errors
    /// It does not build.
    pub fn mini_vmm(&self) -> Result<PathBuf> {
        let place = cache_dir()?.join(format!("mini-vmm-{}", self.0));
        if place.is_file() {
            return Ok(place);
        }
        let scratch = Scratch::new()?;
        let what = format!("building mini-vmm of {}", &self.0[..12.min(self.0.len())]);
        step(&what, || self.build(&scratch.path(""), &place))
            .with_context(|| format!("revision {} does not build", self.0))?;
        Ok(place)
    }

    fn build(&self, source: &Path, place: &Path) -> Result<()> {
        let archive = source.join("source.tar");
        let mut command = Command::new("git");
        command.current_dir(root()).args(["archive", "--output"]);
        capture_ok(command.arg(&archive).arg(&self.0))?;
        let mut tar = Command::new("tar");
        tar.arg("-xf").arg(&archive).arg("-C").arg(source);
        capture_ok(&mut tar)?;
        let mut command = cargo();
        command.current_dir(source);
        command.args(["build", "--release", "--locked", "--package", "mini-vmm"]);
        let target = cache_dir()?.join("revisions");
        command.env("CARGO_TARGET_DIR", &target);
        build::statically(&mut command);
        capture_ok(&mut command)?;
        let built = target.join(TARGET).join("release/mini-vmm");
        // Moved in one step, or a partial file would count as built.
        let copied = source.join("mini-vmm.built");
        copy(&built, &copied)?;
        fs::rename(&copied, place).with_context(|| format!("can't make {}", place.display()))
    }
}

/// git's output without the line's end.
fn git(words: &[&str], revision: &str) -> Result<String> {
    let mut command = Command::new("git");
    capture_text(command.current_dir(root()).args(words).arg(revision))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_are_found_by_name_where_there_is_a_repository() {
        let Ok(head) = Revision::named("HEAD") else {
            eprintln!("SKIP: revisions_are_found_by_name_where_there_is_a_repository: no git");
            return;
        };
        assert_eq!(head.0.len(), 40);
        assert_eq!(Revision::named(&head.0).unwrap(), head);
        assert!(Revision::named("no such branch").is_err());
        assert!(Revision::named("--all").is_err());
        for no_commit in ["deadbeef".repeat(5).as_str(), "HEAD:Cargo.toml"] {
            assert!(Revision::named(no_commit).is_err(), "{no_commit}");
        }
    }
}
