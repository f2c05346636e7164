// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Debian 12 on a disk: a root file system of stock packages, and its own kernel and initrd. It is made without root
//! rights, and cached.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::packages::{self, Need, is_root};
use crate::process::{capture_ok, copy, last_lines, make_directory, sh_words, show, step};
use crate::whole;
use crate::workspace::{Scratch, cache_dir};

/// An unpacked Debian 12.
#[derive(Clone, Debug)]
pub struct Debian {
    /// The disk: ext4 without partitions, labelled `debian`.
    pub disk: PathBuf,
    /// The kernel of its /boot.
    pub kernel: PathBuf,
    /// The initrd of its /boot.
    pub initrd: PathBuf,
}

/// A Debian 12: its packages, and how its root file system is set up.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its name in the cache.
    pub name: &'static str,
    /// Further packages than those of all kinds.
    packages: &'static str,
    /// What runs in the new root file system after the set-up of all kinds.
    setup: &'static str,
}

/// The console logs root in.
pub const PLAIN: Kind = Kind {
    name: "debian",
    packages: "",
    setup: CONSOLE,
};

/// Like a stock cloud image: cloud-init, and no user who may log in.
pub const CLOUD: Kind = Kind {
    name: "debian-cloud",
    packages: ",cloud-init,sudo",
    setup: "",
};

/// [`PLAIN`] with the programs of the bench.
pub const BENCH: Kind = Kind {
    name: "debian-bench",
    packages: ",fio",
    setup: concat!(
        include_str!("debian/console.sh"),
        include_str!("debian/bench.sh")
    ),
};

/// Words for its kernel's command line.
pub const CMDLINE: &str = "root=LABEL=debian rw";

/// The serial number of a disk whose content the root user's shell runs after the login on the console.
pub const JOB: &str = "xtask-job";

const SUITE: &str = "bookworm";

/// Packages of all kinds, in addition to `apt` and those that Debian calls essential.
const PACKAGES: &str = "linux-image-cloud-amd64,systemd-sysv,systemd-resolved,udev,dbus,libpam-systemd,\
    iproute2,iputils-ping";

/// The size of the disk. Most of it takes no space on the host.
const SIZE: &str = "2G";

/// Runs in each new root file system.
const SETUP: &str = include_str!("debian/setup.sh");
/// Runs after it if the console logs root in.
const CONSOLE: &str = include_str!("debian/console.sh");

const NEEDS: &[Need] = &[
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    (
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
    ),
];

/// Without root rights, mmdebstrap uses a user namespace if this user has IDs for one, otherwise these.
const ROOTLESS_NEEDS: &[Need] = &[("fakeroot", "fakeroot"), ("fakechroot", "fakechroot")];

/// The content of a disk with the serial number [`JOB`]: a shell script, with empty lines up to a whole sector.
pub fn job(script: &str) -> Vec<u8> {
    let mut disk = format!("{script}\n").into_bytes();
    disk.resize(disk.len().next_multiple_of(512), b'\n');
    disk
}

impl Debian {
    /// The cached one. It is made first if there is none, or if it was made in another way.
    pub fn fetch(kind: &Kind) -> Result<Debian> {
        let mut make = |tree: &Path| make(kind, tree).map(|()| Some(kind.recipe()));
        let open = |place: &Path| Debian::open(kind, place);
        let made = whole::cached(&cache_dir()?, kind.name, &mut make, &open)?;
        made.context("Debian 12 was not made")
    }

    fn open(kind: &Kind, place: &Path) -> Result<Debian> {
        ensure!(
            whole::mark(place)? == kind.recipe(),
            "it was made in another way"
        );
        let [disk, kernel, initrd] = FILES.map(|name| place.join(name));
        for path in [&disk, &kernel, &initrd] {
            ensure!(path.is_file(), "it lacks {}", path.display());
        }
        Ok(Debian {
            disk,
            kernel,
            initrd,
        })
    }
}

/// The disk, the kernel and the initrd.
const FILES: [&str; 3] = ["disk.img", "vmlinuz", "initrd.img"];

impl Kind {
    /// Everything that determines what is made, except for the packages' versions.
    fn recipe(&self) -> String {
        let (packages, setup) = (self.packages(), self.setup());
        format!("{SUITE} {packages} {SIZE} {CMDLINE} {JOB}\n{setup}")
    }

    fn packages(&self) -> String {
        format!("{PACKAGES}{}", self.packages)
    }

    fn setup(&self) -> String {
        format!("{SETUP}{}", self.setup)
    }
}

fn make(kind: &Kind, tree: &Path) -> Result<()> {
    packages::require(NEEDS)?;
    if !is_root() {
        packages::require(ROOTLESS_NEEDS)?;
    }
    make_directory(tree)?;
    let scratch = Scratch::new()?;
    let (tar, root) = (scratch.path("root.tar"), scratch.path("root"));
    step("installing Debian 12 into a directory", || {
        bootstrap(kind, &tar)
    })?;
    step("making a disk of it", || {
        make_disk(&tar, &root, &tree.join(FILES[0]))
    })?;
    for name in &FILES[1..] {
        copy(&in_boot(&root, name)?, &tree.join(name))?;
    }
    Ok(())
}

/// Writes the root file system's files to `tar`. mmdebstrap writes to its standard output, since the user of its
/// namespace may have no access to the cache.
fn bootstrap(kind: &Kind, tar: &Path) -> Result<()> {
    let output = File::create(tar).with_context(|| format!("can't make {}", tar.display()))?;
    let mut command = Command::new("mmdebstrap");
    command.args([
        "--quiet",
        "--mode=auto",
        "--variant=minbase",
        "--format=tar",
    ]);
    command.arg(format!("--include={}", kind.packages()));
    let setup = ["sh".to_owned(), "-c".to_owned(), kind.setup()];
    command.arg(format!(
        "--customize-hook=chroot \"$1\" {}",
        sh_words(&setup)
    ));
    command.args([SUITE, "-"]);
    let run = command
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(Stdio::piped());
    let run = run.spawn().and_then(|child| child.wait_with_output());
    let run = run.with_context(|| format!("can't run {}", show(&command)))?;
    ensure!(
        run.status.success(),
        "mmdebstrap failed ({}):\n{}",
        run.status,
        last_lines(&String::from_utf8_lossy(&run.stderr), 60)
    );
    Ok(())
}

/// Unpacks `tar` into the new directory `root`, and copies that to the new file system `disk`. Both happen in one
/// session of fakeroot, which remembers the files' owners.
fn make_disk(tar: &Path, root: &Path, disk: &Path) -> Result<()> {
    make_directory(root)?;
    const SCRIPT: &str =
        "tar --extract --numeric-owner --preserve-permissions --file \"$1\" --directory \"$2\" &&
        PATH=$PATH:/usr/sbin:/sbin mke2fs -q -t ext4 -L debian -d \"$2\" \"$3\" \"$4\"";
    let mut command = match is_root() {
        true => Command::new("sh"),
        false => Command::new("fakeroot"),
    };
    if !is_root() {
        command.args(["--", "sh"]);
    }
    command.args(["-c", SCRIPT, "sh"]).args([tar, root, disk]);
    capture_ok(command.arg(SIZE)).map(drop)
}

/// The only file of the new /boot whose name begins with `name` and a hyphen.
fn in_boot(root: &Path, name: &str) -> Result<PathBuf> {
    let boot = root.join("boot");
    let entries = fs::read_dir(&boot).with_context(|| format!("can't list {}", boot.display()))?;
    let mut found = entries.flatten().map(|entry| entry.path()).filter(|path| {
        let rest = path
            .file_name()
            .and_then(|file| file.to_str()?.strip_prefix(name));
        rest.is_some_and(|rest| rest.starts_with('-'))
    });
    match (found.next(), found.next()) {
        (Some(path), None) => Ok(path),
        _ => anyhow::bail!("the new /boot does not have exactly one {name}"),
    }
}

#[cfg(test)]
mod tests;
