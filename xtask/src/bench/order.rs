// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The order in which subjects take turns.

/// Puts `items` into the order of a round, which counts from 0. Round 0 has the given order. With few items, the rounds
/// go through all orders before one repeats. A machine's end slows the next one's start, so neighbours must vary.
pub fn of_round<T>(items: &mut [T], round: usize) {
    let orders = (2..=items.len()).fold(1usize, usize::saturating_mul);
    // A step that is coprime to the number of orders, so that all come up, and large, so that neighbouring rounds
    // differ.
    let step = (orders / 3..)
        .find(|step| gcd(*step, orders) == 1)
        .unwrap_or(1);
    let mut number = (round % orders).wrapping_mul(step) % orders;
    // The number's digits in the factorial base choose the next item.
    for place in 0..items.len() {
        let left = items.len() - place;
        let chosen = place + number % left;
        number /= left;
        items[place..=chosen].rotate_right(1);
    }
}

fn gcd(a: usize, b: usize) -> usize {
    match b {
        0 => a,
        _ => gcd(b, a % b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders(count: usize, rounds: usize) -> Vec<Vec<usize>> {
        let order = |round| {
            let mut items: Vec<usize> = (0..count).collect();
            of_round(&mut items, round);
            items
        };
        (0..rounds).map(order).collect()
    }

    #[test]
    fn all_orders_come_before_one_comes_again() {
        for (count, all) in [(0, 1), (1, 1), (2, 2), (3, 6), (4, 24), (5, 120)] {
            let mut seen = orders(count, all);
            assert!(seen[0].is_sorted());
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), all, "{count}");
        }
    }

    #[test]
    fn within_few_rounds_everybody_is_everywhere_and_behind_everybody() {
        for (count, rounds) in [(2, 2), (3, 6), (4, 12), (5, 40)] {
            let orders = orders(count, rounds);
            for item in 0..count {
                for place in 0..count {
                    assert!(orders.iter().any(|order| order[place] == item));
                }
                for before in (0..count).filter(|before| *before != item) {
                    let follows =
                        |order: &Vec<usize>| order.windows(2).any(|pair| pair == [before, item]);
                    assert!(
                        orders.iter().any(follows),
                        "{before} before {item} of {count}"
                    );
                }
            }
        }
    }
}
