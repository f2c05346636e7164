// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! CPU features to show or hide.

use std::fmt::{self, Display, Formatter};

use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, SeqAccess};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::words::{self, Word, WordError};

/// A CPU feature to show or hide, by its name in Linux's /proc/cpuinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuFeature {
    /// The name, such as `avx2`.
    pub name: String,
    /// Whether the guest sees it.
    pub enable: bool,
}

impl CpuFeature {
    /// Whether `name` is a possible feature name: letters, digits and `_`, after the first of these also `-` and `.`,
    /// at most 32. Whether it exists is checked when the machine is built.
    pub fn is_name(name: &str) -> bool {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        (1..=32).contains(&name.len()) && !name.starts_with(['-', '.']) && name.chars().all(is_part)
    }
}

impl Word for CpuFeature {
    const EXPECTED: &'static str = "a CPU feature such as \"-avx2\"";

    fn from_word(word: &str) -> Result<Self, WordError> {
        let (enable, name) = match (word.strip_prefix('+'), word.strip_prefix('-')) {
            (Some(name), _) => (true, name),
            (_, Some(name)) => (false, name),
            _ if CpuFeature::is_name(word) => return Err(WordError::UnsignedFeature),
            _ => return Err(WordError::Feature),
        };
        if !CpuFeature::is_name(name) {
            return Err(WordError::Feature);
        }
        Ok(CpuFeature {
            name: name.to_owned(),
            enable,
        })
    }
}

impl Display for CpuFeature {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let sign = if self.enable { '+' } else { '-' };
        write!(f, "{sign}{}", self.name)
    }
}

impl Serialize for CpuFeature {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CpuFeature {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        words::word(from)
    }
}

/// A list in JSON, or the single word of a flag.
impl Word for Vec<CpuFeature> {
    const EXPECTED: &'static str = "a list of CPU features such as [\"-avx2\"]";

    fn from_word(words: &str) -> Result<Self, WordError> {
        words.split(',').map(CpuFeature::from_word).collect()
    }

    fn from_string<E: de::Error>(words: &str) -> Result<Self, E> {
        words.split(',').map(CpuFeature::from_string).collect()
    }

    fn from_list<'de, A: SeqAccess<'de>>(list: A) -> Result<Self, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list))
    }
}
