// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the initrd goes: as high as allowed, so that the kernel has room below it.

use super::error::InitrdError;
use crate::layout::{HOLE_START, MIB, PAGE_SIZE};

/// The start of an initrd of `size` bytes: page-aligned, below `limit` and the end of RAM, above the kernel.
///
/// # Errors
/// [`InitrdError`] when it doesn't fit. It says how much RAM would suffice, if any does.
pub(super) fn place(
    size: u64,
    kernel_end: u64,
    ram_end: u64,
    limit: u64,
) -> Result<u64, InitrdError> {
    let limit = limit.min(HOLE_START);
    let highest = limit.min(ram_end).checked_sub(size);
    let start = highest.map(|start| start / PAGE_SIZE * PAGE_SIZE);
    if let Some(start) = start.filter(|start| *start >= kernel_end) {
        return Ok(start);
    }
    let needed = kernel_end
        .checked_next_multiple_of(PAGE_SIZE)
        .and_then(|end| end.checked_add(size))
        .filter(|end| *end <= limit);
    Err(match needed {
        Some(end) => InitrdError::NeedsMemory {
            size,
            kernel_end,
            needed: end.next_multiple_of(MIB),
        },
        None => InitrdError::TooLarge {
            size,
            kernel_end,
            limit,
        },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn goes_to_the_top() {
        assert_eq!(
            place(5000, MIB, 64 * MIB, u64::MAX).unwrap(),
            64 * MIB - 8192
        );
        assert_eq!(
            place(5000, MIB, 64 * MIB, 32 * MIB).unwrap(),
            32 * MIB - 8192
        );
        assert_eq!(
            place(4096, MIB, 4 * HOLE_START, u64::MAX).unwrap(),
            HOLE_START - 4096
        );
    }

    #[test]
    fn what_no_memory_makes_fit_is_told_apart() {
        assert!(matches!(
            place(HOLE_START, MIB, 64 * MIB, u64::MAX),
            Err(InitrdError::TooLarge { .. })
        ));
        assert!(matches!(
            place(u64::MAX, MIB, 64 * MIB, u64::MAX),
            Err(InitrdError::TooLarge { .. })
        ));
    }

    proptest! {
        #[test]
        fn what_is_said_to_do_does(size in 1..=HOLE_START, kernel_end in 0..HOLE_START, ram in 0..HOLE_START, limit: u64) {
            match place(size, kernel_end, ram, limit) {
                Ok(start) => prop_assert!(start % PAGE_SIZE == 0 && start >= kernel_end && start + size <= ram.min(limit)),
                Err(InitrdError::NeedsMemory { needed, .. }) => {
                    prop_assert!(needed > ram);
                    prop_assert!(place(size, kernel_end, needed, limit).is_ok());
                }
                Err(_) => prop_assert!(place(size, kernel_end, HOLE_START, limit).is_err()),
            }
        }
    }
}
