// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! MSR indices and ranges of them.

use std::fmt;
use std::ops::RangeInclusive;

/// MSRs with consecutive indices, from first to last inclusive. Never empty.
///
/// ```
/// use para_msr::MsrRange;
///
/// let crash = MsrRange::new(0x4000_0100, 0x4000_0105)?;
/// assert_eq!((crash.len(), crash.contains(0x4000_0105)), (6, true));
/// assert_eq!(crash.to_string(), "0x40000100-0x40000105");
/// assert_eq!(MsrRange::from(0x8b).to_string(), "0x8b");
/// # Ok::<(), para_msr::InvertedRange>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MsrRange {
    first: u32,
    last: u32,
}

/// A range whose first MSR is above its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("MSR range {first:#x}-{last:#x} ends before it begins, swap its ends")]
pub struct InvertedRange {
    /// The given first MSR.
    pub first: u32,
    /// The given last MSR.
    pub last: u32,
}

impl MsrRange {
    /// Every MSR index.
    pub const ALL: MsrRange = MsrRange {
        first: 0,
        last: u32::MAX,
    };

    /// The MSRs from `first` to `last`, inclusive.
    ///
    /// # Errors
    /// `last` is smaller than `first`.
    pub const fn new(first: u32, last: u32) -> Result<Self, InvertedRange> {
        match first <= last {
            true => Ok(MsrRange { first, last }),
            false => Err(InvertedRange { first, last }),
        }
    }

    /// A range of one MSR.
    pub const fn single(index: u32) -> Self {
        MsrRange {
            first: index,
            last: index,
        }
    }

    /// The first MSR.
    pub const fn first(self) -> u32 {
        self.first
    }

    /// The last MSR.
    pub const fn last(self) -> u32 {
        self.last
    }

    /// The number of MSRs: 1 to 2^32.
    #[allow(clippy::len_without_is_empty)] // It never is.
    pub const fn len(self) -> u64 {
        (self.last - self.first) as u64 + 1
    }

    /// Whether an MSR is in the range.
    pub const fn contains(self, index: u32) -> bool {
        self.first <= index && index <= self.last
    }

    /// Whether two ranges share an MSR.
    pub const fn overlaps(self, other: MsrRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The MSRs that two ranges share.
    pub fn intersection(self, other: MsrRange) -> Option<MsrRange> {
        MsrRange::new(self.first.max(other.first), self.last.min(other.last)).ok()
    }
}

impl From<u32> for MsrRange {
    fn from(index: u32) -> Self {
        MsrRange::single(index)
    }
}

impl TryFrom<RangeInclusive<u32>> for MsrRange {
    type Error = InvertedRange;

    fn try_from(range: RangeInclusive<u32>) -> Result<Self, InvertedRange> {
        MsrRange::new(*range.start(), *range.end())
    }
}

impl fmt::Display for MsrRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{:#x}", self.first),
            false => write!(f, "{:#x}-{:#x}", self.first, self.last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_include_both_ends() {
        let range = MsrRange::new(4, 6).unwrap();
        assert_eq!(
            [3, 4, 6, 7].map(|n| range.contains(n)),
            [false, true, true, false]
        );
        assert_eq!((range.len(), MsrRange::ALL.len()), (3, 1 << 32));
        let at = |first, last| range.overlaps(MsrRange::new(first, last).unwrap());
        assert_eq!(
            [at(0, 3), at(0, 4), at(6, 9), at(7, 9)],
            [false, true, true, false]
        );
        let both = range.intersection(MsrRange::new(5, 9).unwrap());
        assert_eq!(both, Some(MsrRange::new(5, 6).unwrap()));
        assert_eq!(range.intersection(MsrRange::single(7)), None);
    }

    #[test]
    fn an_inverted_range_says_what_to_do() {
        let error = MsrRange::try_from(RangeInclusive::new(5, 4)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "MSR range 0x5-0x4 ends before it begins, swap its ends"
        );
    }
}
