// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Address ranges and their owners.

use std::fmt;

/// An inclusive range of ports or addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub first: u64,
    /// Last address.
    pub last: u64,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.first, self.last)
    }
}

/// Which bus a range is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Port I/O.
    Pio,
    /// Memory-mapped I/O.
    Mmio,
}

impl Space {
    /// The last address.
    pub(super) const fn last(self) -> u64 {
        match self {
            Space::Pio => u16::MAX as u64,
            Space::Mmio => u64::MAX,
        }
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Space::Pio => "port",
            Space::Mmio => "MMIO",
        })
    }
}

/// Why a device was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Its range overlaps another device's.
    #[error("{space} range {new} overlaps {existing}, move one of the two devices")]
    Overlap {
        /// Which bus.
        space: Space,
        /// The refused range.
        new: Range,
        /// The other device's range.
        existing: Range,
    },
    /// Its range is empty, or ends beyond the last address.
    #[error(
        "{space} range of {size:#x} from {base:#x} is empty or too large, give it a size that fits"
    )]
    Invalid {
        /// Which bus.
        space: Space,
        /// First address.
        base: u64,
        /// Size.
        size: u64,
    },
}

/// The entries of one address space, sorted by address, without overlap.
pub(super) struct Map<T> {
    entries: Vec<(Range, T)>,
    /// The last address of each entry, kept apart so that a search touches few cache lines.
    lasts: Vec<u64>,
}

impl<T> Map<T> {
    pub(super) const fn new() -> Self {
        Map {
            entries: Vec::new(),
            lasts: Vec::new(),
        }
    }

    pub(super) fn insert(
        &mut self,
        space: Space,
        base: u64,
        size: u64,
        max: u64,
        entry: T,
    ) -> Result<(), Error> {
        let last = size
            .checked_sub(1)
            .and_then(|n| base.checked_add(n))
            .filter(|last| *last <= max);
        let Some(last) = last else {
            return Err(Error::Invalid { space, base, size });
        };
        let new = Range { first: base, last };
        // The first range that isn't entirely below the new one.
        let at = self.lasts.partition_point(|last| *last < new.first);
        match self.entries.get(at) {
            Some((existing, _)) if existing.first <= new.last => Err(Error::Overlap {
                space,
                new,
                existing: *existing,
            }),
            _ => {
                self.entries.insert(at, (new, entry));
                self.lasts.insert(at, last);
                Ok(())
            }
        }
    }

    /// The offset of `addr` in the entry that has all `len` bytes from `addr`, and that entry.
    pub(super) fn find(&self, addr: u64, len: usize) -> Option<(u64, &T)> {
        let last = addr.checked_add((len as u64).checked_sub(1)?)?;
        let at = self.lasts.partition_point(|last| *last < addr);
        let (range, entry) = self.entries.get(at)?;
        let offset = addr.checked_sub(range.first)?;
        (last <= range.last).then_some((offset, entry))
    }

    /// All ranges, in ascending order.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        self.entries.iter().map(|(range, _)| *range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lookup_agrees_with_a_linear_search(
            ranges in prop::collection::vec((0u64..300, 1u64..40), 1..20),
            accesses in prop::collection::vec((0u64..350, 0usize..9), 1..50),
        ) {
            let mut map: Map<u64> = Map::new();
            let mut model: Vec<Range> = Vec::new();
            for (base, size) in ranges {
                let new = Range { first: base, last: base + size - 1 };
                let free = model.iter().all(|r| r.last < new.first || new.last < r.first);
                let inserted = map.insert(Space::Mmio, base, size, u64::MAX, base);
                prop_assert_eq!(inserted.is_ok(), free);
                if free { model.push(new); }
            }
            for (addr, len) in accesses {
                let expected = model.iter().find(|r| {
                    len > 0 && r.first <= addr && addr + len as u64 - 1 <= r.last
                });
                let found = map.find(addr, len);
                prop_assert_eq!(found.map(|(offset, _)| offset), expected.map(|r| addr - r.first));
                prop_assert_eq!(found.map(|(_, base)| *base), expected.map(|r| r.first));
            }
        }
    }
}
