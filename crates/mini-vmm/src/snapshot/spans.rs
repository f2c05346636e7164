// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Lists of ranges.

use std::ops::Range;

/// Ranges of bytes, sorted, apart from each other, and made of whole pages. An offset counts the bytes of all regions
/// from the first one on, as the file does.
pub type Spans = Vec<Range<u64>>;

/// Adds a range to `spans`, at or after the last one.
pub fn push(spans: &mut Spans, range: Range<u64>) {
    match spans.last_mut() {
        Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
        _ => spans.push(range),
    }
}

/// What two lists of ranges have together.
pub fn union(a: &[Range<u64>], b: &[Range<u64>]) -> Spans {
    let mut all = [a, b].concat();
    all.sort_unstable_by_key(|range| range.start);
    let mut spans = Spans::new();
    for range in all {
        push(&mut spans, range);
    }
    spans
}

/// What both lists of ranges have.
pub fn intersection(a: &[Range<u64>], b: &[Range<u64>]) -> Spans {
    let mut spans = Spans::new();
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    while let (Some(first), Some(second)) = (a.peek(), b.peek()) {
        let range = first.start.max(second.start)..first.end.min(second.end);
        if range.start < range.end {
            spans.push(range);
        }
        match first.end < second.end {
            true => a.next(),
            false => b.next(),
        };
    }
    spans
}

/// What lies in `all` and in none of `spans`.
pub fn rest(all: Range<u64>, spans: &[Range<u64>]) -> Spans {
    let ends = spans.iter().map(|span| span.end);
    let starts = spans.iter().map(|span| span.start);
    let gaps = std::iter::once(all.start)
        .chain(ends)
        .zip(starts.chain(std::iter::once(all.end)));
    gaps.map(|(start, end)| start..end)
        .filter(|gap| gap.start < gap.end)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_merged() {
        assert_eq!(union(&[0..2, 6..8], &[1..3, 3..4, 7..9]), [0..4, 6..9]);
        assert_eq!(union(&[], &[]), Spans::new());
    }

    const END: u64 = 24;

    /// The numbers below [`END`] that are in `spans`.
    fn members(spans: &[Range<u64>]) -> Vec<bool> {
        let is_in = |at| spans.iter().any(|span| span.contains(&at));
        (0..END).map(is_in).collect()
    }

    fn any_spans() -> impl Strategy<Value = Spans> {
        prop::collection::vec(any::<bool>(), END as usize).prop_map(|bits| {
            let mut spans = Spans::new();
            for (at, _) in (0..).zip(&bits).filter(|(_, bit)| **bit) {
                push(&mut spans, at..at + 1);
            }
            spans
        })
    }

    proptest! {
        #[test]
        fn lists_are_sets_of_pages(a in any_spans(), b in any_spans()) {
            let [in_a, in_b] = [members(&a), members(&b)];
            let both = |f: fn(bool, bool) -> bool| -> Vec<bool> {
                in_a.iter().zip(&in_b).map(|(a, b)| f(*a, *b)).collect()
            };
            prop_assert_eq!(members(&union(&a, &b)), both(|a, b| a | b));
            prop_assert_eq!(members(&intersection(&a, &b)), both(|a, b| a & b));
            prop_assert_eq!(members(&rest(0..END, &a)), both(|a, _| !a));
            for spans in [union(&a, &b), intersection(&a, &b), rest(0..END, &a)] {
                prop_assert!(spans.windows(2).all(|pair| pair[0].end <= pair[1].start));
            }
        }
    }
}
