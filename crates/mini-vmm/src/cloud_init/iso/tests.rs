// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reads images back.

use super::*;

/// A number that is in both byte orders.
fn both(bytes: &[u8]) -> usize {
    let (little, big) = bytes.split_at(bytes.len() / 2);
    let value = |bytes: &mut dyn Iterator<Item = &u8>| {
        bytes.fold(0, |value, &byte| value << 8 | usize::from(byte))
    };
    let value = (value(&mut little.iter().rev()), value(&mut big.iter()));
    assert_eq!(value.0, value.1);
    value.0
}

/// The entries of Rock Ridge: a signature and its data each.
fn entries(mut bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut entries = Vec::new();
    while bytes.len() >= 4 {
        let size = usize::from(bytes[2]);
        assert!(
            (4..=bytes.len()).contains(&size) && bytes[3] == 1,
            "{bytes:?}"
        );
        let signature = String::from_utf8(bytes[..2].to_vec()).unwrap();
        entries.push((signature, bytes[4..size].to_vec()));
        bytes = &bytes[size..];
    }
    assert!(bytes.len() <= 1, "{bytes:?}");
    entries
}

/// A directory record.
#[derive(Debug)]
struct Record {
    name: Vec<u8>,
    start: usize,
    size: usize,
    is_directory: bool,
    entries: Vec<(String, Vec<u8>)>,
}

impl Record {
    fn parse(bytes: &[u8]) -> Self {
        let bytes = &bytes[..usize::from(bytes[0])];
        let name_end = 33 + usize::from(bytes[32]);
        assert_eq!((bytes[1], bytes.len() % 2, both(&bytes[28..32])), (0, 0, 1));
        Record {
            name: bytes[33..name_end].to_vec(),
            start: both(&bytes[2..10]) * BLOCK,
            size: both(&bytes[10..18]),
            is_directory: bytes[25] == 2,
            // The name is padded to an even end.
            entries: entries(&bytes[name_end.next_multiple_of(2)..]),
        }
    }

    fn entry(&self, signature: &str) -> &[u8] {
        let found = self.entries.iter().find(|(name, _)| name == signature);
        &found.unwrap().1
    }
}

/// The label, and the files by both names, in order.
fn parse(image: &[u8]) -> (String, Vec<(String, String, Vec<u8>)>) {
    let volume = &image[16 * BLOCK..17 * BLOCK];
    assert_eq!(&volume[..8], b"\x01CD001\x01\0");
    assert_eq!(&image[17 * BLOCK..][..7], b"\xffCD001\x01");
    assert_eq!(both(&volume[80..88]) * BLOCK, image.len());
    assert_eq!(both(&volume[128..132]), BLOCK);
    assert_eq!(volume[881], 1);
    let root = Record::parse(&volume[156..190]);
    let word = |at: usize| <[u8; 4]>::try_from(&volume[at..at + 4]).unwrap();
    let tables = [
        (u32::from_le_bytes(word(140)), [2, 3, 4, 5], [6, 7]),
        (u32::from_be_bytes(word(148)), [5, 4, 3, 2], [7, 6]),
    ];
    for (block, long, short) in tables {
        let table = &image[block as usize * BLOCK..][..both(&volume[132..140])];
        let at = long
            .iter()
            .rev()
            .fold(0, |value, &at| value << 8 | usize::from(table[at]));
        assert_eq!(at * BLOCK, root.start);
        assert_eq!(
            (table[0], table[short[0]], table[short[1]], table[8]),
            (1, 1, 0, 0)
        );
    }

    let mut directory = &image[root.start..][..root.size];
    let mut records = Vec::new();
    while directory.first().is_some_and(|&size| size != 0) {
        records.push(Record::parse(directory));
        directory = &directory[usize::from(directory[0])..];
    }
    for (record, name) in records.iter().zip([0, 1]) {
        assert_eq!(
            (record.name.as_slice(), record.start),
            (&[name][..], root.start)
        );
        assert!(record.is_directory);
    }
    assert_eq!(
        records[0].entries[0],
        ("SP".to_owned(), vec![0xbe, 0xef, 0])
    );
    assert_eq!(records[0].entry("ER"), b"\x0a\0\0\x01RRIP_1991A");
    let file = |record: &Record| {
        assert!(!record.is_directory);
        assert_eq!(both(&record.entry("PX")[..8]), 0o100_400);
        let name = &record.entry("NM")[1..];
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let data = image[record.start..][..record.size].to_vec();
        (text(&record.name), text(name), data)
    };
    let label = String::from_utf8(volume[40..72].to_vec()).unwrap();
    let files = records[2..].iter().map(file).collect();
    (label.trim_end().to_owned(), files)
}

#[test]
fn images_are_read_back_as_they_were_made() {
    let long = (0..=u8::MAX)
        .cycle()
        .take(3 * BLOCK + 1)
        .collect::<Vec<_>>();
    let all = [
        ("A.;1", "a", &b""[..]),
        ("BB.;1", "name of BB", b"x"),
        ("CCC.;1", "c.c", &long),
        ("D.;1", "d", &long[..2 * BLOCK]),
        ("E.;1", "even", b"end"),
    ];
    for count in 0..=all.len() {
        let files = all[..count].iter();
        let entries: Vec<_> = files
            .map(|&(short, name, data)| Entry { short, name, data })
            .collect();
        let image = image("CIDATA", &entries);
        assert_eq!(image.len() % BLOCK, 0);
        let (label, found) = parse(&image);
        assert_eq!(label, "CIDATA");
        let found = found
            .iter()
            .map(|(short, name, data)| (&short[..], &name[..], &data[..]));
        assert_eq!(found.collect::<Vec<_>>(), all[..count]);
    }
}
