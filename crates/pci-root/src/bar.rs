// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Base address registers: size and width (PCI Local Bus Specification 3.0, section 6.2.5.1).

/// The number of a function's base address registers.
pub const BARS: u8 = 6;

/// The smallest memory BAR in bytes.
pub const MIN_SIZE: u64 = 16;
/// The largest 32-bit memory BAR in bytes.
pub const MAX_SIZE_32: u64 = 1 << 31;

/// Bits 2 and 1 of a register: it is 64 bits wide, the upper half is in the next register.
const WIDE: u64 = 0b100;
/// Bit 3 of a register: reads have no side effects.
const PREFETCHABLE: u64 = 0b1000;

/// An invalid BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BarError {
    /// The size is invalid.
    #[error(
        "BAR {number} can't have {size:#x} bytes: give it a power of two, {MIN_SIZE} bytes or more, and 2 GiB at most \
         if it is 32 bits wide"
    )]
    Size {
        /// The BAR's number.
        number: u8,
        /// Its size.
        size: u64,
    },
    /// The number is invalid.
    #[error(
        "there is no place for BAR {number}: use 0 to 5, and 0 to 4 for one that is 64 bits wide"
    )]
    Number {
        /// The BAR's number.
        number: u8,
    },
    /// It overlaps another.
    #[error("BAR {number} overlaps another: one that is 64 bits wide takes two numbers")]
    Taken {
        /// The BAR's number.
        number: u8,
    },
}

/// A memory BAR. I/O BARs are not supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bar {
    size: u64,
    wide: bool,
    prefetchable: bool,
}

impl Bar {
    /// A BAR of `size` bytes below 4 GiB: a power of two from [`MIN_SIZE`] to [`MAX_SIZE_32`].
    pub const fn memory32(size: u64) -> Self {
        Bar {
            size,
            wide: false,
            prefetchable: false,
        }
    }

    /// A BAR of `size` bytes at any address: a power of two from [`MIN_SIZE`] on. It also takes the next register.
    pub const fn memory64(size: u64) -> Self {
        Bar {
            size,
            wide: true,
            prefetchable: false,
        }
    }

    /// The same BAR, marked as prefetchable: its reads have no side effects.
    #[must_use]
    pub const fn prefetchable(self) -> Self {
        Bar {
            prefetchable: true,
            ..self
        }
    }

    /// Its size in bytes.
    pub const fn size(self) -> u64 {
        self.size
    }

    /// Whether it is 64 bits wide, and takes two registers.
    pub const fn is_wide(self) -> bool {
        self.wide
    }

    /// Checks that register `number` can have such a BAR.
    pub(crate) const fn check(self, number: u8) -> Result<(), BarError> {
        let Bar { size, wide, .. } = self;
        let max = if wide { u64::MAX } else { MAX_SIZE_32 };
        if !size.is_power_of_two() || size < MIN_SIZE || size > max {
            return Err(BarError::Size { number, size });
        }
        if number >= BARS || wide && number == BARS - 1 {
            return Err(BarError::Number { number });
        }
        Ok(())
    }

    /// The size of its registers in bytes.
    pub(crate) const fn len(self) -> usize {
        if self.wide { 8 } else { 4 }
    }

    /// The bits of its registers that a guest can't change.
    pub(crate) const fn flags(self) -> u64 {
        let wide = if self.wide { WIDE } else { 0 };
        wide | if self.prefetchable { PREFETCHABLE } else { 0 }
    }

    /// The bits of its registers that a guest can change. A guest learns the size from them.
    pub(crate) const fn mask(self) -> u64 {
        !(self.size - 1)
    }
}
