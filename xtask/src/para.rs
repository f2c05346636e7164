// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The Linux guest's driver in `guest/linux`, built against the headers of Debian's kernel, and packed for a guest's
//! root file system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::initramfs;
use crate::kernels::Kernel;
use crate::packages::{self, Need};
use crate::process::{capture_ok, has_program, make_directory, read, step, write};
use crate::workspace::{Scratch, cache_dir, root};

/// The kernel build's programs and libraries; objtool uses libelf.
const NEEDS: &[Need] = &[
    ("gcc", "gcc"),
    ("make", "make"),
    ("strip", "binutils"),
    ("/usr/lib/x86_64-linux-gnu/libelf.so.1", "libelf1"),
];

/// The driver's sources, in `guest/linux`.
const SOURCES: &[&str] = &[
    "Kbuild",
    "para_main.c",
    "para_snapshot.c",
    "para_snapshot.h",
    "para_test.c",
    "para.h",
    "stub.h",
];

/// The header that the driver shares with the crates.
const HEADER: &str = "crates/para-abi/include/para_abi.h";

/// The modules and the shell programs.
const MODULES: [&str; 2] = ["para.ko", "para_test.ko"];
const PROGRAMS: [&str; 2] = ["para-exit", "para-show"];

/// An archive to append to a guest's root file system: the modules in /para, the programs in /bin.
pub fn archive(kernel: &Kernel) -> Result<Vec<u8>> {
    let built = build(kernel)?;
    let scratch = Scratch::new()?;
    let mut archive = Vec::new();
    for module in MODULES {
        // Most of a module is debug information.
        let small = scratch.path(module);
        let mut strip = Command::new("strip");
        strip.arg("--strip-debug").arg("-o").arg(&small);
        capture_ok(strip.arg(built.join(module)))?;
        archive.extend(initramfs::program(
            &format!("/para/{module}"),
            &read(&small)?,
        ));
    }
    for program in PROGRAMS {
        let source = read(&root().join("guest/linux").join(program))?;
        archive.extend(initramfs::program(&format!("/bin/{program}"), &source));
    }
    Ok(archive)
}

/// Builds the modules for `kernel`; returns their directory. Takes a moment if nothing changed.
fn build(kernel: &Kernel) -> Result<PathBuf> {
    packages::require(NEEDS)?;
    let release = &kernel.release;
    let place = cache_dir()?.join(format!("para-{release}"));
    make_directory(&place)?;
    let sources = SOURCES
        .iter()
        .map(|name| root().join("guest/linux").join(name));
    for source in sources.chain([root().join(HEADER)]) {
        copy_changed(&source, &place)?;
    }
    let [headers, common] = &kernel.headers;
    // The package's own Makefile includes a path of the installed packages.
    let makefile = format!("include {}/Makefile\n", common.display());
    if read(&headers.join("Makefile"))? != makefile.as_bytes() {
        write(&headers.join("Makefile"), makefile)?;
    }
    let mut make = Command::new("make");
    make.arg("-C").arg(headers);
    make.arg(format!("M={}", place.display()));
    // Without type information for debuggers, which needs another program.
    make.args(["CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]);
    if !has_program("gcc-12") {
        // Debian 12's kernels name this compiler, but another version also works.
        make.args(["CC=gcc"]);
    }
    step(&format!("building guest/linux for Linux {release}"), || {
        capture_ok(&mut make)
    })
    .with_context(|| format!("guest/linux does not build for Linux {release}"))?;
    Ok(place)
}

/// Copies a file into a directory, unless the same is already there: make compares modification times.
fn copy_changed(source: &Path, directory: &Path) -> Result<()> {
    let data = read(source)?;
    let name = source.file_name().context("a source has no name")?;
    let place = directory.join(name);
    if fs::read(&place).is_ok_and(|old| old == data) {
        return Ok(());
    }
    write(&place, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_copied() {
        let scratch = Scratch::new().unwrap();
        let (source, place) = (scratch.path("a"), scratch.path("d"));
        fs::create_dir(&place).unwrap();
        let copied = place.join("a");
        for text in ["one", "two"] {
            write(&source, text).unwrap();
            copy_changed(&source, &place).unwrap();
            assert_eq!(read(&copied).unwrap(), text.as_bytes());
        }
        let mut permissions = fs::metadata(&copied).unwrap().permissions();
        let before = fs::metadata(&copied).unwrap().modified().unwrap();
        permissions.set_readonly(true);
        fs::set_permissions(&copied, permissions).unwrap();
        copy_changed(&source, &place).unwrap();
        assert_eq!(fs::metadata(&copied).unwrap().modified().unwrap(), before);
    }

    #[test]
    fn sources_are_there() {
        let linux = root().join("guest/linux");
        for name in SOURCES.iter().chain(&PROGRAMS) {
            assert!(linux.join(name).is_file(), "{name}");
        }
        assert!(root().join(HEADER).is_file());
    }
}
