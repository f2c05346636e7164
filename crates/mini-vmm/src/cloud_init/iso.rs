// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A writer of small ISO 9660 images: one directory of files, with their real names in Rock Ridge entries (ECMA-119;
//! IEEE P1281 "SUSP"; IEEE P1282 "RRIP").
//!
//! Each image of the same files is the same, so all times in it are the same moment.

/// The size of a logical block.
const BLOCK: usize = 2048;

/// The first block of volume descriptors; those before it are free for other uses.
const FIRST: usize = 16;

/// The blocks of the two path tables, the directory and the first file.
const LITTLE_TABLE: usize = FIRST + 2;
const BIG_TABLE: usize = LITTLE_TABLE + 1;
const DIRECTORY: usize = BIG_TABLE + 1;
const FILES: usize = DIRECTORY + 1;

/// The size of a path table with nothing but the root directory.
const TABLE_SIZE: u32 = 10;

/// The start of 1980 in a directory record: years since 1900, month, day, hour, minute, second, time zone.
const TIME: [u8; 7] = [80, 1, 1, 0, 0, 0, 0];

/// A file of an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    /// The name in ISO 9660's own form, such as `USERDATA.;1`. They must be in ascending order.
    pub(super) short: &'static str,
    /// The name that a system with Rock Ridge shows.
    pub(super) name: &'static str,
    /// The content.
    pub(super) data: &'a [u8],
}

/// The image of a volume named `label` with `files`, whose records must fit in one block: a dozen do.
///
/// # Panics
/// If they don't fit, or if they have 4 GiB or more.
pub(super) fn image(label: &str, files: &[Entry<'_>]) -> Vec<u8> {
    let mut directory = Vec::new();
    for name in [&[0], &[1]] {
        let more = if name == &[0] {
            &first_entries()[..]
        } else {
            &[]
        };
        let block = Extent {
            block: DIRECTORY,
            size: BLOCK,
        };
        record(&mut directory, name, block, Kind::Directory, more);
    }
    let mut contents = Vec::new();
    for file in files {
        let extent = Extent {
            block: FILES + contents.len() / BLOCK,
            size: file.data.len(),
        };
        let name = name_entry(file.name);
        record(
            &mut directory,
            file.short.as_bytes(),
            extent,
            Kind::File,
            &name,
        );
        contents.extend_from_slice(file.data);
        contents.resize(contents.len().next_multiple_of(BLOCK), 0);
    }
    assert!(directory.len() <= BLOCK, "a directory of one block");
    let blocks = FILES + contents.len() / BLOCK;

    let mut image = vec![0; FIRST * BLOCK];
    let mut block = |bytes: &[u8]| {
        image.extend_from_slice(bytes);
        image.resize(image.len().next_multiple_of(BLOCK), 0);
    };
    block(&volume(label, blocks));
    block(b"\xffCD001\x01");
    block(&path_table(u32::to_le_bytes, u16::to_le_bytes));
    block(&path_table(u32::to_be_bytes, u16::to_be_bytes));
    block(&directory);
    image.extend_from_slice(&contents);
    image
}

/// Where a file or a directory is.
#[derive(Clone, Copy)]
struct Extent {
    block: usize,
    size: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    File,
    Directory,
}

fn number(value: usize) -> u32 {
    u32::try_from(value).expect("an image below 4 GiB")
}

/// A number in both byte orders, as most of the format's fields are.
fn both32(value: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&value.to_le_bytes());
    bytes[4..].copy_from_slice(&value.to_be_bytes());
    bytes
}

fn both16(value: u16) -> [u8; 4] {
    let [low, high] = value.to_le_bytes();
    [low, high, high, low]
}

/// The primary volume descriptor (ECMA-119, 8.4).
fn volume(label: &str, blocks: usize) -> Vec<u8> {
    let mut bytes = b"\x01CD001\x01\x00".to_vec();
    let text = |bytes: &mut Vec<u8>, text: &str, size: usize| {
        let end = bytes.len() + size;
        bytes.extend_from_slice(text.as_bytes());
        bytes.resize(end, b' ');
    };
    text(&mut bytes, "LINUX", 32);
    text(&mut bytes, label, 32);
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&both32(number(blocks)));
    bytes.extend_from_slice(&[0; 32]);
    // The number of volumes, this one's number, and the size of a block.
    for value in [1, 1, BLOCK as u16] {
        bytes.extend_from_slice(&both16(value));
    }
    bytes.extend_from_slice(&both32(TABLE_SIZE));
    bytes.extend_from_slice(&number(LITTLE_TABLE).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&number(BIG_TABLE).to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    let root = Extent {
        block: DIRECTORY,
        size: BLOCK,
    };
    plain_record(&mut bytes, &[0], root, Kind::Directory);
    // The names of the set, the publisher, the preparer, the application, and of three files.
    text(&mut bytes, "", 4 * 128 + 3 * 37);
    // Four times that are not given, then the version of the format.
    for _ in 0..4 {
        bytes.extend_from_slice(b"0000000000000000\0");
    }
    bytes.push(1);
    bytes
}

/// A path table with the root directory, in one byte order (ECMA-119, 9.4).
fn path_table(long: fn(u32) -> [u8; 4], short: fn(u16) -> [u8; 2]) -> Vec<u8> {
    let mut bytes = vec![1, 0];
    bytes.extend_from_slice(&long(number(DIRECTORY)));
    bytes.extend_from_slice(&short(1));
    bytes.extend_from_slice(&[0, 0]);
    bytes
}

/// Appends a directory record with `entries`, and the file's mode, for systems with Rock Ridge.
fn record(to: &mut Vec<u8>, name: &[u8], extent: Extent, kind: Kind, entries: &[u8]) {
    let start = to.len();
    plain_record(to, name, extent, kind);
    to.extend_from_slice(entries);
    to.extend_from_slice(&mode_entry(kind));
    to.resize(to.len().next_multiple_of(2), 0);
    to[start] = u8::try_from(to.len() - start).expect("short names");
}

/// Appends a directory record without entries of extensions (ECMA-119, 9.1).
fn plain_record(to: &mut Vec<u8>, name: &[u8], extent: Extent, kind: Kind) {
    let start = to.len();
    to.extend_from_slice(&[0, 0]);
    to.extend_from_slice(&both32(number(extent.block)));
    to.extend_from_slice(&both32(number(extent.size)));
    to.extend_from_slice(&TIME);
    to.extend_from_slice(&[u8::from(kind == Kind::Directory) << 1, 0, 0]);
    to.extend_from_slice(&both16(1));
    let size = u8::try_from(name.len()).expect("short names");
    to.push(size);
    to.extend_from_slice(name);
    if size.is_multiple_of(2) {
        to.push(0);
    }
    to[start] = u8::try_from(to.len() - start).expect("short names");
}

/// What the directory's first record begins with: SP says that there are such entries (SUSP 5.3), ER which ones they
/// are (SUSP 5.5).
fn first_entries() -> Vec<u8> {
    let mut bytes = b"SP\x07\x01\xbe\xef\0".to_vec();
    let extension = b"RRIP_1991A";
    bytes.extend_from_slice(b"ER\x12\x01\x0a\0\0\x01");
    bytes.extend_from_slice(extension);
    bytes
}

/// NM: the file's name (RRIP 4.1.4).
fn name_entry(name: &str) -> Vec<u8> {
    let size = u8::try_from(5 + name.len()).expect("short names");
    let mut bytes = vec![b'N', b'M', size, 1, 0];
    bytes.extend_from_slice(name.as_bytes());
    bytes
}

/// PX: mode, links, user and group (RRIP 4.1.1). Everything is root's, who alone may read it: user data has secrets.
fn mode_entry(kind: Kind) -> Vec<u8> {
    let (mode, links) = match kind {
        Kind::File => (0o100_400, 1),
        Kind::Directory => (0o040_500, 2),
    };
    let mut bytes = b"PX\x24\x01".to_vec();
    for value in [mode, links, 0, 0] {
        bytes.extend_from_slice(&both32(value));
    }
    bytes
}

#[cfg(test)]
mod tests;
