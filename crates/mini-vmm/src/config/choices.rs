// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Values that are one of a few words.

use std::fmt::{self, Formatter};

use super::words::{Word, WordError};

/// A value that is one of a few words.
pub(crate) trait Choice: Copy + 'static {
    /// Each value with its word.
    const CHOICES: &'static [(Self, &'static str)];
}

/// Defines enumerations of words. The first word is the default. The doc of a value is also its help text.
macro_rules! choices {
    ($(
        $(#[doc = $about:literal])+
        pub enum $name:ident { $($(#[doc = $help:literal])+ $value:ident = $word:literal,)+ }
    )+) => { $(
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[doc = $help])+ #[serde(rename = $word)] $value,)+
        }

        impl $crate::config::choices::Choice for $name {
            const CHOICES: &'static [(Self, &'static str)] = &[$(($name::$value, $word),)+];
        }

        impl $name {
            /// The words, each with its meaning.
            pub(crate) const WORDS: &'static [(&'static str, &'static str)] =
                &[$(($word, concat!($($help),+)),)+];
        }

        impl Default for $name {
            fn default() -> Self {
                <$name as $crate::config::choices::Choice>::CHOICES[0].0
            }
        }
    )+ };
}
pub(super) use choices;

impl<T: Choice> Word for T {
    const EXPECTED: &'static str = "";

    fn expecting(f: &mut Formatter<'_>) -> fmt::Result {
        for (at, (_, word)) in T::CHOICES.iter().enumerate() {
            let before = match T::CHOICES.len() - at {
                _ if at == 0 => "",
                1 => " or ",
                _ => ", ",
            };
            write!(f, "{before}{word:?}")?;
        }
        Ok(())
    }

    fn from_word(word: &str) -> Result<Self, WordError> {
        let choice = T::CHOICES.iter().find(|(_, known)| *known == word);
        choice.map(|(value, _)| *value).ok_or(WordError::Choice)
    }
}
