// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! virtiofsd, the program behind `--share`: built once, statically, since the beds have no C library. Debian 12 has only an
//! older one, which wants root.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::apt::Tree;
use crate::build::statically;
use crate::process::{capture_ok, step};
use crate::whole;
use crate::workspace::{Scratch, TARGET, cache_dir, cargo};

/// Its version.
const VERSION: &str = "1.14.0";
/// Debian's packages with the libraries that it needs.
const LIBRARIES: [&str; 2] = ["libcap-ng-dev", "libseccomp-dev"];
/// The files in them that it is linked with.
const ARCHIVES: [&str; 2] = ["libcap-ng.a", "libseccomp.a"];
/// Where these have them.
const PLACE: &str = "usr/lib/x86_64-linux-gnu";

/// The program. None if Debian doesn't have its libraries for this machine.
pub fn fetch() -> Result<Option<PathBuf>> {
    let open = |place: &Path| {
        let program = place.join("bin/virtiofsd");
        let found = program.is_file().then_some(program);
        found.with_context(|| format!("{} holds no virtiofsd", place.display()))
    };
    let name = format!("virtiofsd-{VERSION}");
    whole::cached(&cache_dir()?, &name, &mut make, &open)
}

/// Builds it into the directory `tree`.
fn make(tree: &Path) -> Result<Option<String>> {
    let Some(libraries) = libraries()? else {
        return Ok(None);
    };
    let scratch = Scratch::new()?;
    // Without the shared ones beside them, which a linker would prefer.
    for name in ARCHIVES {
        let (from, to) = (libraries.join(name), scratch.path(name));
        fs::copy(&from, to).with_context(|| format!("can't copy {}", from.display()))?;
    }
    let mut command = cargo();
    command.args([
        "install",
        "virtiofsd",
        "--locked",
        "--version",
        VERSION,
        "--root",
    ]);
    statically(command.arg(tree));
    command.env("CARGO_TARGET_DIR", scratch.path("target"));
    for library in ["LIBCAPNG", "LIBSECCOMP"] {
        command.env(format!("{library}_LINK_TYPE"), "static");
        command.env(format!("{library}_LIB_PATH"), scratch.path(""));
    }
    let built = step("building virtiofsd", || capture_ok(&mut command));
    built.with_context(|| format!("virtiofsd {VERSION} does not build for {TARGET}"))?;
    Ok(Some(VERSION.to_owned()))
}

/// The directory with its static libraries.
fn libraries() -> Result<Option<PathBuf>> {
    let tree = Tree {
        name: "virtiofsd-libraries",
        pattern: "^(libcap-ng|libseccomp)-dev$",
        choose: &|offered| {
            let wanted = LIBRARIES.map(str::to_owned);
            wanted
                .iter()
                .all(|name| offered.contains(name))
                .then(|| wanted.to_vec())
        },
    };
    tree.cached(&|place| {
        let libraries = place.join(PLACE);
        for name in ARCHIVES {
            fs::metadata(libraries.join(name))
                .with_context(|| format!("{} holds no {name}", place.display()))?;
        }
        Ok(libraries)
    })
}
