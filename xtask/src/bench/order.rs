// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! In which order subjects take their turns.

/// Brings `items` into the order of a round, from 0: the first one's is the given one, each other's a random one, the
/// same in every run. A machine's end slows the next one's start, so nobody is to have the same neighbour for ever.
pub fn of_round<T>(items: &mut [T], round: usize) {
    if round == 0 {
        return;
    }
    // Knuth's MMIX generator; a shuffle by Fisher and Yates.
    let mut state = round as u64;
    for last in (1..items.len()).rev() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        items.swap(last, (state >> 33) as usize % (last + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_differ_and_repeat() {
        let order = |round| {
            let mut items = ["a", "b", "c", "d"];
            of_round(&mut items, round);
            items
        };
        assert_eq!(order(0), ["a", "b", "c", "d"]);
        assert_eq!(order(7), order(7));
        let followers = |first| {
            let rounds = (0..40).map(order);
            let mut all: Vec<_> = rounds
                .filter_map(|o| {
                    let at = o.iter().position(|item| *item == first)?;
                    o.get(at + 1).copied()
                })
                .collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        assert_eq!(followers("a"), ["b", "c", "d"]);
        assert_eq!(followers("d"), ["a", "b", "c"]);
    }
}
