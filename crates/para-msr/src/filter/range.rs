// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One range of a filter that KVM accepts.

use super::{Access, MAX_RANGE_MSRS};
use crate::MsrRange;

/// Why KVM would refuse or ignore a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// More MSRs than KVM allows in a bitmap.
    #[error("{range} has {} MSRs, but KVM takes at most 0x3000 in a range of its filter, split it", range.len())]
    TooLong {
        /// The range.
        range: MsrRange,
    },
    /// It contains MSR 0xffffffff, so KVM's 32-bit end of the range wraps to 0.
    #[error("KVM's filter can't match {range}, whose end wraps to 0, end it before 0xffffffff")]
    Wraps {
        /// The range.
        range: MsrRange,
    },
    /// The bitmap isn't as long as what KVM reads.
    #[error("a bitmap for {range} has {expected} bytes, a multiple of 8, not {given}, resize it")]
    Bitmap {
        /// The range.
        range: MsrRange,
        /// Size that KVM reads, in bytes.
        expected: usize,
        /// Actual size in bytes.
        given: usize,
    },
}

/// A range of a filter: up to 0x3000 MSRs, one direction or both, and a bit for each MSR (1 allows, 0 denies).
///
/// The bitmap is a whole number of 64-bit words, because KVM copies whole words. With a shorter one it would
/// read past the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterRange {
    range: MsrRange,
    access: Access,
    bitmap: Vec<u8>,
}

/// The size in bytes of a bitmap for this many MSRs.
fn bitmap_bytes(msrs: u64) -> usize {
    // At most 2^29.
    msrs.div_ceil(64) as usize * 8
}

impl FilterRange {
    /// A range with a bitmap. Bit `n` (byte `n / 8`, bit `n % 8`) is for the MSR `range.first() + n`.
    ///
    /// # Errors
    /// KVM would refuse the range, never match it, or read outside the bitmap.
    pub fn new(
        range: impl Into<MsrRange>,
        access: Access,
        bitmap: Vec<u8>,
    ) -> Result<Self, RangeError> {
        let range = range.into();
        check(range)?;
        let expected = bitmap_bytes(range.len());
        if bitmap.len() != expected {
            return Err(RangeError::Bitmap {
                range,
                expected,
                given: bitmap.len(),
            });
        }
        Ok(FilterRange {
            range,
            access,
            bitmap,
        })
    }

    /// A range whose bits come from a function.
    ///
    /// # Errors
    /// KVM would refuse the range or never match it.
    pub fn from_fn(
        range: impl Into<MsrRange>,
        access: Access,
        mut allow: impl FnMut(u32) -> bool,
    ) -> Result<Self, RangeError> {
        let range = range.into();
        check(range)?;
        let mut bitmap = vec![0; bitmap_bytes(range.len())];
        for (index, at) in (range.first()..=range.last()).zip(0usize..) {
            if let (true, Some(byte)) = (allow(index), bitmap.get_mut(at / 8)) {
                *byte |= 1 << (at % 8);
            }
        }
        Ok(FilterRange {
            range,
            access,
            bitmap,
        })
    }

    /// The MSRs.
    pub const fn range(&self) -> MsrRange {
        self.range
    }

    /// The first MSR.
    pub const fn base(&self) -> u32 {
        self.range.first()
    }

    /// The number of MSRs: 1 to 0x3000.
    pub const fn count(&self) -> u32 {
        // No range is longer than that.
        self.range.len() as u32
    }

    /// The direction.
    pub const fn access(&self) -> Access {
        self.access
    }

    /// The bitmap: a multiple of 8 bytes.
    pub fn bitmap(&self) -> &[u8] {
        &self.bitmap
    }

    /// An MSR's bit, if it is in the range.
    pub fn bit(&self, index: u32) -> Option<bool> {
        if !self.range.contains(index) {
            return None;
        }
        let at = (index - self.base()) as usize;
        Some(self.bitmap.get(at / 8)? >> (at % 8) & 1 == 1)
    }
}

fn check(range: MsrRange) -> Result<(), RangeError> {
    if range.len() > u64::from(MAX_RANGE_MSRS) {
        return Err(RangeError::TooLong { range });
    }
    if range.last() == u32::MAX {
        return Err(RangeError::Wraps { range });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_kvm_would_refuse_is_refused_with_a_reason() {
        let range = |first, last| MsrRange::new(first, last).unwrap();
        let new = |range, bytes| FilterRange::new(range, Access::Both, vec![0xff; bytes]);
        assert!(new(range(0, 0x2fff), 0x600).is_ok());
        let errors = [
            new(range(0, 0x3000), 0x608),
            new(range(u32::MAX, u32::MAX), 8),
            new(range(1, 1), 1),
            new(range(0, 64), 8),
            new(range(0, 63), 16),
        ]
        .map(|result| result.unwrap_err().to_string());
        assert_eq!(
            errors,
            [
                "0x0-0x3000 has 12289 MSRs, but KVM takes at most 0x3000 in a range of its filter, split it",
                "KVM's filter can't match 0xffffffff, whose end wraps to 0, end it before 0xffffffff",
                "a bitmap for 0x1 has 8 bytes, a multiple of 8, not 1, resize it",
                "a bitmap for 0x0-0x40 has 16 bytes, a multiple of 8, not 8, resize it",
                "a bitmap for 0x0-0x3f has 8 bytes, a multiple of 8, not 16, resize it",
            ]
        );
        assert!(FilterRange::from_fn(range(0, 0x3000), Access::Read, |_| true).is_err());
    }

    #[test]
    fn bits_are_counted_from_the_lowest() {
        let odd = |index| index % 2 == 1;
        let range =
            FilterRange::from_fn(MsrRange::new(8, 17).unwrap(), Access::Write, odd).unwrap();
        assert_eq!(range.bitmap(), [0xaa, 0x02, 0, 0, 0, 0, 0, 0]);
        assert_eq!((range.base(), range.count()), (8, 10));
        let bits = [7, 8, 9, 17, 18].map(|index| range.bit(index));
        assert_eq!(bits, [None, Some(false), Some(true), Some(true), None]);
    }
}
