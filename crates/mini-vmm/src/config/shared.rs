// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Keys that disks and networks share.

use std::fmt::{self, Display, Formatter};
use std::num::NonZeroU64;

use serde::de;
use serde::{Deserializer, Serialize, Serializer};
use virtio_models::rate::Limit;

use super::words::{self, ByteSize, Number, Word, WordError};

/// The usual number of queues.
pub(super) const fn one() -> u16 {
    1
}

/// A number of queues. Its range is checked later; no number of queues is as large as the largest.
pub(super) fn queues<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
    let Number(queues) = words::word(from)?;
    Ok(u16::try_from(queues).unwrap_or(u16::MAX))
}

/// A limit as it is written: `SIZE`, which is for a second, or `SIZE/MS+ONCE`, a bucket.
struct Written {
    size: u64,
    /// In milliseconds.
    refill: Option<u64>,
    once: u64,
}

impl Written {
    fn from_word(word: &str, unit: fn(&str) -> Result<u64, WordError>) -> Result<Self, WordError> {
        let Some((size, rest)) = word.split_once('/') else {
            let size = unit(word)?;
            return Ok(Written {
                size,
                refill: None,
                once: 0,
            });
        };
        let (refill, once) = rest.split_once('+').unwrap_or((rest, "0"));
        let number = |word, unit: fn(&str) -> Result<u64, WordError>| {
            unit(word).map_err(|_| WordError::Bucket)
        };
        Ok(Written {
            size: number(size, unit)?,
            refill: Some(number(refill, whole)?),
            once: number(once, unit)?,
        })
    }

    fn limit<E: de::Error>(self, key: &str) -> Result<Option<Limit>, E> {
        let never = || E::custom(format_args!("with {key}=0 it would never answer"));
        let Some(refill) = self.refill else {
            return Limit::per_second(self.size).map(Some).ok_or_else(never);
        };
        Ok(Some(Limit {
            size: NonZeroU64::new(self.size).ok_or_else(never)?,
            refill: NonZeroU64::new(refill).ok_or_else(|| E::custom(WordError::Bucket))?,
            once: Some(self.once),
        }))
    }
}

fn whole(word: &str) -> Result<u64, WordError> {
    Number::from_word(word).map(|Number(number)| number)
}

/// A limit of bytes.
struct Bytes(Written);

impl Word for Bytes {
    const EXPECTED: &'static str = <u64 as Word>::EXPECTED;
    const NUMBERS: bool = true;

    fn from_word(word: &str) -> Result<Self, WordError> {
        Written::from_word(word, u64::from_word).map(Bytes)
    }
}

/// A limit of requests.
struct Requests(Written);

impl Word for Requests {
    const EXPECTED: &'static str = Number::EXPECTED;
    const NUMBERS: bool = true;

    fn from_word(word: &str) -> Result<Self, WordError> {
        Written::from_word(word, whole).map(Requests)
    }
}

/// A limit of bytes.
pub(super) fn bandwidth<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Limit>, D::Error> {
    let Bytes(written) = words::word(from)?;
    written.limit("bandwidth")
}

/// A limit of requests or frames.
pub(super) fn iops<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Limit>, D::Error> {
    let Requests(written) = words::word(from)?;
    written.limit("iops")
}

/// Serializes a limit of bytes.
pub(super) fn write_bandwidth<S: Serializer>(
    limit: &Option<Limit>,
    to: S,
) -> Result<S::Ok, S::Error> {
    match limit {
        Some(limit) => to.collect_str(&BytesWord(*limit)),
        None => to.serialize_none(),
    }
}

/// Serializes a limit of requests: a number, unless it is a bucket.
pub(super) fn write_iops<S: Serializer>(limit: &Option<Limit>, to: S) -> Result<S::Ok, S::Error> {
    match limit {
        Some(Limit {
            size, once: None, ..
        }) => size.serialize(to),
        Some(limit) => to.collect_str(&RequestsWord(*limit)),
        None => to.serialize_none(),
    }
}

/// A limit of bytes, as it is read.
pub(super) struct BytesWord(pub(super) Limit);

impl Display for BytesWord {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Limit { size, refill, once } = self.0;
        write!(f, "{}", ByteSize(size.get()))?;
        match once {
            Some(once) => write!(f, "/{refill}+{}", ByteSize(once)),
            None => Ok(()),
        }
    }
}

/// A limit of requests, as it is read.
pub(super) struct RequestsWord(pub(super) Limit);

impl Display for RequestsWord {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Limit { size, refill, once } = self.0;
        write!(f, "{size}")?;
        match once {
            Some(once) => write!(f, "/{refill}+{once}"),
            None => Ok(()),
        }
    }
}

/// A limit of bytes, or `off`.
impl Word for Option<Limit> {
    const EXPECTED: &'static str = "a size per second such as \"1M\", or \"off\"";
    const NUMBERS: bool = true;

    fn from_word(word: &str) -> Result<Self, WordError> {
        if word == "off" {
            return Ok(None);
        }
        let Bytes(written) = Bytes::from_word(word)?;
        let limit = written.limit::<de::value::Error>("");
        limit.map_err(|_| WordError::Bucket)
    }
}

/// Serializes a limit of bytes, or `off`.
pub(super) fn write_limit<S: Serializer>(limit: &Option<Limit>, to: S) -> Result<S::Ok, S::Error> {
    match limit {
        Some(limit) => to.collect_str(&BytesWord(*limit)),
        None => to.serialize_str("off"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Limits of every kind.
    pub(in crate::config) fn any_limit() -> impl Strategy<Value = Option<Limit>> {
        let bucket = (any::<NonZeroU64>(), any::<NonZeroU64>(), any::<u64>());
        let bucket = bucket.prop_map(|(size, refill, once)| {
            Some(Limit {
                size,
                refill,
                once: Some(once),
            })
        });
        prop_oneof![any::<u64>().prop_map(Limit::per_second), bucket]
    }

    proptest! {
        #[test]
        fn a_word_is_read_as_it_was_written(limit in any_limit()) {
            let Some(limit) = limit else { return Ok(()) };
            let read = |written: Written| written.limit::<de::value::Error>("x").unwrap();
            let Bytes(bytes) = Bytes::from_word(&BytesWord(limit).to_string()).unwrap();
            prop_assert_eq!(read(bytes), Some(limit));
            let Requests(requests) = Requests::from_word(&RequestsWord(limit).to_string()).unwrap();
            prop_assert_eq!(read(requests), Some(limit));
        }
    }

    #[test]
    fn a_bucket_has_a_size_a_time_and_a_burst() {
        let read = |word: &str| Option::<Limit>::from_word(word);
        let number = |n| NonZeroU64::new(n).unwrap();
        let bucket = |once| Limit {
            size: number(10 << 20),
            refill: number(100),
            once: Some(once),
        };
        assert_eq!(read("10M/100"), Ok(Some(bucket(0))));
        assert_eq!(read("10M/100+1G"), Ok(Some(bucket(1 << 30))));
        assert_eq!(read("1K"), Ok(Limit::per_second(1024)));
        assert_eq!(read("off"), Ok(None));
        for word in [
            "1/", "/1", "1/0", "0/1", "0", "1/1s", "1/1+", "1/1/1", "1+1",
        ] {
            read(word).expect_err(word);
        }
    }
}
