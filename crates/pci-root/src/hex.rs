// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bytes as a string of hexadecimal digits, for serde's `with` attribute. Lists of numbers, which are read more slowly, were
//! written before, and are still read.

use std::fmt::{self, Formatter};

use serde::de::value::SeqAccessDeserializer;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    if !to.is_human_readable() {
        return bytes.serialize(to);
    }
    let digits = |byte: &u8| [byte >> 4, byte & 0xf].map(u32::from);
    let digits = bytes.iter().flat_map(digits);
    let text: String = digits
        .filter_map(|digit| char::from_digit(digit, 16))
        .collect();
    to.serialize_str(&text)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    match from.is_human_readable() {
        true => from.deserialize_any(Bytes),
        false => Vec::deserialize(from),
    }
}

struct Bytes;

impl<'de> Visitor<'de> for Bytes {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("hexadecimal digits")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<u8>, E> {
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let value = |digit: u8| char::from(digit).to_digit(16);
        let byte = |[high, low]: &[u8; 2]| Some((value(*high)? << 4 | value(*low)?) as u8);
        match rest {
            [] => pairs.iter().map(byte).collect::<Option<_>>(),
            _ => None,
        }
        .ok_or_else(|| E::custom("bytes need pairs of hexadecimal digits"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Vec<u8>, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, from_value, json, to_value};

    use crate::FunctionState;

    fn state(config: Value) -> Result<FunctionState, String> {
        let state = json!({"config": config, "msix": null});
        from_value(state).map_err(|error| error.to_string())
    }

    proptest! {
        #[test]
        fn digits_and_lists_say_the_same(config in proptest::collection::vec(any::<u8>(), 0..300)) {
            let saved = FunctionState { config, msix: None };
            let value = to_value(&saved).unwrap();
            prop_assert!(value["config"].is_string());
            prop_assert_eq!(state(value["config"].clone()).unwrap(), saved.clone());
            prop_assert_eq!(state(json!(saved.config)).unwrap(), saved);
        }
    }

    #[test]
    fn what_is_no_byte_is_refused() {
        let saved = state(json!("0aFf")).unwrap();
        assert_eq!(saved.config, [0x0a, 0xff]);
        for wrong in [
            json!("0"),
            json!("0g"),
            json!("+1"),
            json!("0é"),
            json!("é"),
            json!("00 "),
        ] {
            let error = state(wrong).unwrap_err();
            assert!(error.contains("pairs of hexadecimal digits"), "{error}");
        }
        for wrong in [json!(7), json!(null), json!([256]), json!({})] {
            assert!(state(wrong).is_err());
        }
    }
}
