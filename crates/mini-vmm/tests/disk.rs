// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks that can't be used, from a user's view. Nothing here needs /dev/kvm.

// clippy.toml allows this in test functions. Helpers of tests may panic, too.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;
use virtio_models::block::{BlockSpec, open};

/// What the serial console's file has before the run.
const BEFORE: &str = "output of an earlier run\n";

/// A folder with images, and the file of a serial console.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Folder(tempfile::tempdir().unwrap());
        fs::write(folder.path("serial"), BEFORE).unwrap();
        fs::write(folder.path("good"), [0; 1024]).unwrap();
        fs::write(folder.path("empty"), []).unwrap();
        fs::write(folder.path("odd"), [0; 1000]).unwrap();
        fs::write(folder.path("locked"), [0; 1024]).unwrap();
        fs::create_dir(folder.path("folder")).unwrap();
        let fifo = Command::new("mkfifo").arg(folder.path("fifo")).status();
        assert!(fifo.unwrap().success());
        for (name, link) in [("good", "link"), ("loop", "loop")] {
            std::os::unix::fs::symlink(folder.path(name), folder.path(link)).unwrap();
        }
        fs::hard_link(folder.path("good"), folder.path("hard")).unwrap();
        folder
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// Every name with its size and time of change.
    fn listing(&self) -> Vec<(String, u64, std::time::SystemTime)> {
        let entries = fs::read_dir(self.0.path()).unwrap().map(|entry| {
            let entry = entry.unwrap();
            let about = fs::symlink_metadata(entry.path()).unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, about.len(), about.modified().unwrap())
        });
        let mut listing: Vec<_> = entries.collect();
        listing.sort();
        listing
    }

    /// The one sentence about a machine with these disks, each a name and more words. Nothing may have changed.
    fn refusal(&self, disks: &[&str]) -> String {
        let before = self.listing();
        let mut command = Command::new(env!("CARGO_BIN_EXE_mini-vmm"));
        command.env_remove("MINI_VMM_LOG").stdin(Stdio::null());
        command.args([
            "--kernel",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ]);
        command.arg(format!("--serial=file={}", self.path("serial")));
        command.current_dir(self.0.path());
        for disk in disks {
            command.arg(format!("--disk=path={disk}"));
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{disks:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{disks:?}: {output:?}");
        assert_eq!(self.listing(), before, "{disks:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.starts_with("mini-vmm: error: "), "{disks:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{disks:?}: {text}");
        text
    }
}

#[test]
fn each_bad_image_is_one_sentence_and_nothing_changes() {
    let folder = Folder::new();
    let _lock = open(&BlockSpec::new(folder.path("locked"))).unwrap();
    let cases: &[(&[&str], &str)] = &[
        (
            &["missing"],
            "there is no disk image \"missing\": check the path, or make one",
        ),
        (&["good/part"], "there is no disk image \"good/part\""),
        (&["folder"], "\"folder\" is a directory: name a file"),
        (&["fifo"], "\"fifo\" is a named pipe: name a file"),
        (&["/dev/null"], "\"/dev/null\" is a character device"),
        (&["empty"], "\"empty\" is empty: give it a size"),
        (
            &["odd"],
            "\"odd\" has 1000 bytes, which is not a multiple of 512",
        ),
        (&["locked"], "\"locked\" is in use by another machine"),
        (&["locked,readonly"], "let it use the image `readonly`, too"),
        (&["good,format=qcow2"], "\"good\""),
        (&["good,serial=123456789012345678901"], "up to 20 printable"),
        (&["good,queues=0"], "a disk can't have 0 queues"),
        (&["good,queues=70000"], "choose 1 to 64"),
        (
            &["good,overlay=nowhere"],
            "no overlay can be made in \"nowhere\"",
        ),
        (&["good,overlay=tmp,readonly"], "leave out one of them"),
        (&["good", "good"], "\"good\" and \"good\" are one file"),
        (
            &["good,readonly", "link"],
            "\"good\" and \"link\" are one file",
        ),
        (&["good", "hard"], "\"good\" and \"hard\" are one file"),
        (&["good", "empty"], "\"empty\" is empty"),
        (&["loop"], "\"loop\" can't be found: Too many levels"),
        (&["serial"], "the serial output would overwrite this file"),
        (
            &["serial,readonly"],
            "the serial output would overwrite this file",
        ),
    ];
    for (disks, part) in cases {
        let text = folder.refusal(disks);
        assert!(text.contains(part), "{disks:?}: {text} lacks {part:?}");
    }
}

#[test]
fn an_image_that_the_user_may_not_use_names_what_helps() {
    let folder = Folder::new();
    let set = |mode| {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(folder.path("good"), permissions).unwrap();
    };
    set(0o000);
    if fs::File::open(folder.path("good")).is_ok() {
        eprintln!(
            "SKIP: an_image_that_the_user_may_not_use_names_what_helps: this user may do all"
        );
        return;
    }
    assert!(
        folder
            .refusal(&["good,readonly"])
            .contains("can't be read by this user")
    );
    set(0o400);
    assert!(folder.refusal(&["good"]).contains("or say `readonly`"));
}

/// The disks are all in order, so the kernel is what is wrong. Nothing was written by then.
#[test]
fn good_disks_are_not_changed_by_a_kernel_that_is_none() {
    let folder = Folder::new();
    let text = folder.refusal(&["good", "odd,overlay=.,readonly=off", "locked,readonly"]);
    assert!(text.contains("odd"), "{text}");
    if Path::new("/dev/kvm").exists() {
        let text = folder.refusal(&["good", "locked,readonly"]);
        assert!(text.contains("Cargo.toml"), "{text}");
        assert_eq!(fs::read_to_string(folder.path("serial")).unwrap(), BEFORE);
    } else {
        eprintln!(
            "SKIP: good_disks_are_not_changed_by_a_kernel_that_is_none: there is no /dev/kvm"
        );
    }
}
