// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Debian's packages: what apt offers here, and trees of unpacked packages in the cache.
//!
//! If the machine's package lists are too old or lack a package, xtask tries again with Debian's newest lists. It keeps
//! its own copy of them, which needs no root and doesn't change the machine's.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use crate::process::{capture_ok, capture_text, make_directory, step};
use crate::whole;
use crate::workspace::{Scratch, cache_dir};

/// Where packages come from.
pub trait Offers {
    /// The packages on the lists whose names match the extended regular expression `pattern`.
    fn names(&self, pattern: &str) -> Result<Vec<String>>;
    /// Downloads `packages` and unpacks them into the directory `tree`.
    fn unpack(&self, packages: &[String], tree: &Path) -> Result<()>;
    /// Whether these are Debian's newest lists.
    fn is_fresh(&self) -> bool;
    /// Fetches Debian's newest lists.
    fn refresh(&mut self) -> Result<()>;
}

/// A tree of unpacked packages.
pub struct Tree<'a> {
    /// Its name in the cache.
    pub name: &'a str,
    /// The packages that may belong to it: an extended regular expression that matches their names.
    pub pattern: &'a str,
    /// Chooses its packages from those that are offered; none if one is missing.
    pub choose: &'a dyn Fn(&[String]) -> Option<Vec<String>>,
}

impl Tree<'_> {
    /// What `open` finds in the cached tree. If the tree is missing, incomplete, or `open` fails, it is fetched first.
    /// None if Debian does not have its packages.
    pub fn cached<T>(&self, open: &dyn Fn(&Path) -> Result<T>) -> Result<Option<T>> {
        let offers = &mut Apt::new();
        self.cached_in(&cache_dir()?, offers, open)
    }

    fn cached_in<T>(
        &self,
        cache: &Path,
        offers: &mut dyn Offers,
        open: &dyn Fn(&Path) -> Result<T>,
    ) -> Result<Option<T>> {
        whole::cached(cache, self.name, &mut |tree| self.fetch(offers, tree), open)
    }

    /// Fetches the packages to the new directory `tree`, and returns their names; none if Debian does not have them.
    fn fetch(&self, offers: &mut dyn Offers, tree: &Path) -> Result<Option<String>> {
        loop {
            let mut failure = None;
            if let Some(packages) = (self.choose)(&offers.names(self.pattern)?) {
                fs::create_dir(tree).with_context(|| format!("can't make {}", tree.display()))?;
                let what = format!("fetching {}", packages.join(", "));
                match step(&what, || offers.unpack(&packages, tree)) {
                    Ok(()) => return Ok(Some(packages.join("\n"))),
                    Err(error) => failure = Some(error),
                }
                fs::remove_dir_all(tree)
                    .with_context(|| format!("can't remove {}", tree.display()))?;
            }
            if offers.is_fresh() {
                return failure.map_or(Ok(None), Err);
            }
            step("asking Debian for its newest package lists", || {
                offers.refresh()
            })?;
        }
    }
}

/// The machine's apt, with the machine's lists or xtask's own.
struct Apt {
    own_lists: Option<&'static Scratch>,
}

/// Debian's newest lists, if this process has fetched them.
static OWN_LISTS: OnceLock<Scratch> = OnceLock::new();

impl Apt {
    fn new() -> Apt {
        Apt {
            own_lists: OWN_LISTS.get(),
        }
    }
}

/// One of apt's programs, with xtask's own lists or the machine's.
fn apt(program: &str, own_lists: Option<&Scratch>) -> Command {
    let mut command = Command::new(program);
    if let Some(place) = own_lists {
        for (name, directory) in [("Dir::State::lists", "lists"), ("Dir::Cache", "cache")] {
            let directory = place.path(directory);
            command.arg("-o");
            command.arg(format!("{name}={}", directory.display()));
        }
        // apt's own user has no access to xtask's cache.
        command.args(["-o", "APT::Sandbox::User=root"]);
    }
    command
}

fn apt_get(own_lists: Option<&Scratch>) -> Command {
    let mut command = apt("apt-get", own_lists);
    command.args(["-qq", "-o", "Acquire::Retries=3"]);
    command
}

impl Offers for Apt {
    fn names(&self, pattern: &str) -> Result<Vec<String>> {
        let mut search = apt("apt-cache", self.own_lists);
        let text = capture_text(search.args(["search", "-n", pattern]))?;
        let names = text.lines().filter_map(|line| line.split(' ').next());
        Ok(names.map(str::to_owned).collect())
    }

    fn unpack(&self, packages: &[String], tree: &Path) -> Result<()> {
        let scratch = Scratch::new()?;
        let mut download = apt_get(self.own_lists);
        download.arg("download").args(packages);
        capture_ok(download.current_dir(scratch.path("")))?;
        let debs = fs::read_dir(scratch.path("")).context("can't list what apt-get left")?;
        let mut count = 0;
        for deb in debs.flatten() {
            capture_ok(Command::new("dpkg").arg("-x").arg(deb.path()).arg(tree))?;
            count += 1;
        }
        let wanted = packages.len();
        ensure!(
            count == wanted,
            "apt-get downloaded {count} of {wanted} packages"
        );
        Ok(())
    }

    fn is_fresh(&self) -> bool {
        self.own_lists.is_some()
    }

    fn refresh(&mut self) -> Result<()> {
        let place = Scratch::new()?;
        for directory in ["lists/partial", "cache/archives/partial"] {
            make_directory(&place.path(directory))?;
        }
        let mut update = apt_get(Some(&place));
        capture_ok(update.arg("update"))
            .context("Debian's package lists can't be had; is there a network?")?;
        self.own_lists = Some(OWN_LISTS.get_or_init(|| place));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
