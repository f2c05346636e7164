// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two files that are replaced while others write and have put something there. No KVM.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use tempfile::{TempDir, tempdir};

use super::*;
use crate::snapshot::store::tests::{all, contents, manifest};

/// A directory for `state` and `mem`, and a machine.
struct Bed {
    dir: TempDir,
    spec: VmSpec,
}

impl Bed {
    fn new() -> Self {
        Bed {
            dir: tempdir().unwrap(),
            spec: serde_json::from_str(r#"{"kernel": "/nonexistent"}"#).unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, text: &str, before: Before<'_>) -> Result<(), Error> {
        let memory = |mut file: &File| file.write_all(text.as_bytes());
        let paths = [self.path("state"), self.path("mem")];
        let manifest = manifest(text);
        let contents = contents(text, &manifest, &memory);
        write_files_with(
            paths.each_ref().map(PathBuf::as_path),
            &self.spec,
            &contents,
            before,
        )
    }

    fn all(&self) -> BTreeMap<String, String> {
        all(self.dir.path())
    }
}

/// Both files of one snapshot.
fn both(text: &str) -> BTreeMap<String, String> {
    let files = [
        ("mem", text.to_owned()),
        ("state", format!("{text}[]\n{text}")),
    ];
    files.map(|(name, text)| (name.to_owned(), text)).into()
}

#[test]
fn they_replace_what_is_there() {
    let bed = Bed::new();
    for text in ["first", "second"] {
        // Longer, as a killed process may have left it.
        fs::write(bed.path(".mem.new"), "longer than the text").unwrap();
        bed.write(text, &|_| Ok(())).unwrap();
        assert_eq!(bed.all(), both(text));
    }
    let full = |_: &File| Err(io::ErrorKind::StorageFull.into());
    let (state, mem) = (bed.path("state"), bed.path("mem"));
    let error = write_files(
        &state,
        &mem,
        &bed.spec,
        &contents("third", &manifest("third"), &full),
    )
    .unwrap_err();
    assert!(
        error.to_string().ends_with("free space, and try again"),
        "{error}"
    );
    assert_eq!(bed.all(), both("second"));
}

#[test]
fn what_another_user_put_beside_them_is_not_used() {
    let bed = Bed::new();
    fs::write(bed.path("precious"), "precious").unwrap();
    let open = fs::Permissions::from_mode(0o666);
    fs::set_permissions(bed.path("precious"), open).unwrap();
    for name in [".mem.new", ".state.new"] {
        fs::hard_link(bed.path("precious"), bed.path(name)).unwrap();
    }
    bed.write("text", &|_| Ok(())).unwrap();
    let mut expected = both("text");
    expected.insert("precious".to_owned(), "precious".to_owned());
    assert_eq!(bed.all(), expected);
    for name in ["mem", "state"] {
        let mode = fs::metadata(bed.path(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "{name}");
    }
}

#[test]
fn what_is_no_regular_file_is_not_replaced_or_removed() {
    for name in ["mem", "state", ".mem.new", ".state.new"] {
        let bed = Bed::new();
        let path = bed.path(name);
        let refused = || {
            let error = bed.write("new", &|_| Ok(())).unwrap_err();
            assert!(
                matches!(&error, Error::NotAFile(at) if *at == path),
                "{error}"
            );
            let left: Vec<_> = fs::read_dir(bed.dir.path()).unwrap().collect();
            assert_eq!(left.len(), 1, "{left:?}");
        };
        fs::create_dir(&path).unwrap();
        refused();
        fs::remove_dir(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o666.into()).unwrap();
        refused();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        refused();
    }
}

#[test]
fn a_target_that_changes_meanwhile_leaves_both() {
    let bed = Bed::new();
    bed.write("old", &|_| Ok(())).unwrap();
    let replace = |step: &str| {
        if step == "swap" {
            fs::remove_file(bed.path("state")).unwrap();
            fs::create_dir(bed.path("state")).unwrap();
        }
        Ok(())
    };
    let error = bed.write("new", &replace).unwrap_err();
    assert!(matches!(error, Error::NotAFile(_)), "{error}");
    assert_eq!(bed.all(), BTreeMap::from([("mem".into(), "old".into())]));
}

#[test]
fn a_file_of_the_machine_is_not_replaced() {
    let mut bed = Bed::new();
    let own = bed.path("own");
    fs::write(&own, "precious").unwrap();
    for (key, value) in [
        ("disk", serde_json::json!([{"path": own}])),
        ("initrd", serde_json::json!(own)),
        (
            "serial",
            serde_json::json!(format!("file={}", own.display())),
        ),
        ("metrics", serde_json::json!(own)),
        ("event-log", serde_json::json!(own)),
    ] {
        let mut json = serde_json::json!({"kernel": "/nonexistent"});
        json[key] = value;
        bed.spec = serde_json::from_value(json).unwrap();
        for name in ["mem", "state"] {
            // By another name.
            std::os::unix::fs::symlink(&own, bed.path(name)).unwrap();
            let error = bed.write("new", &|_| Ok(())).unwrap_err();
            assert!(matches!(error, Error::OwnFile(_)), "{key}: {error}");
            fs::remove_file(bed.path(name)).unwrap();
        }
    }
    assert_eq!(fs::read(&own).unwrap(), b"precious");
    assert_eq!(bed.all().len(), 1);
}

#[test]
fn two_writers_destroy_nothing_of_each_other() {
    let bed = Bed::new();
    let second = |step: &str| {
        match step {
            "swap" => {
                let error = bed.write("early", &|_| Ok(())).unwrap_err();
                assert!(matches!(error, Error::Busy(_)), "{error}");
            }
            "sync-parent" => bed.write("second", &|_| Ok(())).unwrap(),
            _ => {}
        }
        Ok(())
    };
    bed.write("first", &second).unwrap();
    assert_eq!(bed.all(), both("second"));
    // The second one is at work when the first one ends.
    let work = bed.path(".mem.new");
    let begin = |step: &str| match step {
        "sync-parent" => fs::write(&work, "of the second one"),
        _ => Ok(()),
    };
    bed.write("third", &begin).unwrap();
    assert_eq!(fs::read(&work).unwrap(), b"of the second one");
}

#[test]
fn an_error_after_the_swap_says_what_is_there() {
    for (bad, says) in [
        ("swap-second", "don't belong together"),
        ("sync-parent", "loss of power"),
    ] {
        let bed = Bed::new();
        bed.write("old", &|_| Ok(())).unwrap();
        let fail = |step: &str| match step == bad {
            true => Err(io::ErrorKind::Other.into()),
            false => Ok(()),
        };
        let error = bed.write("new", &fail).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        let mut expected = both("new");
        if bad == "swap-second" {
            expected.extend(both("old").remove_entry("state"));
        }
        assert_eq!(bed.all(), expected);
    }
}
