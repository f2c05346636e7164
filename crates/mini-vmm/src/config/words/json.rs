// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The words in a config file.

use std::fmt::{self, Formatter};
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use serde::de::value::{SeqAccessDeserializer, StrDeserializer};
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};

use super::{ByteSize, Count, OptionalPort, Switch, TimeLimit, WordError};
use crate::config::{
    BootProtocol, CpuFeature, Decompress, HypercallAbi, HypercallRoute, MsrPolicy, OnPanic,
    OnReboot, SerialSpec,
};
use crate::text::shown;

/// A value that JSON holds as a word, or as a number where that is plain.
trait Word: FromStr<Err = WordError> {
    /// What serde's messages call it.
    const EXPECTED: &'static str;

    /// The value that a bare number stands for.
    fn from_number(_number: u64) -> Option<Self> {
        None
    }

    /// The value that a bare truth value stands for.
    fn from_bool(_on: bool) -> Option<Self> {
        None
    }
}

impl Word for Switch {
    const EXPECTED: &'static str = "\"on\" or \"off\", true or false";

    fn from_bool(on: bool) -> Option<Self> {
        Some(Switch(on))
    }
}

impl Word for ByteSize {
    const EXPECTED: &'static str = "a size such as \"512M\", or a number of bytes";

    fn from_number(bytes: u64) -> Option<Self> {
        Some(ByteSize(bytes))
    }
}

impl Word for TimeLimit {
    const EXPECTED: &'static str = "a time such as \"5m\", a whole number of seconds, or \"off\"";

    fn from_number(seconds: u64) -> Option<Self> {
        Some(TimeLimit(Some(Duration::from_secs(seconds))))
    }

    fn from_bool(on: bool) -> Option<Self> {
        (!on).then_some(TimeLimit(None))
    }
}

impl Word for OptionalPort {
    const EXPECTED: &'static str = "an I/O port such as \"0xf4\" or 244, true or false";

    fn from_bool(on: bool) -> Option<Self> {
        Some(OptionalPort::debug_exit(on))
    }

    fn from_number(port: u64) -> Option<Self> {
        u16::try_from(port)
            .ok()
            .map(|port| OptionalPort(Some(port)))
    }
}

impl Word for CpuFeature {
    const EXPECTED: &'static str = "a CPU feature such as \"-avx2\"";
}

impl Word for SerialSpec {
    const EXPECTED: &'static str = "\"off\", \"stdio\", \"pty\", \"file=PATH\" or \"socket=PATH\"";

    fn from_bool(on: bool) -> Option<Self> {
        (!on).then_some(SerialSpec::Off)
    }
}

impl Word for HypercallRoute {
    const EXPECTED: &'static str = "\"auto\", \"vendor\", \"forward\", \"pio\" or \"pio=PORT\"";
}

impl Word for Count {
    const EXPECTED: &'static str = "a whole number of vCPUs such as 2";

    fn from_number(number: u64) -> Option<Self> {
        Some(Count(number))
    }
}

struct WordVisitor<T>(PhantomData<T>);

impl<T: Word> Visitor<'_> for WordVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<T, E> {
        word.parse()
            .map_err(|why| E::custom(format_args!("\"{}\" is {why}", shown(word))))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        T::from_number(number)
            .ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(number), &self))
    }

    fn visit_bool<E: de::Error>(self, on: bool) -> Result<T, E> {
        T::from_bool(on).ok_or_else(|| E::invalid_value(de::Unexpected::Bool(on), &self))
    }
}

macro_rules! deserialize_by_word {
    ($($type:ty),*) => { $(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_any(WordVisitor(PhantomData))
            }
        }
    )* };
}

macro_rules! serialize_by_word {
    ($($type:ty),*) => { $(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
    )* };
}

deserialize_by_word!(
    Count,
    Switch,
    ByteSize,
    TimeLimit,
    OptionalPort,
    CpuFeature,
    SerialSpec,
    HypercallRoute
);
serialize_by_word!(
    Switch,
    ByteSize,
    TimeLimit,
    OptionalPort,
    CpuFeature,
    HypercallRoute
);

impl Serialize for SerialSpec {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let word = self.to_word().into_string().map_err(|word| {
            ser::Error::custom(format_args!("{word:?} is not UTF-8, which JSON needs"))
        })?;
        to.serialize_str(&word)
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(self.0)
    }
}

/// A choice of few words, the same that a flag has.
struct ChoiceVisitor<T>(PhantomData<T>);

impl<T: ValueEnum> Visitor<'_> for ChoiceVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let words = T::value_variants().iter().filter_map(T::to_possible_value);
        let words: Vec<_> = words.map(|word| format!("{:?}", word.get_name())).collect();
        match words.split_last() {
            Some((last, others)) => write!(f, "{} or {last}", others.join(", ")),
            None => Ok(()),
        }
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<T, E> {
        T::from_str(word, false).map_err(|_| E::invalid_value(de::Unexpected::Str(word), &self))
    }
}

macro_rules! by_choice {
    ($($type:ty),*) => { $(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_any(ChoiceVisitor(PhantomData))
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                match self.to_possible_value() {
                    Some(word) => to.serialize_str(word.get_name()),
                    None => Err(ser::Error::custom("a choice without a word")),
                }
            }
        }
    )* };
}

by_choice!(
    BootProtocol,
    Decompress,
    OnReboot,
    OnPanic,
    HypercallAbi,
    MsrPolicy
);

/// A list of features, or the one word that the flag takes for it.
pub(in crate::config) fn features<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Vec<CpuFeature>>, D::Error> {
    let features = Option::<Features>::deserialize(from)?;
    Ok(features.map(|features| features.0))
}

struct Features(Vec<CpuFeature>);

impl<'de> Deserialize<'de> for Features {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(FeaturesVisitor).map(Features)
    }
}

struct FeaturesVisitor;

impl<'de> Visitor<'de> for FeaturesVisitor {
    type Value = Vec<CpuFeature>;

    fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("a list of CPU features such as [\"-avx2\"]")
    }

    fn visit_str<E: de::Error>(self, words: &str) -> Result<Self::Value, E> {
        let words = words.split(',').map(StrDeserializer::new);
        words.map(CpuFeature::deserialize).collect()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list))
    }
}
