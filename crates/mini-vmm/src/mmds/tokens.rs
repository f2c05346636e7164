// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Session tokens. A token says nothing: it is a random number, which this table knows for a time.

use std::io;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};

/// The seconds for which a token can be valid.
pub(super) const LIFETIMES: RangeInclusive<u32> = 1..=21_600;
/// The most tokens at a time. More replace those that expire first.
pub(super) const MAX_TOKENS: usize = 1024;

/// The tokens that are valid.
#[derive(Debug, Default)]
pub(super) struct Tokens(Vec<Token>);

#[derive(Clone, Copy)]
struct Token {
    number: u128,
    ends: Instant,
}

impl Tokens {
    /// A new token, valid for some seconds of [`LIFETIMES`].
    ///
    /// # Errors
    /// The host has no random numbers.
    pub(super) fn issue(&mut self, seconds: u32, now: Instant) -> io::Result<String> {
        let mut bytes = [0; 16];
        let got = getrandom(&mut bytes, GetRandomFlags::empty())?;
        if got != bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let number = u128::from_ne_bytes(bytes);
        self.0.retain(|token| token.ends > now);
        if self.0.len() == MAX_TOKENS {
            let ends = self.0.iter().enumerate();
            if let Some((first, _)) = ends.min_by_key(|(_, token)| token.ends) {
                self.0.swap_remove(first);
            }
        }
        let ends = now + Duration::from_secs(seconds.into());
        self.0.push(Token { number, ends });
        Ok(format!("{number:032x}"))
    }

    /// Whether `text` is a token that is valid now.
    pub(super) fn knows(&self, text: &[u8], now: Instant) -> bool {
        let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 32 || !text.iter().all(is_digit) {
            return false;
        }
        let number = str::from_utf8(text)
            .ok()
            .and_then(|text| u128::from_str_radix(text, 16).ok());
        let mut tokens = self.0.iter();
        tokens.any(|token| Some(token.number) == number && token.ends > now)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Without the number, which is a secret.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}
