// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory that went back to the host, while the guest runs.
//!
//! How it goes back depends on what is mapped. Pages that nobody else sees are discarded. Of a shared mapping, the file
//! gets a hole. Of a file that is mapped privately, as after a restore, the old bytes would come back, so anonymous memory
//! takes its place.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use log::warn;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use super::page_set::PageSet;
use crate::layout::PAGE_SIZE;
use crate::sync::lock;
use crate::sys::give_back;

/// The most ranges of a mapped file that are replaced. Each costs two of the process's mappings, of which Linux allows
/// 65,530. Pages beyond that are not given back.
const MOST_RANGES: usize = 16_384;

/// Which of a machine's pages were given back. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Returned(Arc<Mutex<Log>>);

/// Pages are counted over all regions, from the first one on.
#[derive(Debug, Default)]
struct Log {
    /// Since the last snapshot.
    new: PageSet,
    /// No part of the file any more.
    replaced: PageSet,
    has_warned: bool,
}

impl Returned {
    /// Gives the pages of `ranges` back to the host, as far as they are pages of `memory`. They read as zeros then, or as
    /// before if the host refuses. Returns how many bytes it took.
    pub fn give_back(&self, memory: &GuestMemoryMmap, ranges: &[Range<u64>]) -> u64 {
        self.give_back_up_to(memory, ranges, MOST_RANGES)
    }

    fn give_back_up_to(&self, memory: &GuestMemoryMmap, ranges: &[Range<u64>], most: usize) -> u64 {
        let mut log = lock(&self.0);
        let (mut before, mut given) = (0, 0);
        for region in memory.iter() {
            let start = region.start_addr().raw_value();
            for range in ranges {
                // Offsets in the region.
                let from = range.start.max(start);
                let to = range.end.min(start + region.len());
                if from >= to {
                    continue;
                }
                let part = from - start..to - start;
                match log.give(region, before, &part, most) {
                    Ok(()) => given += to - from,
                    Err(error) => log.warn(&error),
                }
            }
            before += region.len();
        }
        given
    }

    /// The ranges that were given back since the last snapshot, in bytes of all regions.
    pub fn since_snapshot(&self) -> Vec<Range<u64>> {
        lock(&self.0).new.spans()
    }

    /// There is a snapshot.
    pub fn saved(&self) {
        lock(&self.0).new = PageSet::default();
    }

    /// The ranges in which the mapped file is not mapped any more, in bytes of all regions.
    pub fn replaced(&self) -> Vec<Range<u64>> {
        lock(&self.0).replaced.spans()
    }

    /// Does something while no memory is given back.
    pub fn hold<T>(&self, act: impl FnOnce() -> T) -> T {
        let _log = lock(&self.0);
        act()
    }
}

impl Log {
    /// Gives a part of a region back. `before` is how many bytes all earlier regions have.
    fn give(
        &mut self,
        region: &GuestRegionMmap,
        before: u64,
        part: &Range<u64>,
        most: usize,
    ) -> io::Result<()> {
        let pages = (before + part.start) / PAGE_SIZE..(before + part.end) / PAGE_SIZE;
        let bytes = part.start as usize..part.end as usize;
        if region.flags() & libc::MAP_SHARED != 0 {
            give_back::punch(region, bytes)?;
        } else if region.file_offset().is_some() {
            if self.replaced.runs_with(&pages) > most {
                return Err(io::Error::other("they are too scattered"));
            }
            give_back::replace(region, bytes)?;
            self.replaced.insert(pages.clone());
        } else {
            give_back::discard(region, bytes)?;
        }
        self.new.insert(pages);
        Ok(())
    }

    fn warn(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.has_warned, true) {
            warn!("pages of the guest's balloon stay with it: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
