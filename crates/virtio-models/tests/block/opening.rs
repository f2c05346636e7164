// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Images that can and can't be opened.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tempfile::TempDir;
use virtio_models::block::{BlockSpec, MAX_QUEUES, OpenError, open};

fn image(dir: &TempDir, name: &str, size: u64) -> PathBuf {
    let path = dir.path().join(name);
    File::create(&path)
        .and_then(|file| file.set_len(size))
        .expect("an image");
    path
}

/// The error message for a disk that can't be opened.
fn sentence(spec: &BlockSpec) -> String {
    let error = open(spec).expect_err("a disk that can't be");
    let text = error.to_string();
    assert!(text.len() > 40 && !text.contains('\n'), "{text}");
    text
}

#[test]
fn each_bad_image_has_its_sentence() {
    let dir = TempDir::new().unwrap();
    let small = image(&dir, "small", 1000);
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let cases = [
        (dir.path().join("none"), "there is no disk image"),
        (small.join("below"), "there is no disk image"),
        (dir.path().to_owned(), "is a directory"),
        (image(&dir, "empty", 0), "is empty"),
        (small, "has 1000 bytes, which is not a multiple of 512"),
        (fifo, "is a named pipe"),
        (PathBuf::from("/dev/null"), "is a character device"),
    ];
    let before = fs::read_dir(dir.path()).unwrap().count();
    for (path, wanted) in cases {
        for readonly in [false, true] {
            let mut spec = BlockSpec::new(&path);
            spec.readonly = readonly;
            let text = sentence(&spec);
            assert!(text.contains(wanted), "{text}");
        }
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before);
}

#[test]
fn an_image_is_locked() {
    let dir = TempDir::new().unwrap();
    let path = image(&dir, "disk", 4096);
    let writes = BlockSpec::new(&path);
    let mut reads = writes.clone();
    reads.readonly = true;
    let writer = open(&writes).unwrap();
    assert!(matches!(open(&writes), Err(OpenError::Locked { .. })));
    assert!(sentence(&reads).contains("in use by another machine"));
    drop(writer);
    let readers = (open(&reads).unwrap(), open(&reads).unwrap());
    assert!(sentence(&writes).contains("in use by another machine"));
    drop(readers);
    open(&writes).unwrap();
}

#[test]
fn permissions_are_told() {
    let dir = TempDir::new().unwrap();
    let path = image(&dir, "disk", 4096);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    if File::options().write(true).open(&path).is_ok() {
        eprintln!("skipped: this user may write everything");
        return;
    }
    let mut spec = BlockSpec::new(&path);
    assert!(sentence(&spec).contains("say `readonly`"));
    spec.readonly = true;
    open(&spec).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o0)).unwrap();
    assert!(sentence(&spec).contains("can't be read"));
}

#[test]
fn what_is_said_of_a_disk_is_checked() {
    let dir = TempDir::new().unwrap();
    let mut spec = BlockSpec::new(image(&dir, "disk", 8192));
    for serial in ["123456789012345678901", "a\nb", "\u{e4}"] {
        spec.serial = Some(serial.to_owned());
        assert!(matches!(open(&spec), Err(OpenError::Serial(_))));
    }
    spec.serial = Some("12345678901234567890".to_owned());
    for queues in [0, MAX_QUEUES + 1] {
        spec.queues = queues;
        assert!(matches!(open(&spec), Err(OpenError::Queues(_))));
    }
    spec.queues = MAX_QUEUES;
    let disk = open(&spec).unwrap().disk();
    assert_eq!((disk.sectors, disk.queues), (16, MAX_QUEUES));
    assert_eq!(&disk.serial, b"12345678901234567890");
}

#[test]
fn a_spec_is_plain_data() {
    let text = r#"{"path":"/x","readonly":true,"cache":"writethrough","queues":2}"#;
    let spec: BlockSpec = serde_json::from_str(text).unwrap();
    assert!(spec.readonly && spec.queues == 2);
    let again = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<BlockSpec>(&again).unwrap(), spec);
    assert!(serde_json::from_str::<BlockSpec>(r#"{"path":"/x","colour":1}"#).is_err());
    let short: BlockSpec = serde_json::from_str(r#"{"path":"/x"}"#).unwrap();
    assert_eq!(short, BlockSpec::new("/x"));
}

#[test]
fn direct_images_have_the_alignment_of_their_disk() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut spec = BlockSpec::new(image(&dir, "disk", 8192));
    spec.direct = true;
    let disk = match open(&spec) {
        Ok(image) => image.disk(),
        Err(OpenError::Direct(_)) => {
            eprintln!("skipped: no direct I/O in this file system");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    assert!(disk.block_size >= 512 && disk.alignment >= 1);
}
