// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How often a vCPU left the guest, and why.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::history::ExitKind;

/// A vCPU's exits by kind, written by its thread and readable by any thread at any time.
///
/// Each exit counts once, so a string instruction may count once for many elements, and an instruction with several
/// accesses several times. [`ExitKind::Interrupted`] counts kicks and signals, and the exit that ends each completion.
/// Numbers that are read while the vCPU runs need not add up.
#[derive(Debug, Default)]
pub struct ExitCounters {
    counts: [AtomicU64; ExitKind::ALL.len()],
}

impl ExitCounters {
    /// How many exits of this kind there were.
    pub fn count(&self, kind: ExitKind) -> u64 {
        self.counts[kind as usize].load(Ordering::Relaxed)
    }

    /// All kinds with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (ExitKind, u64)> + '_ {
        ExitKind::ALL.iter().map(|kind| (*kind, self.count(*kind)))
    }

    /// How many exits of any kind there were.
    pub fn total(&self) -> u64 {
        self.iter().map(|(_, count)| count).sum()
    }

    /// Counts one. There is a single writer, so a load and a store are enough, without a locked addition.
    #[inline]
    pub(crate) fn note(&self, kind: ExitKind) {
        let count = &self.counts[kind as usize];
        count.store(
            count.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Relaxed,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_counter_of_its_own() {
        let counters = ExitCounters::default();
        for (times, kind) in (1..).zip(ExitKind::ALL) {
            for _ in 0..times {
                counters.note(*kind);
            }
        }
        let counts: Vec<u64> = counters.iter().map(|(_, count)| count).collect();
        let kinds = ExitKind::ALL.len() as u64;
        assert_eq!(counts, (1..=kinds).collect::<Vec<_>>());
        assert_eq!(counters.total(), kinds * (kinds + 1) / 2);
    }
}
