// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The root's address ranges on the VMM's bus.

use std::fmt;

/// The size of one bus in ECAM, in bytes: 32 devices of 8 functions with 4 KiB each (PCI Express Base Specification
/// 5.0, section 7.2.2).
pub const ECAM_BUS_SIZE: u64 = 1 << 20;

/// One of the root's ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Window {
    /// Configuration space, as memory.
    Ecam,
    /// BARs below 4 GiB.
    Low,
    /// BARs that are 64 bits wide.
    High,
}

impl Window {
    /// All of them. A bus can use a window's index here to identify it.
    pub const ALL: [Window; 3] = [Window::Ecam, Window::Low, Window::High];
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Window::Ecam => "ECAM",
            Window::Low => "the 32-bit window",
            Window::High => "the 64-bit window",
        })
    }
}

/// Guest-physical addresses from `base` on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Span {
    /// The first address.
    pub base: u64,
    /// The size in bytes.
    pub size: u64,
}

impl Span {
    /// `size` bytes from `base` on.
    pub const fn new(base: u64, size: u64) -> Self {
        Span { base, size }
    }

    /// The last address. `None` if the span is empty or wraps around.
    pub(crate) fn last(self) -> Option<u64> {
        self.base.checked_add(self.size.checked_sub(1)?)
    }

    /// Whether all of the addresses from `first` to `last` are in it.
    pub(crate) fn contains(self, first: u64, last: u64) -> bool {
        self.base <= first && self.last().is_some_and(|end| last <= end)
    }

    /// Whether one of the addresses from `first` to `last` is in it.
    pub(crate) fn overlaps(self, first: u64, last: u64) -> bool {
        self.base <= last && self.last().is_some_and(|end| first <= end)
    }
}

/// The root's address ranges. They are fixed for the machine's life, and BARs are decoded only within them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Windows {
    /// The address of bus 0's configuration space.
    pub ecam: u64,
    /// The number of buses, from 0 on: 1 to 256.
    pub buses: u16,
    /// Addresses for BARs below 4 GiB.
    pub low: Span,
    /// Addresses for BARs that are 64 bits wide. If it is empty, they are in `low`.
    pub high: Span,
}

/// Why windows are invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WindowError {
    /// The number of buses is invalid.
    #[error("a root can't have {buses} buses: give it 1 to 256")]
    Buses {
        /// The number.
        buses: u16,
    },
    /// A window's addresses are invalid.
    #[error(
        "{window} can't have {size:#x} bytes at {base:#x}: ECAM begins at a multiple of its size rounded up to a power \
         of two, the 32-bit window ends at 4 GiB, none of the windows for BARs begins at 0, and none wraps around"
    )]
    Span {
        /// The window.
        window: Window,
        /// Its first address.
        base: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// Two windows overlap.
    #[error("{first} and {second} overlap: move one of them")]
    Overlap {
        /// One of them.
        first: Window,
        /// The other.
        second: Window,
    },
}

impl Windows {
    /// The windows of a function without a root.
    pub(crate) const NONE: Windows = Windows {
        ecam: 0,
        buses: 0,
        low: Span::new(0, 0),
        high: Span::new(0, 0),
    };

    /// The range of a window.
    pub fn span(&self, window: Window) -> Span {
        match window {
            Window::Ecam => Span::new(self.ecam, u64::from(self.buses) * ECAM_BUS_SIZE),
            Window::Low => self.low,
            Window::High => self.high,
        }
    }

    /// The last bus number.
    pub const fn last_bus(&self) -> u8 {
        self.buses.saturating_sub(1) as u8
    }

    /// Checks that a root can have these.
    ///
    /// # Errors
    /// See [`WindowError`].
    pub fn check(&self) -> Result<(), WindowError> {
        let buses = self.buses;
        if !(1..=256).contains(&buses) {
            return Err(WindowError::Buses { buses });
        }
        for window in Window::ALL {
            let span = self.span(window);
            let last = span.last();
            let good = match window {
                Window::Ecam => {
                    last.is_some() && span.base.is_multiple_of(span.size.next_power_of_two())
                }
                Window::Low | Window::High if span.size == 0 => true,
                // A guest treats a BAR with address 0 as unassigned.
                Window::Low => span.base > 0 && last.is_some_and(|last| last < 1 << 32),
                Window::High => span.base > 0 && last.is_some(),
            };
            if !good {
                let Span { base, size } = span;
                return Err(WindowError::Span { window, base, size });
            }
        }
        for (first, second) in [
            (Window::Ecam, Window::Low),
            (Window::Ecam, Window::High),
            (Window::Low, Window::High),
        ] {
            let (span, other) = (self.span(first), self.span(second));
            if other
                .last()
                .is_some_and(|last| span.overlaps(other.base, last))
            {
                return Err(WindowError::Overlap { first, second });
            }
        }
        Ok(())
    }

    /// Whether a BAR with the addresses from `first` to `last` may be decoded: it must lie in one window.
    pub(crate) fn have_bar(&self, first: u64, last: u64) -> bool {
        self.low.contains(first, last) || self.high.contains(first, last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn windows() -> Windows {
        Windows {
            ecam: 0xe000_0000,
            buses: 1,
            low: Span::new(0xd000_0000, 0x1000_0000),
            high: Span::new(512 * GIB, 512 * GIB),
        }
    }

    #[test]
    fn windows_that_no_root_has_are_refused() {
        use Window::{Ecam, High, Low};
        let span = |window, base, size| Err(WindowError::Span { window, base, size });
        let overlap = |first, second| Err(WindowError::Overlap { first, second });
        type Change = fn(&mut Windows);
        let cases: &[(Change, Result<(), WindowError>)] = &[
            (|_| (), Ok(())),
            (|w| w.low.size = 0, Ok(())),
            (|w| w.high = Span::default(), Ok(())),
            (|w| w.buses = 256, Ok(())),
            (|w| w.buses = 0, Err(WindowError::Buses { buses: 0 })),
            (|w| w.buses = 257, Err(WindowError::Buses { buses: 257 })),
            (|w| w.ecam += 4096, span(Ecam, 0xe000_1000, 1 << 20)),
            (
                |w| (w.ecam, w.buses) = (0xe010_0000, 2),
                span(Ecam, 0xe010_0000, 2 << 20),
            ),
            (
                |w| w.low = Span::new(0xf000_0000, 0x1000_0001),
                span(Low, 0xf000_0000, 0x1000_0001),
            ),
            (|w| w.low = Span::new(4 * GIB, 1), span(Low, 4 * GIB, 1)),
            (|w| w.low.base = 0, span(Low, 0, 0x1000_0000)),
            (|w| w.high.base = 0, span(High, 0, 512 * GIB)),
            (
                |w| w.high.base = u64::MAX - 1,
                span(High, u64::MAX - 1, 512 * GIB),
            ),
            (|w| w.low.size += 1, overlap(Ecam, Low)),
            (|w| w.high.base = 0xe000_0000, overlap(Ecam, High)),
            (|w| w.high = Span::new(0xdfff_ffff, 1), overlap(Low, High)),
        ];
        for (change, expected) in cases {
            let mut windows = windows();
            change(&mut windows);
            assert_eq!(windows.check(), *expected, "{windows:x?}");
        }
    }

    #[test]
    fn a_bar_has_one_window_as_a_whole() {
        let windows = windows();
        for (first, last, whole) in [
            (0xd000_0000, 0xd000_0fff, true),
            (0xdfff_f000, 0xdfff_ffff, true),
            (0xdfff_f000, 0xe000_0000, false),
            (0xcfff_f000, 0xd000_0fff, false),
            (0, u64::MAX, false),
            (512 * GIB, 1024 * GIB - 1, true),
            (512 * GIB, 1024 * GIB, false),
            (u64::MAX, u64::MAX, false),
        ] {
            assert_eq!(windows.have_bar(first, last), whole, "{first:#x}");
        }
    }
}
