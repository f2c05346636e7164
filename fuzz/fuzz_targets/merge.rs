// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two memory files that are merged: the guest's pages, a Diff's list, and damage to either.
//!
//! The first byte of the input is how many pages the guest has beyond the fewest possible, the second one the Diff's
//! depth. Then come steps of four bytes: what to do, a number, and a value.

#![no_main]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mini_vmm::layout::{MIN_RAM, PAGE_SIZE};
use mini_vmm::snapshot::merge;

const PAGE: usize = PAGE_SIZE as usize;
/// The pages between the guest's bytes and a Diff's list.
const TAILS: u64 = 256;

static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("mini-vmm-merge-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a directory");
    dir
});

fn create(name: &str) -> (PathBuf, File) {
    let path = DIR.join(name);
    let mut options = File::options();
    let options = options.read(true).write(true).create(true).truncate(true);
    let file = options.open(&path).expect("a file");
    (path, file)
}

fn write(file: &File, bytes: &[u8], at: u64) {
    file.write_all_at(bytes, at).expect("space");
}

fn page(file: &File, number: u64) -> [u8; PAGE] {
    let mut bytes = [0; PAGE];
    file.read_exact_at(&mut bytes, number * PAGE_SIZE)
        .expect("a page");
    bytes
}

/// Writes the text that ends the memory of snapshot `id`.
fn end(file: &File, ram: u64, depth: u64, id: u64, parent: Option<u64>) {
    let text = match parent {
        None => format!("mini-vmm memory 1 {id:032x} {ram}\n"),
        Some(parent) => format!("mini-vmm changes 1 {id:032x} {ram} {parent:032x}\n"),
    };
    write(file, text.as_bytes(), ram + depth * PAGE_SIZE);
}

fuzz_target!(|input: &[u8]| {
    let Some(([extra, depth], steps)) = input.split_first_chunk() else {
        return;
    };
    let pages = MIN_RAM / PAGE_SIZE + u64::from(extra % 17);
    let ram = pages * PAGE_SIZE;
    let depth = 1 + u64::from(depth % 4);
    let (base_path, base) = create("base");
    for id in 0..depth {
        end(&base, ram, id, id, id.checked_sub(1));
    }
    let (diff_path, diff) = create("diff");
    let list = ram + TAILS * PAGE_SIZE;
    let size = list + pages.div_ceil(8);
    diff.set_len(size).expect("space");
    end(&diff, ram, depth, depth, Some(depth - 1));
    let (mut touched, mut is_damaged) = (BTreeSet::from([0, pages - 1]), false);
    for [step, high, low, value] in steps.as_chunks().0.iter().take(64) {
        let number = u64::from(u16::from_be_bytes([*high, *low]));
        let at = number % pages;
        touched.insert(at);
        is_damaged |= step % 8 > 2;
        match step % 8 {
            0 => write(&base, &[*value; PAGE], at * PAGE_SIZE),
            1 => {
                let mut bits = [0];
                let _ = diff.read_at(&mut bits, list + at / 8);
                write(&diff, &[bits[0] | 1 << (at % 8)], list + at / 8);
                if *value != 0 {
                    write(&diff, &[*value; PAGE], at * PAGE_SIZE);
                }
            }
            // What is not listed does not count.
            2 => write(&diff, &[*value; PAGE], at * PAGE_SIZE),
            3 => write(&diff, &[*value], ram + number),
            4 => write(&base, &[*value], ram + number),
            5 => write(&diff, &[*value], list + number),
            6 => diff.set_len(size.saturating_sub(number)).expect("shorter"),
            _ => base.set_len((ram + PAGE_SIZE).saturating_sub(number)).expect("shorter"),
        }
        if step % 8 == 5 {
            touched.extend((number * 8..number * 8 + 8).filter(|page| *page < pages));
        }
    }
    let (out_path, _) = create("out");
    match merge(&base_path, &diff_path, &out_path) {
        Err(error) => {
            assert!(is_damaged, "{error}");
            assert!(!error.to_string().is_empty());
            assert_eq!(fs::metadata(&out_path).expect("it").len(), 0);
        }
        Ok(()) => {
            let out = File::open(&out_path).expect("it");
            for number in &touched {
                let mut bits = [0];
                diff.read_exact_at(&mut bits, list + number / 8)
                    .expect("a list");
                let from = match bits[0] & 1 << (number % 8) {
                    0 => &base,
                    _ => &diff,
                };
                assert!(page(from, *number) == page(&out, *number), "{number}");
            }
            // All else is holes, and there is at most one page for each snapshot.
            let most = touched.len() as u64 + depth + 1;
            assert!(out.metadata().expect("it").blocks() * 512 <= most * PAGE_SIZE);
        }
    }
});
