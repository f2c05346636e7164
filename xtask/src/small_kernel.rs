// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A small kernel, built from Debian's source and cached. It has what Debian's kernels lack: virtio devices from the
//! command line, the MPtable, every driver built in, and debug information (in `vmlinux`, beside the bzImage).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::apt::Tree;
use crate::packages::{self, Need};
use crate::process::{capture_ok, capture_text, copy, make_directory, read, step, write};
use crate::whole;
use crate::workspace::{Scratch, cache_dir};

/// What its configuration has that the smallest one lacks.
const CONFIG: &str = include_str!("small_kernel/config");

/// Debian's package of the source.
const SOURCE: &str = "linux-source-6.1";

/// Its files in the cache: the kernel to boot, the kernel for gdb, the configuration, and the release.
const FILES: [&str; 4] = ["bzImage", "vmlinux", "config", "release"];

const NEEDS: &[Need] = &[
    ("gcc", "gcc"),
    ("make", "make"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("xz", "xz-utils"),
    ("/usr/include/libelf.h", "libelf-dev"),
];

/// The small kernel.
#[derive(Clone, Debug)]
pub struct SmallKernel {
    /// Its release, as `uname -r` prints it.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
}

impl SmallKernel {
    /// The cached one. It is built first if there is none, or if its configuration has changed; none if Debian does not
    /// have the source.
    pub fn fetch() -> Result<Option<SmallKernel>> {
        let mut make = |tree: &Path| match source()? {
            Some(source) => build(&source, tree).map(|()| Some(CONFIG.to_owned())),
            None => Ok(None),
        };
        whole::cached(&cache_dir()?, "linux-small", &mut make, &SmallKernel::open)
    }

    fn open(place: &Path) -> Result<SmallKernel> {
        ensure!(
            whole::mark(place)? == CONFIG,
            "it was built with another configuration"
        );
        let paths = FILES.map(|name| place.join(name));
        for path in &paths {
            ensure!(path.is_file(), "it lacks {}", path.display());
        }
        let [image, _, _, release] = paths;
        let release = String::from_utf8(read(&release)?).context("its release is no text")?;
        Ok(SmallKernel { release, image })
    }
}

/// The archive of the source, fetched if it is not cached.
fn source() -> Result<Option<PathBuf>> {
    let tree = Tree {
        name: SOURCE,
        pattern: r"^linux-source-6\.1$",
        choose: &|offered| {
            let found = offered.iter().find(|name| *name == SOURCE);
            Some(vec![found?.clone()])
        },
    };
    tree.cached(&|place| {
        let archive = place.join(format!("usr/src/{SOURCE}.tar.xz"));
        ensure!(archive.is_file(), "it lacks {}", archive.display());
        Ok(archive)
    })
}

/// Builds the kernel of the archive `source` into the new directory `tree`.
fn build(source: &Path, tree: &Path) -> Result<()> {
    packages::require(NEEDS)?;
    let scratch = Scratch::new()?;
    let place = scratch.path("linux");
    make_directory(&place)?;
    step(&format!("unpacking {SOURCE}"), || {
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--strip-components=1", "--file"]);
        tar.arg(source).arg("--directory").arg(&place);
        capture_ok(&mut tar)
    })?;
    let make = |target: &str| {
        let mut make = Command::new("make");
        make.arg("-C").arg(&place).arg(target);
        // cargo's own would make it wait for cargo's jobs.
        make.env_remove("MAKEFLAGS").env_remove("CARGO_MAKEFLAGS");
        make
    };

    let wanted = scratch.path("config");
    write(&wanted, CONFIG)?;
    capture_ok(make("allnoconfig").env("KCONFIG_ALLCONFIG", &wanted))?;
    let config = place.join(".config");
    let text = String::from_utf8_lossy(&read(&config)?).into_owned();
    let lost = lost(CONFIG, &text);
    ensure!(
        lost.is_empty(),
        "the source has no {}, or needs another option for it; mend xtask/src/small_kernel/config",
        lost.join(", ")
    );

    let jobs = thread::available_parallelism().map_or(1, usize::from);
    step("building the small kernel", || {
        capture_ok(make("bzImage").arg(format!("-j{jobs}")))
    })?;
    let release = capture_text(make("kernelrelease").args(["-s", "--no-print-directory"]))?;
    fs::create_dir(tree).with_context(|| format!("can't make {}", tree.display()))?;
    let [to_image, to_vmlinux, to_config, to_release] = FILES.map(|name| tree.join(name));
    copy(&place.join("arch/x86/boot/bzImage"), &to_image)?;
    copy(&place.join("vmlinux"), &to_vmlinux)?;
    copy(&config, &to_config)?;
    write(&to_release, release)
}

/// The options of `wanted` that `config` lacks or has with other values.
fn lost<'a>(wanted: &'a str, config: &str) -> Vec<&'a str> {
    let is_option = |line: &&str| line.starts_with("CONFIG_");
    let has = |wanted: &str| config.lines().any(|line| line == wanted);
    let options = wanted.lines().filter(is_option);
    options.filter(|line| !has(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_were_dropped_are_named() {
        let wanted = "# CONFIG_C=y\nCONFIG_A=y\n\nCONFIG_B=y\nCONFIG_N=64\nCONFIG_AB=y\n";
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_N=8\nCONFIG_ABC=y\n";
        let dropped = ["CONFIG_B=y", "CONFIG_N=64", "CONFIG_AB=y"];
        assert_eq!(lost(wanted, config), dropped);
        assert!(lost(CONFIG, CONFIG).is_empty() && !lost(CONFIG, "").is_empty());
    }

    #[test]
    fn a_cached_kernel_of_another_configuration_is_refused() {
        let scratch = Scratch::new().unwrap();
        let place = scratch.path("");
        for name in FILES {
            write(&place.join(name), name).unwrap();
        }
        write(&place.join(".whole"), CONFIG).unwrap();
        let kernel = SmallKernel::open(&place).unwrap();
        let found = (kernel.image, kernel.release);
        assert_eq!(found, (place.join("bzImage"), "release".to_owned()));
        write(&place.join(".whole"), format!("{CONFIG}\n")).unwrap();
        let text = SmallKernel::open(&place).unwrap_err().to_string();
        assert!(text.contains("another configuration"), "{text}");
        write(&place.join(".whole"), CONFIG).unwrap();
        fs::remove_file(place.join("vmlinux")).unwrap();
        let text = SmallKernel::open(&place).unwrap_err().to_string();
        assert!(text.contains("vmlinux"), "{text}");
    }
}
