// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Structures as digits and as lists, and strings that are none.

use kvm_bindings::{kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry};
use kvm_ioctls::KvmNestedStateBuffer;
use proptest::prelude::*;
use serde_json::{Value, from_value, json, to_string, to_value};

use super::*;

#[derive(Serialize, Deserialize)]
struct State {
    #[serde(with = "super")]
    mp: kvm_mp_state,
    #[serde(with = "super")]
    chips: [kvm_irqchip; 2],
    #[serde(with = "super::option", default)]
    lapic: Option<kvm_lapic_state>,
    #[serde(with = "super::list")]
    msrs: Vec<kvm_msr_entry>,
    #[serde(with = "super::list")]
    words: Vec<u32>,
    #[serde(with = "super::short", default)]
    nested: Option<Box<KvmNestedStateBuffer>>,
}

/// The form before this module.
#[derive(Serialize)]
struct Lists<'a> {
    mp: &'a kvm_mp_state,
    chips: &'a [kvm_irqchip; 2],
    lapic: &'a Option<kvm_lapic_state>,
    msrs: &'a Vec<kvm_msr_entry>,
    words: &'a Vec<u32>,
    nested: &'a Option<Box<KvmNestedStateBuffer>>,
}

fn lists(state: &State) -> Value {
    let State {
        mp,
        chips,
        lapic,
        msrs,
        words,
        nested,
    } = state;
    to_value(Lists {
        mp,
        chips,
        lapic,
        msrs,
        words,
        nested,
    })
    .unwrap()
}

fn filled<T: FromBytes + IntoBytes>(bytes: &[u8]) -> T {
    let mut value = T::new_zeroed();
    let space = value.as_mut_bytes();
    let count = space.len().min(bytes.len());
    space[..count].copy_from_slice(&bytes[..count]);
    value
}

fn state(bytes: &[u8], count: usize) -> State {
    let some = count > 0;
    State {
        mp: filled(bytes),
        chips: filled(bytes),
        lapic: some.then(|| filled(bytes)),
        msrs: vec![filled(bytes); count],
        words: vec![filled(bytes); count],
        nested: some.then(|| Box::new(filled(bytes))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn digits_and_lists_say_the_same(
        bytes in proptest::collection::vec(any::<u8>(), 0..9000), count in 0usize..4,
    ) {
        let saved = state(&bytes, count);
        let text = to_string(&saved).unwrap();
        let read: State = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(lists(&read), lists(&saved));
        let old: State = from_value(lists(&saved)).unwrap();
        prop_assert_eq!(to_string(&old).unwrap(), text);
    }

    #[test]
    fn no_word_is_a_danger(word in "\\PC{0,40}") {
        let mut value = to_value(state(&[7], 1)).unwrap();
        for (name, bytes) in [("mp", 4), ("chips", 1040), ("lapic", 1024)] {
            value[name] = json!(word);
            let is_whole = word.len() == 2 * bytes
                && word.bytes().all(|byte| byte.is_ascii_hexdigit());
            prop_assert_eq!(from_value::<State>(value.clone()).is_ok(), is_whole);
            value[name] = to_value(state(&[7], 1)).unwrap()[name].clone();
        }
    }
}

#[test]
fn bytes_are_in_the_order_of_memory_and_zeros_may_be_short() {
    let value = to_value(state(&[0x12, 0xab, 0, 0], 2)).unwrap();
    assert_eq!(value["mp"], "12ab0000");
    assert_eq!(value["words"], "12ab000012ab0000");
    assert_eq!(value["nested"], "12ab");
    assert_eq!(value["lapic"].as_str().unwrap().len(), 2048);
    let none = to_value(state(&[1], 0)).unwrap();
    assert_eq!([&none["lapic"], &none["nested"]], [&Value::Null; 2]);
    assert_eq!([&none["msrs"], &none["words"]], ["", ""]);
}

#[test]
fn what_is_no_structure_is_refused_by_its_name() {
    for (name, wrong, why) in [
        (
            "mp",
            json!("0000000"),
            "kvm_mp_state has 7 hexadecimal digits instead of 8",
        ),
        ("mp", json!(""), "kvm_mp_state has 0 hexadecimal digits"),
        (
            "mp",
            json!("0000000000"),
            "kvm_mp_state has 10 hexadecimal digits",
        ),
        (
            "mp",
            json!("0000000g"),
            "kvm_mp_state has a character that is no",
        ),
        (
            "mp",
            json!("+0000000"),
            "kvm_mp_state has a character that is no",
        ),
        (
            "mp",
            json!("00é00é"),
            "kvm_mp_state has a character that is no",
        ),
        (
            "mp",
            json!(7),
            "expected the hexadecimal digits of kvm_mp_state",
        ),
        (
            "mp",
            json!(null),
            "expected the hexadecimal digits of kvm_mp_state",
        ),
        ("mp", json!([256]), "expected u8"),
        (
            "lapic",
            json!("00"),
            "kvm_lapic_state has 2 hexadecimal digits instead of 2048",
        ),
        (
            "msrs",
            json!("00"),
            "kvm_msr_entry has 2 hexadecimal digits instead of a multiple of 32",
        ),
        ("words", json!("000000xx"), "u32 has a character that is no"),
        (
            "nested",
            json!("0"),
            "KvmNestedStateBuffer has 1 hexadecimal digits instead of an even",
        ),
        ("nested", json!("0".repeat(16_642)), "up to 16640"),
        (
            "nested",
            json!("0z"),
            "KvmNestedStateBuffer has a character that is no",
        ),
    ] {
        let mut value = to_value(state(&[1], 1)).unwrap();
        value[name] = wrong;
        let error = from_value::<State>(value).err().expect(why).to_string();
        assert!(error.contains(why), "{error}");
    }
}

/// A deserializer of a format that is not for people: it has bytes.
struct Compact<'a>(&'a [u8]);

impl<'de> Deserializer<'de> for Compact<'de> {
    type Error = serde::de::value::Error;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_bytes(self.0)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

#[test]
fn formats_that_are_not_for_people_have_bytes() {
    let read: kvm_mp_state = deserialize(Compact(&[5, 1, 0, 0])).unwrap();
    assert_eq!(read.mp_state, 0x105);
}
