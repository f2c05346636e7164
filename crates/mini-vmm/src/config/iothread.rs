// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The names of I/O threads.

use serde::{Deserializer, Serialize};

use super::words::{self, Word, WordError};

/// The name of an I/O thread, whose devices name it: 1 to 12 ASCII letters, digits, `-` and `_`. The host shows the
/// thread as `io-NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct IoThreadName(String);

impl IoThreadName {
    /// The host shows 15 bytes of a thread's name, of which three are `io-`.
    const MAX_LEN: usize = 12;

    /// `None` if `name` can't be one.
    pub fn new(name: &str) -> Option<Self> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let fits = (1..=Self::MAX_LEN).contains(&name.len()) && name.chars().all(is_part);
        fits.then(|| IoThreadName(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Word for IoThreadName {
    const EXPECTED: &'static str = "the name of an I/O thread such as \"fast\"";
    const NUMBERS: bool = true;

    fn from_word(word: &str) -> Result<Self, WordError> {
        IoThreadName::new(word).ok_or(WordError::IoThread)
    }
}

/// Deserializes the thread of a device that names one.
pub(super) fn named<'de, D: Deserializer<'de>>(from: D) -> Result<Option<IoThreadName>, D::Error> {
    words::word(from).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_the_host_shows_in_full() {
        for name in ["a", "0", "A-b_9", "twelve-bytes"] {
            assert_eq!(IoThreadName::new(name).unwrap().as_str(), name);
        }
        for name in ["", "thirteen-byte", "a b", "a/b", "ä", "a\n", "a\0"] {
            assert_eq!(IoThreadName::new(name), None, "{name:?}");
        }
    }
}
