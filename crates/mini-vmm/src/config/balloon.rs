// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The settings of the balloon.

use std::ffi::OsStr;

use serde::de::MapAccess;
use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize};
use virtio_models::balloon::{Options, PAGE_SIZE};

use super::device;
use super::iothread::{self, IoThreadName};
use super::words::{self, Number, Word, WordError};

/// The balloon: memory that the guest gives back.
///
/// As JSON it is an object with the flag's keys, such as `{"size": "256M", "deflate-on-oom": true}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BalloonSpec {
    /// The bytes that the balloon should have at first.
    #[serde(default, deserialize_with = "words::word")]
    #[serde(serialize_with = "words::write_size")]
    pub size: u64,
    /// Whether the guest takes memory out of the balloon by itself before it ends processes.
    #[serde(default, deserialize_with = "words::word")]
    pub deflate_on_oom: bool,
    /// The seconds between two requests for the guest's statistics; 0 for none.
    #[serde(default, deserialize_with = "seconds")]
    pub stats: u32,
    /// Whether the guest reports free pages by itself.
    #[serde(default, deserialize_with = "words::word")]
    pub reporting: bool,
    /// Whether the guest can be asked for free pages.
    #[serde(default, deserialize_with = "words::word")]
    pub hinting: bool,
    /// The I/O thread of the device. By default it is the one that devices share.
    #[serde(default, deserialize_with = "iothread::named")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iothread: Option<IoThreadName>,
}

/// Why a balloon is not possible. The messages continue the phrase "no balloon: ".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BalloonError {
    /// It is larger than the machine.
    #[error(
        "{} is more than the machine's memory; choose {} or less",
        words::ByteSize(*size),
        words::ByteSize(*memory)
    )]
    Large {
        /// In bytes.
        size: u64,
        /// In bytes.
        memory: u64,
    },
    /// It is not of whole pages.
    #[error("{size} bytes are no whole number of pages; choose a multiple of 4K")]
    PartialPage {
        /// In bytes.
        size: u64,
    },
}

impl BalloonSpec {
    /// Checks that a machine with `memory` bytes can have it.
    ///
    /// # Errors
    /// [`BalloonError`] is the first thing that is not possible.
    pub const fn validate(&self, memory: u64) -> Result<(), BalloonError> {
        let size = self.size;
        if size > memory {
            return Err(BalloonError::Large { size, memory });
        }
        if !size.is_multiple_of(PAGE_SIZE) {
            return Err(BalloonError::PartialPage { size });
        }
        Ok(())
    }

    /// Its size in pages of 4 KiB.
    pub(crate) const fn pages(&self) -> u32 {
        // Fits: a machine has at most 1 TiB.
        (self.size / PAGE_SIZE) as u32
    }

    /// What the device offers.
    pub(crate) const fn options(&self) -> Options {
        Options {
            deflate_on_oom: self.deflate_on_oom,
            stats: self.stats != 0,
            reporting: self.reporting,
            hinting: self.hinting,
        }
    }
}

fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let Number(seconds) = words::word(from)?;
    // Longer than any machine runs.
    Ok(u32::try_from(seconds).unwrap_or(u32::MAX))
}

impl Word for Option<BalloonSpec> {
    const EXPECTED: &'static str = "an object such as {\"size\": \"256M\", \"reporting\": true}";

    fn from_word(word: &str) -> Result<Self, WordError> {
        Self::from_os_word(OsStr::new(word))
    }

    fn from_os_word(word: &OsStr) -> Result<Self, WordError> {
        match device::from_word(word) {
            Ok(balloon) => Ok(Some(balloon)),
            Err(why) => Err(WordError::Balloon(why.to_string())),
        }
    }

    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        BalloonSpec::deserialize(MapAccessDeserializer::new(map)).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(word: &str) -> Result<BalloonSpec, String> {
        let spec = Option::<BalloonSpec>::from_word(word);
        let spec = spec.map_err(|why| why.to_string())?.unwrap();
        spec.validate(1 << 30).map_err(|why| why.to_string())?;
        Ok(spec)
    }

    #[test]
    fn all_words_are_optional() {
        let spec = BalloonSpec {
            size: 256 << 20,
            ..BalloonSpec::default()
        };
        assert_eq!(read("size=256M"), Ok(spec.clone()));
        assert_eq!(spec.pages(), 1 << 16);
        let full = BalloonSpec {
            deflate_on_oom: true,
            stats: 5,
            reporting: true,
            hinting: true,
            iothread: IoThreadName::new("slow"),
            ..spec
        };
        let word = "deflate-on-oom,reporting,hinting,stats=5,size=256M,iothread=slow";
        assert_eq!(read(word), Ok(full.clone()));
        let json = serde_json::to_string(&full).unwrap();
        assert_eq!(serde_json::from_str::<BalloonSpec>(&json).unwrap(), full);
        assert_eq!(
            serde_json::to_string(&BalloonSpec::default()).unwrap(),
            r#"{"size":"0","deflate-on-oom":false,"stats":0,"reporting":false,"hinting":false}"#
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (word, why) in [
            (
                "size=1025M",
                "1025M is more than the machine's memory; choose 1G or less",
            ),
            ("size=4097", "4097 bytes are no whole number of pages"),
            ("size=-1", "not a size"),
            ("stats=often", "\"often\" is not a whole number"),
            ("reporting=maybe", "\"maybe\" is not a switch's position"),
            (
                "target=5",
                "unknown field `target`, expected one of `size`, `deflate-on-oom`",
            ),
        ] {
            let error = read(word).unwrap_err();
            assert!(error.contains(why), "{word}: {error}");
        }
    }
}
