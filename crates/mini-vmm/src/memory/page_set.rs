// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sets of a machine's pages.

use std::ops::Range;

use crate::layout::PAGE_SIZE;

/// A set of pages by their numbers, as bits. It has memory for the pages up to the last one that was added.
#[derive(Clone, Debug, Default)]
pub(super) struct PageSet {
    words: Vec<u64>,
    /// How many ranges the pages make.
    runs: usize,
}

impl PageSet {
    /// Adds pages.
    pub fn insert(&mut self, pages: Range<u64>) {
        self.runs = self.runs_with(&pages);
        let words = pages.end.div_ceil(64) as usize;
        if self.words.len() < words {
            self.words.resize(words, 0);
        }
        for page in pages {
            self.words[(page / 64) as usize] |= 1 << (page % 64);
        }
    }

    /// How many ranges there would be with these pages.
    pub fn runs_with(&self, pages: &Range<u64>) -> usize {
        if pages.is_empty() {
            return self.runs;
        }
        // Those that become one with the new pages.
        let mut joined = 0;
        let mut was_in = false;
        for page in pages.start.saturating_sub(1)..=pages.end {
            let is_in = self.contains(page);
            joined += usize::from(is_in && !was_in);
            was_in = is_in;
        }
        self.runs + 1 - joined
    }

    fn contains(&self, page: u64) -> bool {
        let word = self.words.get((page / 64) as usize);
        word.is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// The ranges of pages as bytes, in order.
    pub fn spans(&self) -> Vec<Range<u64>> {
        let mut spans: Vec<Range<u64>> = Vec::with_capacity(self.runs);
        for (number, word) in (0..).zip(&self.words).filter(|(_, word)| **word != 0) {
            for page in (64 * number..64 * (number + 1)).filter(|page| word >> (page % 64) & 1 == 1)
            {
                let (start, end) = (page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
                match spans.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => spans.push(start..end),
                }
            }
        }
        spans
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_has_what_was_added(ranges in prop::collection::vec((0..200_u64, 0..70_u64), 0..20)) {
            let mut set = PageSet::default();
            let mut model = std::collections::BTreeSet::new();
            for (start, len) in ranges {
                let runs = set.runs_with(&(start..start + len));
                set.insert(start..start + len);
                model.extend(start..start + len);
                prop_assert_eq!(set.spans().len(), runs);
                prop_assert_eq!(set.runs, runs);
            }
            let pages = |span: &Range<u64>| span.start / PAGE_SIZE..span.end / PAGE_SIZE;
            let all: Vec<_> = set.spans().iter().flat_map(pages).collect();
            prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
        }
    }
}
