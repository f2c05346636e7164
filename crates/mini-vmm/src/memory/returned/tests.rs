// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fs::{self, File};

use libc::{MAP_NORESERVE, MAP_SHARED, PROT_READ, PROT_WRITE};
use vm_memory::{Bytes, FileOffset, GuestAddress, MmapRegion};

use super::*;
use crate::layout::{GIB, HOLE_END, HOLE_START, MIB};
use crate::memory::{allocate, map};

const RAM: u64 = 64 * MIB;

/// A file with ones.
fn ones() -> File {
    let file = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![1; RAM as usize], 0).unwrap();
    file
}

/// A shared mapping, as a process with which the machine shares it has.
fn shared() -> (GuestMemoryMmap, File) {
    let file =
        File::from(rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(RAM).unwrap();
    let offset = FileOffset::new(file.try_clone().unwrap(), 0);
    let flags = MAP_SHARED | MAP_NORESERVE;
    let region =
        MmapRegion::build(Some(offset), RAM as usize, PROT_READ | PROT_WRITE, flags).unwrap();
    let region = GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
    (GuestMemoryMmap::from_regions(vec![region]).unwrap(), file)
}

fn fill(memory: &GuestMemoryMmap, range: Range<u64>, value: u8) {
    let bytes = vec![value; (range.end - range.start) as usize];
    memory
        .write_slice(&bytes, GuestAddress(range.start))
        .unwrap();
}

fn is(memory: &GuestMemoryMmap, range: Range<u64>, value: u8) -> bool {
    let mut bytes = vec![!value; (range.end - range.start) as usize];
    memory
        .read_slice(&mut bytes, GuestAddress(range.start))
        .unwrap();
    bytes.iter().all(|byte| *byte == value)
}

/// The KiB of `memory` that this process has in memory, as the host counts them.
fn resident(memory: &GuestMemoryMmap) -> u64 {
    let region = memory.iter().next().unwrap();
    let start = region.as_ptr() as u64;
    let all = start..start + region.len();
    let mut is_ours = false;
    let mut total = 0;
    for line in fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        let range = line
            .split(' ')
            .next()
            .and_then(|range| range.split_once('-'));
        if let Some((from, _)) = range {
            is_ours = all.contains(&u64::from_str_radix(from, 16).unwrap());
        } else if let (true, Some(kib)) = (is_ours, line.strip_prefix("Rss:")) {
            total += kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        }
    }
    total
}

/// Gives 32 of 64 MiB back.
fn check(memory: &GuestMemoryMmap, returned: &Returned) {
    fill(memory, 0..RAM, 7);
    let before = resident(memory);
    assert!(before >= 64 << 10, "{before}");
    let ranges = [0..8 * MIB, 16 * MIB..40 * MIB];
    assert_eq!(returned.give_back(memory, &ranges), 32 * MIB);
    let after = resident(memory);
    assert!(after <= before - (32 << 10), "{before} {after}");
    for range in &ranges {
        assert!(is(memory, range.clone(), 0));
    }
    assert!(is(memory, 8 * MIB..16 * MIB, 7) && is(memory, 40 * MIB..RAM, 7));
    // The guest uses it again.
    fill(memory, 20 * MIB..30 * MIB, 9);
    assert!(is(memory, 20 * MIB..30 * MIB, 9) && is(memory, 30 * MIB..40 * MIB, 0));
    assert_eq!(returned.since_snapshot(), ranges);
    returned.saved();
    assert!(returned.since_snapshot().is_empty());
    // Again, with pages that were given back before.
    let more = 24 * MIB..44 * MIB;
    assert_eq!(returned.give_back(memory, &[more]), 20 * MIB);
    assert!(is(memory, 24 * MIB..44 * MIB, 0));
}

#[test]
fn anonymous_memory_goes_back() {
    let returned = Returned::default();
    check(&allocate(RAM).unwrap(), &returned);
    assert!(returned.replaced().is_empty());
}

#[test]
fn a_mapped_files_bytes_do_not_come_back() {
    let file = ones();
    let returned = Returned::default();
    check(&map(file.try_clone().unwrap(), RAM).unwrap(), &returned);
    assert_eq!(returned.replaced(), [0..8 * MIB, 16 * MIB..44 * MIB]);
    // Nor are they gone for others.
    assert!(is(&map(file, RAM).unwrap(), 0..RAM, 1));
}

#[test]
fn pages_that_were_only_read_go_back_too() {
    let memory = map(ones(), RAM).unwrap();
    // A host that is short of memory may take a file's pages at any time. Then they are read again.
    let is_there = |_: u32| is(&memory, 0..RAM, 1) && resident(&memory) >= 64 << 10;
    assert!((0..100).any(is_there), "{}", resident(&memory));
    let all = 0..RAM;
    Returned::default().give_back(&memory, &[all]);
    let after = resident(&memory);
    assert!(after < 1 << 10, "{after}");
}

#[test]
fn shared_memory_goes_back_for_all() {
    let (memory, file) = shared();
    let blocks = || std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
    fill(&memory, 0..RAM, 7);
    let (before, given) = (blocks(), 8 * MIB..40 * MIB);
    assert_eq!(Returned::default().give_back(&memory, &[given]), 32 * MIB);
    assert_eq!(before - blocks(), 32 * MIB / 512);
    check(&memory, &Returned::default());
}

#[test]
fn what_is_no_memory_is_ignored() {
    let memory = allocate(4 * GIB).unwrap();
    let returned = Returned::default();
    let end = HOLE_START;
    let ranges = [
        end - MIB..end + MIB,
        HOLE_END - MIB..HOLE_END + MIB,
        8 * GIB..9 * GIB,
        (1 << 44) - 4096..1 << 44,
    ];
    assert_eq!(returned.give_back(&memory, &ranges), 2 * MIB);
    // One after the other, as snapshots count.
    let given = end - MIB..end + MIB;
    assert_eq!(returned.since_snapshot(), [given]);
    assert_eq!(returned.give_back(&memory, &[]), 0);
}

#[test]
fn scattered_pages_of_a_file_stay_mapped() {
    let memory = map(ones(), RAM).unwrap();
    let returned = Returned::default();
    let page = |number: u64| number * PAGE_SIZE..(number + 1) * PAGE_SIZE;
    for number in 0..100 {
        let given = returned.give_back_up_to(&memory, &[page(3 * number)], 10);
        assert_eq!(given == PAGE_SIZE, number < 10);
    }
    assert!(is(&memory, page(27), 0) && is(&memory, page(30), 1));
    // Neighbours of what was replaced make no more mappings, and may even join them.
    assert_eq!(returned.give_back_up_to(&memory, &[page(1)], 10), PAGE_SIZE);
    assert_eq!(returned.give_back_up_to(&memory, &[page(2)], 10), PAGE_SIZE);
    assert_eq!(
        returned.give_back_up_to(&memory, &[page(30)], 10),
        PAGE_SIZE
    );
}

#[test]
fn a_guest_can_use_up_no_mappings() {
    let ram = 256 * MIB;
    let file = tempfile::tempfile().unwrap();
    file.set_len(ram).unwrap();
    let memory = map(file, ram).unwrap();
    let returned = Returned::default();
    let page = |number| number * PAGE_SIZE..(number + 1) * PAGE_SIZE;
    let every_other: Vec<_> = (0..ram / PAGE_SIZE / 2).map(|n| page(2 * n)).collect();
    assert_eq!(
        returned.give_back(&memory, &every_other),
        MOST_RANGES as u64 * PAGE_SIZE
    );
    let maps = fs::read_to_string("/proc/self/maps")
        .unwrap()
        .lines()
        .count();
    assert!(
        (2 * MOST_RANGES..2 * MOST_RANGES + 8000).contains(&maps),
        "{maps}"
    );
}
