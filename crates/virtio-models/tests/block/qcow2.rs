// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! qcow2 images and overlays.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use imago::qcow2::Qcow2;
use imago::{FormatCreateBuilder, StorageOpenOptions};
use tempfile::TempDir;
use virtio_models::block::{Block, BlockSpec, Format, open, open_saved};
use virtio_transport::testing::{
    Driver, MEMORY, Machine, Memory, MmioPort, Reply, Request, Subject, memory,
};

use crate::support::*;

const SIZE: u64 = 1 << 20;

/// A new qcow2 image.
fn image(dir: &TempDir, name: &str) -> PathBuf {
    let path = dir.path().join(name);
    let options = File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&path);
    let file = options.expect("a file");
    let file = imago::file::File::from_open_file(file, StorageOpenOptions::new().write(true));
    let create = Qcow2::<imago::file::File>::create_builder(file.expect("a storage"));
    create.size(SIZE).create().expect("an image");
    path
}

fn qcow2(path: &Path) -> BlockSpec {
    BlockSpec {
        format: Format::Qcow2,
        ..BlockSpec::new(path)
    }
}

fn base(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("base");
    let bytes: Vec<u8> = (0..SIZE as usize).map(pattern).collect();
    fs::write(&path, bytes).expect("a base");
    path
}

/// Asks a disk, and ends its machine.
fn ask(spec: &BlockSpec, requests: &[(Vec<u8>, u32)]) -> Vec<Reply> {
    let image = open(spec).expect("an image");
    let block = Block::new(image, Box::new(|notice| panic!("{notice}")));
    ask_block(block, requests)
}

/// Asks a device, and ends its machine.
fn ask_block(block: Block<Memory>, requests: &[(Vec<u8>, u32)]) -> Vec<Reply> {
    let mut machine = Machine::<MmioPort>::new(Box::new(block), &memory(MEMORY));
    let mut driver = Driver::start(&mut machine, u64::MAX);
    let mut replies = Vec::new();
    for (readable, writable) in requests.iter().cloned() {
        let request = Request {
            queue: 0,
            readable,
            writable,
        };
        driver.send(&machine, &request);
        machine.kick(0);
        machine.pump_until(|machine| {
            replies.extend(driver.receive_all(machine));
            driver.in_flight() == 0
        });
    }
    machine.pause().expect("a disk that drains");
    replies.into_iter().map(|(_, reply)| reply).collect()
}

fn write(sector: u64, fill: u8) -> (Vec<u8>, u32) {
    ([header(OUT, sector), vec![fill; 1024]].concat(), 1)
}

fn read(sector: u64) -> (Vec<u8>, u32) {
    (header(IN, sector), 1025)
}

fn zero(kind: u32, sector: u64, count: u32, flags: u32) -> (Vec<u8>, u32) {
    ([header(kind, 0), range(sector, count, flags)].concat(), 1)
}

/// A status of success behind 1,024 bytes of one kind.
fn holds(reply: &Reply, fill: u8) -> bool {
    reply.bytes[..1024].iter().all(|byte| *byte == fill) && reply.bytes[1024] == OK
}

#[test]
fn what_was_flushed_is_there_again() {
    let dir = TempDir::new().unwrap();
    let mut spec = qcow2(&image(&dir, "disk"));
    assert_eq!(open(&spec).unwrap().disk().sectors, SIZE / 512);
    let flush = (header(FLUSH, 0), 1);
    let asked = [
        write(0, 1),
        write(1000, 2),
        write(1024, 3),
        zero(WRITE_ZEROES, 1000, 2, 0),
        zero(DISCARD, 0, 128, 0),
        zero(WRITE_ZEROES, 256, 128, 1),
        write(0, 4),
        flush,
        read(0),
    ];
    let replies = ask(&spec, &asked);
    assert!(
        replies[..8].iter().all(|reply| reply.bytes == [OK]),
        "{replies:?}"
    );
    assert!(holds(&replies[8], 4));
    spec.readonly = true;
    let replies = ask(&spec, &[read(0), read(1000), read(1024), read(1500)]);
    for (reply, fill) in replies.iter().zip([4, 0, 3, 0]) {
        assert!(holds(reply, fill), "{fill}");
    }
}

/// Bytes of a header, by their offsets.
type Changes<'a> = &'a [(usize, &'a [u8])];

/// Changes bytes of a header; the sentence about it.
fn refused(changes: Changes<'_>) -> String {
    let dir = TempDir::new().expect("an image to change");
    let path = image(&dir, "disk");
    let mut bytes = fs::read(&path).expect("an image to change");
    for (at, with) in changes {
        bytes[*at..at + with.len()].copy_from_slice(with);
    }
    fs::write(&path, &bytes).expect("an image to change");
    let error = open(&qcow2(&path)).expect_err("an image that can't be");
    assert_eq!(
        fs::read(&path).expect("an image to change"),
        bytes,
        "the image is changed"
    );
    let text = error.to_string();
    assert!(!text.contains('\n') && text.len() > 60, "{text}");
    text
}

#[test]
fn headers_are_looked_at_before_they_are_trusted() {
    let absurd = "numbers in its header";
    let cases: &[(Changes<'_>, &str)] = &[
        (&[(0, b"QFI\0")], "no qcow2 header"),
        (&[(7, &[1])], "unknown version"),
        (&[(7, &[4])], "unknown version"),
        (&[(15, &[200])], "names a backing file"),
        (&[(35, &[1])], "is encrypted"),
        (&[(35, &[2])], "is encrypted"),
        (&[(63, &[1])], "snapshots inside"),
        (&[(79, &[1])], "not closed properly"),
        (&[(79, &[2])], "not closed properly"),
        (&[(79, &[4])], "another file"),
        (&[(79, &[8])], "not supported"),
        (&[(72, &[0x80])], "not supported"),
        (&[(23, &[8])], absurd),
        (&[(23, &[22])], absurd),
        (&[(20, &[0xff])], absurd),
        (&[(24, &[0x7f])], absurd),
        (&[(36, &[0xff])], absurd),
        (&[(36, &[0; 4])], absurd),
        (&[(30, &[2, 1])], "not a multiple of 512"),
        (&[(40, &[0xff])], absurd),
        (&[(47, &[1])], absurd),
        (&[(48, &[0xff])], absurd),
        (&[(56, &[0xff])], absurd),
        (&[(59, &[0])], absurd),
        (&[(99, &[7])], absurd),
    ];
    for (changes, wanted) in cases {
        let text = refused(changes);
        assert!(text.contains(wanted), "{changes:?}: {text}");
    }
    // What imago says of the rest, as one sentence, too.
    refused(&[(24, &[0xff; 8]), (36, &[0, 0, 0, 1])]);
    let dir = TempDir::new().unwrap();
    let short = dir.path().join("short");
    fs::write(&short, b"QFI\xfb").unwrap();
    let text = open(&qcow2(&short)).unwrap_err().to_string();
    assert!(text.contains("too short"), "{text}");
}

/// An image with data in its first cluster: its bytes, and the places of its tables in the file.
struct Tables {
    bytes: Vec<u8>,
    l1: usize,
    l2: usize,
    refcounts: usize,
}

impl Tables {
    fn new(dir: &TempDir) -> Self {
        let path = image(dir, "tables");
        ask(&qcow2(&path), &[write(0, 1)]);
        let bytes = fs::read(path).expect("an image");
        let place = |at: usize| {
            let entry = bytes[at..at + 8].try_into().expect("eight bytes");
            (u64::from_be_bytes(entry) & !(1 << 63)) as usize
        };
        let l1 = place(40);
        Tables {
            l1,
            l2: place(l1),
            refcounts: place(48),
            bytes,
        }
    }

    /// Writes it with another entry at `at`.
    fn with(&self, at: usize, entry: u64, path: &Path) {
        let mut bytes = self.bytes.clone();
        bytes[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        fs::write(path, bytes).expect("an image");
    }
}

const COPIED: u64 = 1 << 63;

#[test]
fn tables_that_lead_to_each_other_are_refused() {
    let dir = TempDir::new().unwrap();
    let (tables, path) = (Tables::new(&dir), dir.path().join("disk"));
    let Tables {
        l1, l2, refcounts, ..
    } = tables;
    let (loops, damaged) = ("lead to each other or out of it", "is damaged: ");
    for (at, entry, part) in [
        (l1, COPIED | l1 as u64, loops),
        (l1, COPIED | refcounts as u64, loops),
        (refcounts, l2 as u64, loops),
        (refcounts, refcounts as u64, loops),
        (l1, COPIED | 0x00ff_ffff_ffff_0000, loops),
        (l1, COPIED | (l2 as u64 + 512), damaged),
    ] {
        tables.with(at, entry, &path);
        let before = fs::read(&path).unwrap();
        let text = open(&qcow2(&path)).unwrap_err().to_string();
        assert!(text.contains(part), "{at:#x}, {entry:#x}: {text}");
        assert!(text.ends_with("repair it with `qemu-img check -r all`"));
        assert_eq!(fs::read(&path).unwrap(), before);
    }
}

#[test]
fn tables_that_point_anywhere_are_errors_of_requests() {
    let dir = TempDir::new().unwrap();
    let (tables, path) = (Tables::new(&dir), dir.path().join("disk"));
    for entry in [
        COPIED | tables.l1 as u64,
        COPIED | tables.l2 as u64,
        COPIED | 0x00ff_ffff_ffff_0000,
        COPIED | 1,
    ] {
        tables.with(tables.l2, entry, &path);
        let image = open(&qcow2(&path)).unwrap();
        let block = Block::<Memory>::new(image, Box::new(|_| ()));
        let mut machine = Machine::<MmioPort>::new(Box::new(block), &memory(MEMORY));
        let mut driver = Driver::start(&mut machine, u64::MAX);
        for (readable, writable) in [read(0), write(0, 2), (header(FLUSH, 0), 1)] {
            let request = Request {
                queue: 0,
                readable,
                writable,
            };
            driver.send(&machine, &request);
            machine.kick(0);
        }
        // Each has an answer, whatever it is.
        machine.pump_until(|machine| {
            driver.receive_all(machine);
            driver.in_flight() == 0
        });
        assert!(machine.failures.is_empty());
    }
}

#[test]
fn a_raw_disk_with_a_header_stays_raw() {
    let dir = TempDir::new().unwrap();
    let path = image(&dir, "disk");
    let len = fs::metadata(&path).unwrap().len().next_multiple_of(512);
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(len)
        .unwrap();
    let replies = ask(&BlockSpec::new(&path), &[read(0)]);
    assert_eq!(replies[0].bytes[..4], *b"QFI\xfb");
}

#[test]
fn the_base_of_an_overlay_is_never_written() {
    let dir = TempDir::new().unwrap();
    let path = base(&dir);
    let before = fs::read(&path).unwrap();
    let mut spec = BlockSpec::new(&path);
    spec.overlay = Some(dir.path().to_owned());
    // Two share it.
    let other = open(&spec).unwrap();
    let asked = [write(8, 9), (header(FLUSH, 0), 1), read(8), read(100)];
    let replies = ask(&spec, &asked);
    assert!(holds(&replies[2], 9));
    let wanted: Vec<u8> = (51_200..52_224).map(pattern).collect();
    assert_eq!(replies[3].bytes[..1024], wanted);
    drop(other);
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        1,
        "nothing is left"
    );
    // A new overlay knows nothing of the one before.
    assert!(!holds(&ask(&spec, &[read(8)])[0], 9));
    // Of a qcow2 image, too.
    let path = image(&dir, "disk");
    ask(&qcow2(&path), &[write(0, 7)]);
    let before = fs::read(&path).unwrap();
    let mut spec = qcow2(&path);
    spec.overlay = Some("tmp".into());
    let replies = ask(&spec, &[write(2, 8), read(0), read(2)]);
    assert!(holds(&replies[1], 7) && holds(&replies[2], 8));
    assert_eq!(fs::read(&path).unwrap(), before);
}

/// What a saved overlay holds after these requests to a disk over `base`.
fn saved(spec: &BlockSpec, requests: &[(Vec<u8>, u32)]) -> Vec<u8> {
    let image = open(spec).expect("an image");
    let block = Block::new(image, Box::new(|notice| panic!("{notice}")));
    let control = block.control();
    ask_block(block, requests);
    let file = control
        .overlay()
        .expect("a descriptor")
        .expect("an overlay");
    let mut bytes = vec![0; file.metadata().expect("a size").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("its bytes");
    bytes
}

#[test]
fn an_overlay_goes_on_from_a_copy() {
    let dir = TempDir::new().unwrap();
    let path = base(&dir);
    let mut spec = BlockSpec::new(&path);
    spec.overlay = Some(dir.path().to_owned());
    let bytes = saved(&spec, &[write(8, 9), (header(FLUSH, 0), 1)]);
    let fill = |file: &File| file.write_all_at(&bytes, 0);
    // Two that go their own ways.
    for value in [20, 30] {
        let image = open_saved(&spec, &fill).unwrap();
        let block = Block::new(image, Box::new(|notice| panic!("{notice}")));
        let asked = [read(8), read(12), write(12, value), read(12)];
        let replies = ask_block(block, &asked);
        let below: Vec<u8> = (6144..6656).map(pattern).collect();
        assert!(holds(&replies[0], 9) && replies[1].bytes[..512] == below);
        assert!(holds(&replies[3], value));
    }
    let refused = |spec: &BlockSpec, bytes: &[u8]| {
        let fill = |file: &File| file.write_all_at(bytes, 0);
        open_saved(spec, &fill).unwrap_err().to_string()
    };
    for (bytes, why) in [
        (&bytes[..71], "too short"),
        (&[0; 4096], "no qcow2 header"),
        (&bytes[..bytes.len() / 2], "header that can't be"),
    ] {
        let text = refused(&spec, bytes);
        assert!(text.contains(why), "{text}");
    }
    let full = |_: &File| Err(std::io::ErrorKind::StorageFull.into());
    let text = open_saved(&spec, &full).unwrap_err().to_string();
    assert!(text.contains("free space"), "{text}");
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(SIZE / 2)
        .unwrap();
    let text = refused(&spec, &bytes);
    assert!(text.contains("another size"), "{text}");
    spec.overlay = None;
    let text = refused(&spec, &bytes);
    assert!(text.contains("no place is given"), "{text}");
}

#[test]
fn only_an_overlay_has_an_overlay() {
    let dir = TempDir::new().unwrap();
    for spec in [BlockSpec::new(base(&dir)), qcow2(&image(&dir, "disk"))] {
        let block = Block::<Memory>::new(open(&spec).unwrap(), Box::new(|_| ()));
        assert!(block.control().overlay().unwrap().is_none());
    }
}

#[test]
fn an_overlay_needs_its_place() {
    let dir = TempDir::new().unwrap();
    let mut spec = BlockSpec::new(base(&dir));
    spec.overlay = Some(dir.path().join("none"));
    let text = open(&spec).unwrap_err().to_string();
    assert!(text.contains("no overlay can be made"), "{text}");
    spec.overlay = Some(dir.path().to_owned());
    spec.readonly = true;
    let text = open(&spec).unwrap_err().to_string();
    assert!(text.contains("leave out one of them"), "{text}");
    spec.readonly = false;
    spec.direct = true;
    let text = open(&spec).unwrap_err().to_string();
    assert!(text.contains("`direct`"), "{text}");
}

/// Overlays over one base.
struct Overlays {
    dir: TempDir,
    spec: BlockSpec,
}

fn overlays() -> Overlays {
    let dir = TempDir::new().expect("a directory");
    let mut spec = BlockSpec::new(base(&dir));
    spec.overlay = Some(dir.path().to_owned());
    Overlays { dir, spec }
}

impl Subject for Overlays {
    type Device = Block<Memory>;

    fn device(&self) -> Self::Device {
        assert!(self.dir.path().exists());
        Block::new(open(&self.spec).expect("an overlay"), Box::new(|_| ()))
    }

    fn request(&self, n: u32) -> Request {
        let sector = u64::from(n % 64);
        let (readable, writable) = match n % 3 {
            0 => read(sector),
            1 => write(128 + sector, n as u8),
            _ => (header(FLUSH, 0), 1),
        };
        Request {
            queue: 0,
            readable,
            writable,
        }
    }

    fn check(&self, n: u32, _: u64, reply: &Reply) {
        let (status, data) = reply.bytes.split_last().expect("a status");
        assert_eq!(*status, OK, "request {n}");
        let start = (n % 64) as usize * 512;
        let mut bytes = data.iter().zip(start..);
        assert!(!n.is_multiple_of(3) || bytes.all(|(byte, i)| *byte == pattern(i)));
    }
}

virtio_transport::device_suite!(overlay, crate::qcow2::overlays());
