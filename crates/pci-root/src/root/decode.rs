// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which BAR has an address.

use crate::function::{Decoded, Function};

/// A BAR that is answered at.
struct Entry {
    /// Of its function in the root's list.
    index: usize,
    decoded: Decoded,
}

/// Where an access is.
pub(super) struct Found {
    pub index: usize,
    pub bar: u8,
    pub offset: u64,
}

/// All BARs that are answered at, in the order in which they have an address that several of them have.
///
/// The search goes through all of them. That is simple, and no overlap needs a thought. It takes some 50 ns for the last of
/// 32 BARs and 150 ns for the last of 248 (`cargo bench`), and an exit takes a microsecond or more.
#[derive(Default)]
pub(super) struct Decoder {
    entries: Vec<Entry>,
}

impl Decoder {
    /// With room for so many BARs, so that moves allocate nothing.
    pub fn with_capacity(bars: usize) -> Self {
        Decoder {
            entries: Vec::with_capacity(bars),
        }
    }

    /// Asks a function anew.
    pub fn update(&mut self, index: usize, function: &Function) {
        let mut at = self.entries.partition_point(|entry| entry.index < index);
        let end = self.entries.partition_point(|entry| entry.index <= index);
        self.entries.drain(at..end);
        function.for_each_decoded(|decoded| {
            self.entries.insert(at, Entry { index, decoded });
            at += 1;
        });
    }

    /// The BAR that has the access from `first` to `last`.
    pub fn find(&self, first: u64, last: u64) -> Option<Found> {
        let has_first =
            |entry: &&Entry| (entry.decoded.first..=entry.decoded.last).contains(&first);
        let Entry { index, decoded } = self.entries.iter().find(has_first)?;
        (last <= decoded.last).then(|| Found {
            index: *index,
            bar: decoded.bar,
            offset: first - decoded.first,
        })
    }
}
