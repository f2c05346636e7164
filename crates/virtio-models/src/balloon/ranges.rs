// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pages as few ranges.

use std::ops::Range;

use virtio_transport::chain::Segment;

use super::PAGE_SIZE;

/// Pages that a driver gave, in any order and as often as it likes.
#[derive(Debug, Default)]
pub(super) struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// Adds a page by its number.
    pub(super) fn add_page(&mut self, number: u32) {
        let start = u64::from(number) * PAGE_SIZE;
        self.add(start..start + PAGE_SIZE);
    }

    /// Adds the whole pages of a buffer.
    pub(super) fn add_buffer(&mut self, buffer: &Segment) {
        // The sum does not wrap, but its next multiple may.
        let end = (buffer.address.0 + u64::from(buffer.len)) / PAGE_SIZE * PAGE_SIZE;
        let start = buffer.address.0.checked_next_multiple_of(PAGE_SIZE);
        if let Some(start) = start.filter(|start| *start < end) {
            self.add(start..end);
        }
    }

    fn add(&mut self, range: Range<u64>) {
        match self.0.last_mut() {
            // Drivers give neighbours one after the other, upwards or downwards.
            Some(last) if last.end == range.start => last.end = range.end,
            Some(last) if last.start == range.end => last.start = range.start,
            _ => self.0.push(range),
        }
    }

    /// The ranges in order, apart from each other. None are left.
    pub(super) fn take(&mut self) -> Vec<Range<u64>> {
        let mut all = std::mem::take(&mut self.0);
        all.sort_unstable_by_key(|range| range.start);
        all.dedup_by(|next, kept| {
            let joins = next.start <= kept.end;
            if joins {
                kept.end = kept.end.max(next.end);
            }
            joins
        });
        all
    }

    /// How many ranges there are, some perhaps side by side.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::GuestAddress;

    use super::*;

    proptest! {
        #[test]
        fn ranges_are_the_pages_that_were_given(pages in prop::collection::vec(0..40_u32, 0..60)) {
            let mut ranges = Ranges::default();
            pages.iter().for_each(|page| ranges.add_page(*page));
            let taken = ranges.take();
            prop_assert_eq!(ranges.len(), 0);
            prop_assert!(taken.windows(2).all(|pair| pair[0].end < pair[1].start));
            for page in 0..41 {
                let start = u64::from(page) * PAGE_SIZE;
                let all = start..start + PAGE_SIZE;
                let holds = taken.iter().any(|range| range.start <= all.start && all.end <= range.end);
                let meets = taken.iter().any(|range| range.start < all.end && all.start < range.end);
                prop_assert_eq!(holds, pages.contains(&page));
                prop_assert_eq!(meets, holds);
            }
        }
    }

    #[test]
    fn neighbours_are_one_range_at_once() {
        let mut ranges = Ranges::default();
        (0..1000).for_each(|page| ranges.add_page(page));
        (2000..3000).rev().for_each(|page| ranges.add_page(page));
        assert_eq!(ranges.len(), 2);
        ranges.add_page(u32::MAX);
        let taken = ranges.take();
        assert_eq!(taken.len(), 3);
        assert_eq!(taken[2].end, 1 << 44);
    }

    #[test]
    fn only_whole_pages_of_a_buffer_are_given() {
        let given = |address, len| {
            let mut ranges = Ranges::default();
            let address = GuestAddress(address);
            ranges.add_buffer(&Segment { address, len });
            ranges.take()
        };
        assert_eq!(given(0x1000, 0x2000), vec![0x1000..0x3000; 1]);
        assert_eq!(given(0x1001, 0x2fff), vec![0x2000..0x4000; 1]);
        assert_eq!(given(0x1001, 0x1fff), vec![0x2000..0x3000; 1]);
        for (address, len) in [
            (0x1001, 0x1ffe),
            (0x1000, 0xfff),
            (u64::MAX - 10, 10),
            (u64::MAX - 0x1fff, 0x1ffe),
        ] {
            let taken = given(address, len);
            let all = address..address + u64::from(len);
            assert!(
                taken
                    .iter()
                    .all(|range| all.start <= range.start && range.end <= all.end),
                "{address:#x} {len:#x}"
            );
            assert!(taken.iter().all(|range| range.end - range.start <= 0x1000));
        }
    }
}
