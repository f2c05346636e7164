// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The start time of the process, to measure boots.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

static START: OnceLock<Instant> = OnceLock::new();

/// Sets the start to now. The program calls it first, so only the dynamic linker's time since exec is missing. A
/// library user may call it at any time. Later calls do nothing.
pub fn mark() {
    START.get_or_init(Instant::now);
}

/// The time since [`mark`], or since the first call of this function.
pub fn elapsed() -> Duration {
    START.get_or_init(Instant::now).elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_mark_counts() {
        mark();
        std::thread::sleep(Duration::from_millis(20));
        mark();
        assert!(elapsed() >= Duration::from_millis(20));
    }
}
