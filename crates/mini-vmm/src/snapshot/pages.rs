// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pages of guest memory as bits.

use std::io;
use std::ops::Range;

use vm_memory::GuestMemoryMmap;

use super::memory::{Entry, wanted};
use crate::layout::PAGE_SIZE;

/// A set of pages: a bit for each page of the guest, the lowest bit of the first word first. The pages of all regions
/// follow each other, so those from 4 GiB on come right after those below the hole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pages(pub Vec<u64>);

impl Pages {
    /// The pages that `spans` has, of `ram` bytes.
    pub(super) fn new(spans: &[Range<u64>], ram: u64) -> Self {
        let mut words = vec![0; (ram / PAGE_SIZE).div_ceil(64) as usize];
        let pages = |span: &Range<u64>| span.start / PAGE_SIZE..span.end / PAGE_SIZE;
        for page in spans.iter().flat_map(pages) {
            words[(page / 64) as usize] |= 1 << (page % 64);
        }
        Pages(words)
    }

    /// The pages of `memory` that this process has in memory or swap.
    ///
    /// # Errors
    /// The host can't tell.
    pub fn resident(memory: &GuestMemoryMmap, ram: u64) -> io::Result<Self> {
        Ok(Pages::new(&wanted(memory, Entry::is_in_use)?, ram))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::spans::Spans;

    #[test]
    fn the_first_page_is_the_lowest_bit() {
        let page = |first: u64, end: u64| first * PAGE_SIZE..end * PAGE_SIZE;
        let spans = vec![page(0, 2), page(63, 66), page(69, 70)];
        let pages = Pages::new(&spans, 70 * PAGE_SIZE);
        assert_eq!(pages, Pages(vec![1 << 63 | 3, 1 << 5 | 3]));
        assert_eq!(Pages::new(&Spans::new(), 64 * PAGE_SIZE), Pages(vec![0]));
    }
}
