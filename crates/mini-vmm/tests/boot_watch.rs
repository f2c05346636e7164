// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Loading as its watcher sees it: in small pieces. It can be stopped after each one, for every source of images.

#![allow(clippy::unwrap_used)] // a test may panic

mod images;

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use mini_vmm::boot::{
    self, BootRequest, Compression, Error, Image, NotDecompressed, Step, Unwatched, Watch, Work,
};
use mini_vmm::config::{BootProtocol, Decompress};
use mini_vmm::layout::MIB;
use mini_vmm::memory;
use vm_memory::{Bytes, GuestAddress};

use images::{AT, Bz, Ph, RAM, elf};

/// The largest piece of work, in bytes.
const PIECE: u64 = 256 << 10;
/// A block of LZ4's legacy frame, which is a piece.
const LZ4_BLOCK: u64 = 8 << 20;

/// Agrees this many times, and records the steps.
struct Patience {
    left: RefCell<usize>,
    steps: RefCell<Vec<Step>>,
}

impl Patience {
    fn of(times: usize) -> Self {
        Patience {
            left: RefCell::new(times),
            steps: RefCell::default(),
        }
    }

    /// Checks that no step was larger than `piece`, and returns the number of steps.
    fn check(&self, piece: u64) -> usize {
        let steps = self.steps.borrow();
        for pair in steps.windows(2) {
            let same = pair[0].work == pair[1].work;
            let from = if same { pair[0].done } else { 0 };
            assert!(pair[1].done - from <= piece, "{pair:?}");
        }
        // The rest after the last call is one piece, too.
        for step in steps.iter().filter(|step| step.total.is_some()) {
            let last = steps.iter().rfind(|other| other.work == step.work).unwrap();
            assert!(last.total.unwrap() - last.done <= piece, "{last:?}");
        }
        steps.len()
    }
}

impl Watch for Patience {
    fn go_on(&self, step: Step) -> bool {
        self.steps.borrow_mut().push(step);
        let mut left = self.left.borrow_mut();
        let go_on = *left > 0;
        *left = left.saturating_sub(1);
        go_on
    }
}

/// `data` followed by its size.
fn with_size(mut packed: Vec<u8>, size: usize) -> Vec<u8> {
    packed.extend((size as u32).to_le_bytes());
    packed
}

fn zstd(data: &[u8]) -> Vec<u8> {
    let mut packed = vec![0; zstd_safe::compress_bound(data.len())];
    let len = zstd_safe::compress(&mut packed[..], data, 19).unwrap();
    packed.truncate(len);
    with_size(packed, data.len())
}

/// A payload of each format with a large content.
fn payloads() -> Vec<(Compression, Vec<u8>)> {
    let zeros = vec![0; 4 << 20];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&zeros).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
    bzip2.write_all(&zeros).unwrap();
    let mut lz4 = b"\x02\x21\x4c\x18".to_vec();
    let two_blocks = vec![0; 12 << 20];
    for block in two_blocks.chunks(LZ4_BLOCK as usize) {
        let packed = lz4_flex::block::compress(block);
        lz4.extend((packed.len() as u32).to_le_bytes());
        lz4.extend(packed);
    }
    let size = zeros.len();
    vec![
        (Compression::Gzip, gzip.finish().unwrap()),
        (Compression::Bzip2, with_size(bzip2.finish().unwrap(), size)),
        (
            Compression::Lzma,
            include_bytes!("data/zeros.lzma").to_vec(),
        ),
        (Compression::Xz, include_bytes!("data/zeros.xz").to_vec()),
        (Compression::Lzo, lzop(&zeros, 256 << 10)),
        (Compression::Lz4, with_size(lz4, two_blocks.len())),
        (Compression::Zstd, zstd(&zeros)),
    ]
}

/// An lzop file with stored blocks, and its size.
fn lzop(data: &[u8], block: usize) -> Vec<u8> {
    let mut out = b"\x89LZO\0\r\n\x1a\n".to_vec();
    out.extend([0x10, 0x30, 0x20, 0xa0, 0x09, 0x40, 1, 5]); // versions, method, level
    out.extend([0; 4 + 12 + 1 + 4]); // no flags, no name
    for block in data.chunks(block) {
        let len = (block.len() as u32).to_be_bytes();
        out.extend([len, len].concat());
        out.extend(block);
    }
    out.extend([0; 4]);
    with_size(out, data.len())
}

#[test]
fn every_decoder_works_in_pieces_and_can_be_stopped_at_each() {
    for (format, payload) in payloads() {
        let piece = match format {
            Compression::Lz4 => LZ4_BLOCK,
            _ => PIECE,
        };
        let patience = Patience::of(usize::MAX);
        let (found, out) = boot::decompress(&payload, 16 * MIB, &patience).unwrap();
        assert_eq!(found, format);
        assert!(out.iter().all(|byte| *byte == 0));
        let asked = patience.check(piece);
        assert!(asked >= 2, "{format}: {asked}");
        for step in patience.steps.borrow().iter() {
            assert_eq!(step.work, Work::Decompress(format));
            assert_eq!(step.total, Some(out.len() as u64));
        }
        for times in [0, 1, asked / 2, asked - 1] {
            let patience = Patience::of(times);
            let stopped = boot::decompress(&payload, 16 * MIB, &patience).unwrap_err();
            assert!(
                matches!(stopped, NotDecompressed::Stopped),
                "{format}: {stopped}"
            );
            assert_eq!(patience.steps.borrow().len(), times + 1, "{format}");
        }
    }
}

#[test]
fn input_that_nothing_comes_out_of_can_be_stopped() {
    const COUNT: usize = 1 << 18;
    // Empty stored blocks, without a last one.
    let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    gzip.extend([0, 0, 0, 0xff, 0xff].repeat(COUNT));
    let mut zstd = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0x58];
    zstd.extend([0; 3].repeat(COUNT));
    let mut lz4 = b"\x02\x21\x4c\x18".to_vec();
    lz4.extend([1, 0, 0, 0, 0].repeat(COUNT));
    for payload in [gzip, zstd, lz4] {
        let payload = with_size(payload, 1 << 20);
        let patience = Patience::of(usize::MAX);
        let damaged = boot::decompress(&payload, MIB, &patience).unwrap_err();
        assert!(
            matches!(damaged, NotDecompressed::Damaged { .. }),
            "{damaged}"
        );
        let asked = patience.steps.borrow().len();
        assert!(asked > payload.len() / PIECE as usize, "{asked}");
        let stopped = boot::decompress(&payload, MIB, &Patience::of(asked / 2)).unwrap_err();
        assert!(matches!(stopped, NotDecompressed::Stopped), "{stopped}");
    }
}

#[test]
fn blocks_larger_than_a_piece_are_refused() {
    let payload = lzop(&vec![0; 512 << 10], 512 << 10);
    let error = boot::decompress(&payload, MIB, &Unwatched).unwrap_err();
    assert!(error.to_string().contains("a block holds more"), "{error}");

    let zeros = vec![0; LZ4_BLOCK as usize + 1];
    let packed = lz4_flex::block::compress(&zeros);
    let mut lz4 = b"\x02\x21\x4c\x18".to_vec();
    lz4.extend((packed.len() as u32).to_le_bytes());
    lz4.extend(packed);
    let payload = with_size(lz4, zeros.len());
    assert!(boot::decompress(&payload, 16 * MIB, &Unwatched).is_err());
}

/// A kernel with two segments of a MiB each.
fn large_elf() -> Vec<u8> {
    let half = vec![0x90; MIB as usize];
    elf(AT, &[Ph::load(AT, &half), Ph::load(AT + 2 * MIB, &half)])
}

/// Loads `kernel`, also as the initrd.
fn load(kernel: &Image, watch: &dyn Watch) -> Result<(), Error> {
    let mem = memory::allocate(RAM).unwrap();
    let request = BootRequest {
        kernel,
        initrd: Some(kernel),
        cmdline: "",
        protocol: BootProtocol::Auto,
        decompress: Decompress::Auto,
        rsdp: None,
        reserved: &[],
    };
    let loaded = boot::load_watched(&mem, &request, watch)?;
    let mut text = [0; 16];
    mem.read_slice(&mut text, loaded.entry).unwrap();
    assert_eq!(text, [0x90; 16]);
    let (start, size) = loaded.initrd.unwrap();
    let mut initrd = vec![0; size as usize];
    mem.read_slice(&mut initrd, start).unwrap();
    assert_eq!(initrd.len() as u64, kernel.size());
    let last = GuestAddress(AT + 3 * MIB - 16);
    mem.read_slice(&mut text, last).unwrap();
    assert_eq!(text, [0x90; 16]);
    Ok(())
}

#[test]
fn loading_can_be_stopped_before_every_piece() {
    let bz = Bz {
        payload: zstd(&large_elf()),
        ..Default::default()
    };
    let dir = tempfile::tempdir().unwrap();
    for bytes in [large_elf(), bz.build()] {
        let path = dir.path().join("kernel");
        fs::write(&path, &bytes).unwrap();
        for image in [
            Image::open(&path).unwrap(),
            Image::from_bytes(bytes, &path).unwrap(),
        ] {
            let patience = Patience::of(usize::MAX);
            load(&image, &patience).unwrap();
            let asked = patience.check(PIECE);
            assert!(asked > 16, "{asked}");
            for times in 0..asked {
                let patience = Patience::of(times);
                let stopped = load(&image, &patience).unwrap_err();
                assert!(matches!(stopped, Error::Stopped), "{stopped}");
                assert_eq!(patience.steps.borrow().len(), times + 1);
            }
        }
    }
}

#[test]
fn looking_for_anything_but_zeros_can_be_stopped() {
    let kernel = Image::from_bytes(vec![0; 8 << 20], Path::new("K")).unwrap();
    let patience = Patience::of(usize::MAX);
    let error = load(&kernel, &patience).unwrap_err().to_string();
    assert!(error.contains("nothing but zeros"), "{error}");
    let asked = patience.check(PIECE);
    assert_eq!(asked, 32);
    let stopped = load(&kernel, &Patience::of(asked - 1)).unwrap_err();
    assert!(matches!(stopped, Error::Stopped), "{stopped}");
}

#[test]
fn a_pipe_is_read_once_and_boots_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = make_fifo(dir.path());
    let kernel = Image::open(&fifo).unwrap();
    assert_eq!(kernel.size(), 0);
    let bytes = large_elf();
    let writer = {
        let (fifo, bytes) = (fifo.clone(), bytes.clone());
        thread::spawn(move || fs::write(fifo, bytes).unwrap())
    };
    let patience = Patience::of(usize::MAX);
    load(&kernel, &patience).unwrap();
    writer.join().unwrap();
    patience.check(PIECE);
    assert_eq!(patience.steps.borrow()[0].work, Work::Read("kernel"));
    assert_eq!(kernel.size(), bytes.len() as u64);
    fs::remove_file(fifo).unwrap();
    load(&kernel, &Unwatched).unwrap();
    boot::receive(&kernel, None, RAM, &Patience::of(0)).unwrap();
}

#[test]
fn a_pipe_whose_writer_has_gone_is_read_to_its_end() {
    for bytes in [&b"initrd"[..], b""] {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(bytes).unwrap();
        drop(writer);
        // As a shell passes it for `<(…)`.
        let path = format!("/dev/fd/{}", reader.as_raw_fd());
        let (kernel, initrd) = (image(), Image::open(Path::new(&path)).unwrap());
        let received = boot::receive(&kernel, Some(&initrd), RAM, &Unwatched);
        match bytes {
            b"" => assert_eq!(
                received.unwrap_err().to_string(),
                format!("initrd {path} is a pipe that brings nothing; check what writes to it")
            ),
            _ => {
                received.unwrap();
                assert_eq!(initrd.size(), 6);
            }
        }
    }
}

#[test]
fn a_pipe_that_brings_too_much_is_refused() {
    let (reader, writer) = std::io::pipe().unwrap();
    let writer = endless(OwnedFd::from(writer).into());
    let reader = OwnedFd::from(reader).into();
    let kernel = Image::from_file(reader, Path::new("K")).unwrap();
    let error = boot::receive(&kernel, None, MIB, &Unwatched).unwrap_err();
    assert_eq!(
        error.to_string(),
        "kernel K is a pipe that brings more than the 1 MiB of memory that the machine has; \
         pass a regular file, or more --memory"
    );
    drop(kernel);
    assert!(writer.recv().unwrap() < 2 * MIB);
}

#[test]
fn a_pipe_is_left_alone_once_reading_was_stopped() {
    struct UpTo(u64);
    impl Watch for UpTo {
        fn go_on(&self, step: Step) -> bool {
            step.done < self.0
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let fifo = make_fifo(dir.path());
    let (kernel, initrd) = (image(), Image::open(&fifo).unwrap());
    let writer = OpenOptions::new().write(true).open(&fifo).unwrap();
    let written = endless(writer);
    let stopped = boot::receive(&kernel, Some(&initrd), RAM, &UpTo(MIB)).unwrap_err();
    assert!(matches!(stopped, Error::Stopped), "{stopped}");
    drop(initrd);
    // What was read until then: one piece, and the pipe's own content.
    let written = written.recv().unwrap();
    assert!(written <= MIB + PIECE + (64 << 10), "{written}");
}

#[test]
fn a_fifo_that_nobody_writes_to_can_be_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = make_fifo(dir.path());
    let kernel = Image::open(&fifo).unwrap();
    let patience = Patience::of(3);
    let stopped = boot::receive(&kernel, None, RAM, &patience).unwrap_err();
    assert!(matches!(stopped, Error::Stopped), "{stopped}");
    assert_eq!(patience.steps.borrow().len(), 4);
}

fn image() -> Image {
    Image::from_bytes(vec![0], Path::new("K")).unwrap()
}

fn make_fifo(dir: &Path) -> PathBuf {
    let fifo = dir.join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
    fifo
}

/// Writes until the reader is gone, and returns the number of bytes.
fn endless(mut pipe: File) -> mpsc::Receiver<u64> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut written = 0;
        while let Ok(count) = pipe.write(&[0x90; 4096]) {
            written += count as u64;
        }
        sender.send(written)
    });
    receiver
}
