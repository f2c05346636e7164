// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Words that describe a device.
//!
//! They are deserialized with serde: an enumeration from `kind` or `kind=VALUE`, a struct from
//! `key=VALUE,key,key=VALUE`, where a key alone means `on`. A key may be repeated if its values are a list.

use std::ffi::OsStr;
use std::iter::once;
use std::mem::take;
use std::os::unix::ffi::OsStrExt;

use serde::de::value::{
    Error, MapAccessDeserializer, MapDeserializer, SeqAccessDeserializer, SeqDeserializer,
    StringDeserializer,
};
use serde::de::{DeserializeOwned, Error as _, IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};

use super::words::{Word, WordError};

/// Parses the device that `word` describes.
///
/// The value of a kind extends to the end of the word. The value of a key extends to the next comma; a literal comma is
/// doubled. Values can't be empty. serde gets them as bytes, since a path need not be text.
pub(super) fn from_word<T: DeserializeOwned>(word: &OsStr) -> Result<T, Error> {
    T::deserialize(Device::from(word.as_bytes().to_vec()))
}

/// A device of which a machine has several: a list in JSON, or one in each flag.
pub(super) trait Listed: DeserializeOwned {
    /// What JSON must have, for error messages.
    const EXPECTED: &'static str;

    /// The error for a word that describes none, with the reason.
    const REFUSED: fn(String) -> WordError;
}

impl<T: Listed> Word for Vec<T> {
    const EXPECTED: &'static str = T::EXPECTED;

    fn from_word(word: &str) -> Result<Self, WordError> {
        Self::from_os_word(OsStr::new(word))
    }

    fn from_os_word(word: &OsStr) -> Result<Self, WordError> {
        match from_word(word) {
            Ok(device) => Ok(vec![device]),
            Err(why) => Err(T::REFUSED(why.to_string())),
        }
    }

    fn from_list<'de, A: SeqAccess<'de>>(list: A) -> Result<Self, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list))
    }

    /// Adds the devices of a later flag.
    fn put(&mut self, later: Self) {
        self.extend(later);
    }
}

/// A word, or the values of a kind or key in it.
struct Device {
    value: Vec<u8>,
    /// The key and its further values, if it is repeated.
    repeated: Option<(String, Vec<Vec<u8>>)>,
}

impl From<Vec<u8>> for Device {
    fn from(value: Vec<u8>) -> Self {
        let repeated = None;
        Device { value, repeated }
    }
}

impl<'de> Deserializer<'de> for Device {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.repeated {
            Some((key, _)) => Err(Error::custom(format_args!("duplicate field `{key}`"))),
            None => visitor.visit_byte_buf(self.value),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let further = self.repeated.map_or_else(Vec::new, |(_, values)| values);
        let values = once(self.value).chain(further).map(Device::from);
        visitor.visit_seq(SeqDeserializer::new(values))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &str,
        _kinds: &[&str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match entry(&self.value)? {
            (kind, None) => visitor.visit_enum(StringDeserializer::new(kind)),
            entry => visitor.visit_enum(MapAccessDeserializer::new(map([entry]))),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &str,
        _keys: &[&str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let entries = entries(&self.value).into_iter().map(|bytes| entry(&bytes));
        visitor.visit_map(map(entries.collect::<Result<Vec<_>, Error>>()?))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct tuple tuple_struct map identifier ignored_any
    }
}

impl IntoDeserializer<'_> for Device {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

type Entry = (String, Option<Vec<u8>>);

/// serde's map of `entries`, each key once.
fn map<'de>(
    entries: impl IntoIterator<Item = Entry>,
) -> MapDeserializer<'de, impl Iterator<Item = (String, Device)>, Error> {
    let mut map: Vec<(String, Device)> = Vec::new();
    for (key, value) in entries {
        let value = value.unwrap_or_else(|| b"on".to_vec());
        match map.iter_mut().find(|(known, _)| *known == key) {
            Some((_, device)) => {
                let (_, further) = device.repeated.get_or_insert_with(|| (key, Vec::new()));
                further.push(value);
            }
            None => map.push((key, value.into())),
        }
    }
    MapDeserializer::new(map.into_iter())
}

/// Splits `word` at single commas. A doubled comma becomes one.
fn entries(word: &[u8]) -> Vec<Vec<u8>> {
    let (mut entries, mut entry) = (Vec::new(), Vec::new());
    let mut bytes = word.iter().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b',' if bytes.next_if_eq(&&b',').is_none() => entries.push(take(&mut entry)),
            byte => entry.push(*byte),
        }
    }
    entries.push(entry);
    entries
}

/// A name, and the value after the first `=`.
fn entry(bytes: &[u8]) -> Result<Entry, Error> {
    let mut parts = bytes.splitn(2, |byte| *byte == b'=');
    let name = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    match parts.next() {
        Some([]) => Err(Error::custom(format_args!("{name}= has no value"))),
        value => Ok((name, value.map(<[u8]>::to_vec))),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;
    use serde::Deserialize;

    use super::super::words::word;
    use super::*;

    /// As disks may be described in future.
    #[derive(Debug, Default, PartialEq, Eq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Disk {
        #[serde(deserialize_with = "word")]
        path: Option<PathBuf>,
        #[serde(deserialize_with = "word")]
        size: u64,
        #[serde(deserialize_with = "word")]
        readonly: bool,
    }

    /// A device with a list.
    #[derive(Debug, PartialEq, Eq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Listed {
        #[serde(default)]
        part: Vec<Part>,
        #[serde(default, deserialize_with = "word")]
        size: u64,
    }

    #[derive(Debug, PartialEq, Eq, Deserialize)]
    #[serde(transparent)]
    struct Part(#[serde(deserialize_with = "word")] u64);

    #[test]
    fn only_the_key_of_a_list_is_repeated() {
        let read = |word: &str| from_word::<Listed>(OsStr::new(word));
        let listed = |part: &[u64], size| Listed {
            part: part.iter().map(|size| Part(*size)).collect(),
            size,
        };
        assert_eq!(
            read("part=1,size=7,part=2K,part=3"),
            Ok(listed(&[1, 2048, 3], 7))
        );
        assert_eq!(read("part=1,size=7"), Ok(listed(&[1], 7)));
        assert_eq!(read("size=7"), Ok(listed(&[], 7)));
        for (word, part) in [
            ("size=1,part=1,size=2", "duplicate field `size`"),
            ("part=1,part=x", "\"x\" is not a size"),
            ("part=1,part=", "part= has no value"),
            ("other=1,other=2", "unknown field `other`"),
        ] {
            let error = read(word).unwrap_err().to_string();
            assert!(error.contains(part), "{word}: {error:?} lacks {part:?}");
        }
    }

    fn disk(path: &[u8], size: u64, readonly: bool) -> Disk {
        Disk {
            path: Some(OsStr::from_bytes(path).into()),
            size,
            readonly,
        }
    }

    fn read(word: &[u8]) -> Result<Disk, String> {
        from_word(OsStr::from_bytes(word)).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_have_values_or_are_on() {
        assert_eq!(
            read(b"path=a,size=1G,readonly"),
            Ok(disk(b"a", 1 << 30, true))
        );
        assert_eq!(read(b"readonly=off,path=a=b"), Ok(disk(b"a=b", 0, false)));
        assert_eq!(
            read(b"path=a,,b\xff,size=7"),
            Ok(disk(b"a,b\xff", 7, false))
        );
        assert_eq!(read(b"path=,,"), Ok(disk(b",", 0, false)));
    }

    #[test]
    fn json_objects_mean_the_same() {
        let json: Disk =
            serde_json::from_str(r#"{"path": "a,b", "size": 7, "readonly": true}"#).unwrap();
        assert_eq!(read(b"path=a,,b,size=7,readonly=on"), Ok(json));
    }

    #[test]
    fn mistakes_are_named() {
        for (word, part) in [
            (
                "",
                "unknown field ``, expected one of `path`, `size`, `readonly`",
            ),
            ("path=a,", "unknown field ``"),
            ("pth=a", "unknown field `pth`"),
            ("path=a,path=b", "duplicate field `path`"),
            ("path=,size=1", "path= has no value"),
            ("size=lots", "\"lots\" is not a size; write"),
            ("size", "\"on\" is not a size; write"),
            ("readonly=maybe", "\"maybe\" is not a switch's position"),
        ] {
            let error = read(word.as_bytes()).expect_err(word);
            assert!(error.contains(part), "{word}: {error:?} lacks {part:?}");
        }
        let error = read(b"size=\xff").unwrap_err();
        assert!(error.contains("is not a size"), "{error}");
    }

    proptest! {
        #[test]
        fn any_path_can_be_written(path in proptest::collection::vec(1u8.., 1..40)) {
            let doubled: Vec<u8> = path
                .iter()
                .flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b',' { 2 } else { 1 }))
                .collect();
            let word = [b"path=".as_slice(), &doubled, b",readonly"].concat();
            prop_assert_eq!(read(&word), Ok(disk(&path, 0, true)));
        }

        #[test]
        fn any_bytes_are_read_or_refused(word: Vec<u8>) {
            let _ = read(&word);
        }
    }
}
