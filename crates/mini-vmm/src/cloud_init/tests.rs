// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Seeds of all kinds of directories.

use std::fs;
use std::io::{Seek, SeekFrom};
use std::process::Command;

use tempfile::TempDir;

use super::*;

fn directory(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, data) in files {
        fs::write(dir.path().join(name), data).unwrap();
    }
    dir
}

/// Whether `image` has `data` at the start of a block.
fn has(image: &[u8], data: &[u8]) -> bool {
    image.chunks(2048).any(|block| block.starts_with(data))
}

#[test]
fn a_seed_has_the_files_that_cloud_init_reads() {
    let dir = directory(&[
        ("user-data", b"#cloud-config\n"),
        ("meta-data", b"instance-id: one\n"),
        ("network-config", b"version: 2\n"),
        ("vendor-data", b"#!/bin/sh\n"),
        ("notes", b"not the guest's\n"),
    ]);
    let image = image(dir.path()).unwrap();
    for (name, data) in [
        ("user-data", &b"#cloud-config\n"[..]),
        ("meta-data", b"instance-id: one\n"),
        ("network-config", b"version: 2\n"),
        ("vendor-data", b"#!/bin/sh\n"),
    ] {
        assert!(has(&image, data), "{name}");
    }
    assert!(!has(&image, b"not the guest's"));
    // The same files make the same seed, which is in the file from its start.
    let mut file = seed(dir.path()).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut read = Vec::new();
    file.read_to_end(&mut read).unwrap();
    assert_eq!(read, image);
}

#[test]
fn metadata_has_a_default_and_user_data_has_none() {
    let dir = directory(&[("user-data", b"")]);
    assert!(has(
        &image(dir.path()).unwrap(),
        b"instance-id: iid-local01\n"
    ));
    let dir = directory(&[("meta-data", b"instance-id: one\n")]);
    let error = image(dir.path()).unwrap_err();
    assert!(matches!(error, SeedError::NoUserData { .. }), "{error}");
}

#[test]
fn each_bad_directory_is_one_sentence() {
    let dir = directory(&[("file", b"")]);
    let says = |path: &Path, part: &str| {
        let text = seed(path).unwrap_err().to_string();
        assert!(text.contains(part) && !text.contains('\n'), "{text}");
    };
    says(&dir.path().join("missing"), "No such file or directory");
    says(&dir.path().join("file"), "Not a directory");
    says(dir.path(), "has no `user-data`");
    fs::create_dir(dir.path().join("user-data")).unwrap();
    says(dir.path(), "it is not a regular file");
    fs::remove_dir(dir.path().join("user-data")).unwrap();
    let fifo = Command::new("mkfifo")
        .arg(dir.path().join("user-data"))
        .status();
    assert!(fifo.unwrap().success());
    says(dir.path(), "it is not a regular file");
}

#[test]
fn the_files_have_a_limit_in_all() {
    let half = vec![b'#'; MAX_SIZE / 2];
    let files = [
        ("user-data", &half[..]),
        ("vendor-data", &half),
        ("meta-data", b""),
    ];
    let dir = directory(&files);
    assert!(image(dir.path()).unwrap().len() > MAX_SIZE);
    fs::write(dir.path().join("meta-data"), "x").unwrap();
    let error = image(dir.path()).unwrap_err();
    assert!(matches!(error, SeedError::TooLarge { .. }), "{error}");
    assert!(error.to_string().contains("more than 4 MiB"), "{error}");
    // A file without an end is not read to its end.
    fs::File::create(dir.path().join("user-data"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    let error = image(dir.path()).unwrap_err();
    assert!(matches!(error, SeedError::TooLarge { .. }), "{error}");
}
