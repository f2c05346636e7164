// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! When the process started, for whoever measures boots.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

static START: OnceLock<Instant> = OnceLock::new();

/// Takes now as the start. The program calls it first of all, so that what is missed since its exec
/// is the dynamic linker's work; a library's user calls it when it likes. Later calls do nothing.
pub fn mark() {
    START.get_or_init(Instant::now);
}

/// The time since [`mark`], or since the first call of this.
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
