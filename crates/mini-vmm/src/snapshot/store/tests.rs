// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Snapshots that are replaced while processes die, disks are full, and others write. No KVM.

use std::collections::BTreeMap;
use std::env;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, ExitStatus};

use rustix::process::{Resource, Rlimit, Signal, getpid, kill_process, setrlimit};
use tempfile::{TempDir, tempdir};

use super::*;

/// The steps of a directory, in order.
const STEPS: [&str; 9] = [
    "memory",
    "sync-memory",
    "overlay",
    "state",
    "manifest",
    "sync-directory",
    "swap",
    "sync-parent",
    "remove",
];

/// A manifest with this text, and with the checksums that it gets.
pub(super) fn manifest(text: &str) -> impl Fn(&[u32]) -> io::Result<Vec<u8>> {
    move |sums| Ok(format!("{text}{sums:?}").into_bytes())
}

/// Contents whose files have this text, but for the manifest.
pub(super) fn contents<'a>(
    text: &'a str,
    manifest: &'a dyn Fn(&[u32]) -> io::Result<Vec<u8>>,
    memory: &'a dyn Fn(&File) -> io::Result<()>,
) -> Contents<'a> {
    Contents {
        manifest,
        state: text.as_bytes(),
        memory,
        overlays: &[7],
        overlay: &|disk, mut to| write!(to, "of disk {disk}").map(|()| 99),
    }
}

/// Writes a directory, and calls `before` before each step.
fn write(dir: &Path, text: &str, before: Before<'_>) -> Result<(), Error> {
    let memory = |mut file: &File| file.write_all(text.as_bytes());
    write_directory_with(dir, &contents(text, &manifest(text), &memory), before)
}

/// The files below a directory with their contents.
pub(super) fn all(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        match path.is_dir() {
            true => found.extend(
                all(&path)
                    .into_iter()
                    .map(|(inner, text)| (format!("{name}/{inner}"), text)),
            ),
            false => drop(found.insert(name, fs::read_to_string(&path).unwrap())),
        }
    }
    found
}

/// The files of a whole snapshot at `name`.
fn whole(name: &str, text: &str) -> BTreeMap<String, String> {
    let sealed = format!("{text}[99]");
    let files = [
        (MANIFEST, &*sealed),
        (STATE, text),
        (MEMORY, text),
        ("overlay7", "of disk 7"),
    ];
    files
        .map(|(file, text)| (format!("{name}/{file}"), text.to_owned()))
        .into()
}

/// What is at `snap` without what is beside it.
fn at_place(dir: &TempDir) -> BTreeMap<String, String> {
    let mut all = all(dir.path());
    all.retain(|name, _| name.starts_with("snap/"));
    all
}

#[test]
fn a_snapshot_is_for_its_owner_and_leaves_nothing_beside_it() {
    let dir = tempdir().unwrap();
    let snap = dir.path().join("snap");
    for text in ["first", "second"] {
        write(&snap, text, &|_| Ok(())).unwrap();
        assert_eq!(all(dir.path()), whole("snap", text));
    }
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&snap), 0o700);
    for name in NAMES {
        assert_eq!(mode(&snap.join(name)), 0o600);
    }
}

#[test]
fn a_step_that_fails_leaves_the_old_snapshot_or_none() {
    for has_old in [false, true] {
        for bad in STEPS {
            let dir = tempdir().unwrap();
            let snap = dir.path().join("snap");
            if has_old {
                write(&snap, "old", &|_| Ok(())).unwrap();
            }
            let fail = |step: &str| match step == bad {
                true => Err(io::ErrorKind::StorageFull.into()),
                false => Ok(()),
            };
            write(&snap, "new", &fail).unwrap_err();
            let is_swapped = ["sync-parent", "remove"].contains(&bad);
            let mut expected = match (is_swapped, has_old) {
                (true, _) => whole("snap", "new"),
                (false, true) => whole("snap", "old"),
                (false, false) => BTreeMap::new(),
            };
            if bad == "sync-parent" && has_old {
                // A loss of power could lose the new one.
                expected.extend(whole(".snap.new", "old"));
            }
            assert_eq!(all(dir.path()), expected, "{bad}");
        }
    }
}

/// What the tests below run in a process of its own: it writes a snapshot, and dies before a step.
#[test]
fn in_a_process_of_its_own() {
    let Some(dir) = env::var_os("MINI_VMM_TEST_SNAPSHOT") else {
        return;
    };
    let bad = env::var("MINI_VMM_TEST_STEP").unwrap();
    if bad == "full" {
        // SIGXFSZ is ignored, as the program ignores it.
        let most = Rlimit {
            current: Some(2),
            maximum: Some(2),
        };
        setrlimit(Resource::Fsize, most).unwrap();
    }
    let kill = |step: &str| {
        if step == bad {
            kill_process(getpid(), Signal::KILL).unwrap();
        }
        Ok(())
    };
    let error = write(Path::new(&dir), "new", &kill).unwrap_err();
    assert!(
        matches!(&error, Error::Host { reason, .. } if reason.kind() == ErrorKind::FileTooLarge),
        "{error}"
    );
}

fn in_another_process(snap: &Path, step: &str) -> ExitStatus {
    let mut command = Command::new("/bin/sh");
    // The ignored signal stays ignored in the test.
    command.args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"]);
    command.arg(env::current_exe().unwrap());
    let name = "snapshot::store::tests::in_a_process_of_its_own";
    command.args(["--exact", name]);
    command.env("MINI_VMM_TEST_SNAPSHOT", snap);
    command.env("MINI_VMM_TEST_STEP", step);
    command.output().unwrap().status
}

#[test]
fn a_process_that_is_killed_leaves_the_old_snapshot_or_none_and_the_next_cleans_up() {
    for has_old in [false, true] {
        for step in STEPS {
            let dir = tempdir().unwrap();
            let snap = dir.path().join("snap");
            if has_old {
                write(&snap, "old", &|_| Ok(())).unwrap();
            }
            assert!(!in_another_process(&snap, step).success(), "{step}");
            let left = at_place(&dir);
            let is_swapped = ["sync-parent", "remove"].contains(&step);
            let expected = match (is_swapped, has_old) {
                (true, _) => whole("snap", "new"),
                (false, true) => whole("snap", "old"),
                (false, false) => BTreeMap::new(),
            };
            assert_eq!(left, expected, "{step}");
            write(&snap, "next", &|_| Ok(())).unwrap();
            assert_eq!(all(dir.path()), whole("snap", "next"), "{step}");
        }
    }
}

#[test]
fn a_file_that_must_not_grow_leaves_the_old_snapshot() {
    let dir = tempdir().unwrap();
    let snap = dir.path().join("snap");
    write(&snap, "old", &|_| Ok(())).unwrap();
    // Its own report goes to a pipe.
    assert!(in_another_process(&snap, "full").success());
    assert_eq!(all(dir.path()), whole("snap", "old"));
}

#[test]
fn what_is_no_snapshot_is_not_replaced() {
    let dir = tempdir().unwrap();
    let other = dir.path().join("snap");
    fs::create_dir(&other).unwrap();
    // An empty directory may be.
    write(&other, "text", &|_| Ok(())).unwrap();
    fs::write(other.join("mine"), "precious").unwrap();
    let before = all(dir.path());
    let error = write(&other, "new", &|_| Ok(())).unwrap_err();
    assert!(matches!(error, Error::NotASnapshot(_)), "{error}");
    let error = write(&other.join("mine"), "new", &|_| Ok(())).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Host {
                what: "look into",
                ..
            }
        ),
        "{error}"
    );
    let error = write(&dir.path().join("no/snap"), "new", &|_| Ok(())).unwrap_err();
    assert!(
        error.to_string().ends_with("create its directory first"),
        "{error}"
    );
    for nameless in ["/", ".."] {
        let error = write(Path::new(nameless), "new", &|_| Ok(())).unwrap_err();
        assert!(
            matches!(error, Error::NoName(_) | Error::NotASnapshot(_)),
            "{error}"
        );
    }
    assert_eq!(all(dir.path()), before);
}

#[test]
fn a_symlink_stays_and_its_snapshot_is_replaced() {
    let dir = tempdir().unwrap();
    let (snap, link) = (dir.path().join("snap"), dir.path().join("link"));
    write(&snap, "old", &|_| Ok(())).unwrap();
    std::os::unix::fs::symlink("snap", &link).unwrap();
    write(&link, "new", &|_| Ok(())).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(at_place(&dir), whole("snap", "new"));
}

#[test]
fn a_second_writer_is_refused() {
    let dir = tempdir().unwrap();
    let snap = dir.path().join("snap");
    let second = |step: &str| {
        if step == "manifest" {
            let error = write(&snap, "second", &|_| Ok(())).unwrap_err();
            assert!(matches!(error, Error::Busy(_)), "{error}");
        }
        Ok(())
    };
    write(&snap, "first", &second).unwrap();
    assert_eq!(all(dir.path()), whole("snap", "first"));
}

#[test]
fn a_second_writer_that_comes_after_the_swap_destroys_nothing_and_is_not_destroyed() {
    for step in ["sync-parent", "remove"] {
        let dir = tempdir().unwrap();
        let snap = dir.path().join("snap");
        let second = |now: &str| {
            if now == step {
                write(&snap, "second", &|_| Ok(())).unwrap();
            }
            Ok(())
        };
        write(&snap, "first", &second).unwrap();
        assert_eq!(all(dir.path()), whole("snap", "second"), "{step}");
        // Now the old one has the second one's place until it is gone.
        let second = |now: &str| {
            if now == step {
                let error = write(&snap, "fourth", &|_| Ok(())).unwrap_err();
                assert!(matches!(error, Error::Busy(_)), "{error}");
            }
            Ok(())
        };
        write(&snap, "third", &second).unwrap();
        assert_eq!(all(dir.path()), whole("snap", "third"), "{step}");
    }
}

#[test]
fn what_another_puts_at_its_place_is_not_removed() {
    let dir = tempdir().unwrap();
    let snap = dir.path().join("snap");
    write(&snap, "old", &|_| Ok(())).unwrap();
    let work = dir.path().join(".snap.new");
    let replace = |step: &str| {
        if step == "swap" {
            fs::rename(&work, dir.path().join("elsewhere")).unwrap();
            fs::create_dir(&work).unwrap();
            fs::write(work.join(MEMORY), "precious").unwrap();
            return Err(io::ErrorKind::Other.into());
        }
        Ok(())
    };
    write(&snap, "new", &replace).unwrap_err();
    assert_eq!(fs::read(work.join(MEMORY)).unwrap(), b"precious");
    assert_eq!(at_place(&dir), whole("snap", "old"));
}

#[test]
fn what_comes_into_the_directory_meanwhile_stays_in_it() {
    let dir = tempdir().unwrap();
    let snap = dir.path().join("snap");
    write(&snap, "old", &|_| Ok(())).unwrap();
    let mine = snap.join("mine");
    let put = |step: &str| match step {
        "swap" => fs::write(&mine, "precious"),
        _ => Ok(()),
    };
    let error = write(&snap, "new", &put).unwrap_err();
    assert!(matches!(error, Error::NotASnapshot(_)), "{error}");
    assert_eq!(fs::read(&mine).unwrap(), b"precious");
    fs::remove_file(&mine).unwrap();
    assert_eq!(all(dir.path()), whole("snap", "old"));
    write(&snap, "new", &|_| Ok(())).unwrap();
    assert_eq!(all(dir.path()), whole("snap", "new"));
}

#[test]
fn what_is_no_work_of_ours_is_not_removed_or_waited_for() {
    let dir = tempdir().unwrap();
    let (snap, work) = (dir.path().join("snap"), dir.path().join(".snap.new"));
    let refused = || {
        let error = write(&snap, "new", &|_| Ok(())).unwrap_err();
        assert!(
            matches!(&error, Error::NotASnapshot(path) if *path == work),
            "{error}"
        );
    };
    fs::create_dir(&work).unwrap();
    fs::write(work.join("mine"), "precious").unwrap();
    refused();
    assert_eq!(fs::read(work.join("mine")).unwrap(), b"precious");
    // Without a writer, open(2) of a FIFO would wait forever.
    fs::remove_dir_all(&work).unwrap();
    rustix::fs::mkfifoat(CWD, &work, Mode::RWXU).unwrap();
    refused();
    fs::remove_file(&work).unwrap();
    let other = dir.path().join("other");
    write(&other, "other", &|_| Ok(())).unwrap();
    std::os::unix::fs::symlink(&other, &work).unwrap();
    refused();
    assert_eq!(all(&other), all(&work));
    assert_eq!(all(&other).len(), NAMES.len() + 1);
}
