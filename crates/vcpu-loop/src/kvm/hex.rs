// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! KVM's structures as strings of hexadecimal digits, for serde's `with` attribute.
//!
//! kvm-bindings serializes a structure as a list of bytes. In JSON, these are numbers, one by one, which take long to
//! read. Here, a byte is two digits, in the order of memory. A string must have exactly the size of the structure. Lists
//! of bytes are still read, so states that were saved as such stay valid. Formats that are not for people (serde's
//! `is_human_readable`) get what kvm-bindings makes.
//!
//! [`serialize`] and [`deserialize`] are for one structure, [`option`] and [`list`] for an `Option` and a `Vec` of them:
//!
//! ```
//! use kvm_bindings::{kvm_pit_state2, kvm_regs};
//! use vcpu_loop::kvm::hex;
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct State {
//!     #[serde(with = "hex")]
//!     regs: kvm_regs,
//!     #[serde(with = "hex::option", default)]
//!     pit: Option<kvm_pit_state2>,
//! }
//! ```

use std::any::type_name;
use std::fmt::{self, Display, Formatter};
use std::marker::PhantomData;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const DIGITS: [u8; 16] = *b"0123456789abcdef";

/// No digit.
const NONE: u8 = 0xff;

/// The value of each character as a digit, or [`NONE`].
const VALUES: [u8; 256] = {
    let mut values = [NONE; 256];
    let mut value = 0;
    while value < DIGITS.len() {
        let digit = DIGITS[value];
        values[digit as usize] = value as u8;
        values[digit.to_ascii_uppercase() as usize] = value as u8;
        value += 1;
    }
    values
};

/// Writes a structure.
///
/// # Errors
/// The serializer's.
pub fn serialize<T, S>(value: &T, to: S) -> Result<S::Ok, S::Error>
where
    T: IntoBytes + Immutable + Serialize,
    S: Serializer,
{
    match to.is_human_readable() {
        true => to.serialize_str(&text(value.as_bytes())),
        false => value.serialize(to),
    }
}

/// Reads a structure.
///
/// # Errors
/// The string has another size, or other characters than digits; or the deserializer's error.
pub fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
where
    T: FromBytes + IntoBytes + Deserialize<'de>,
    D: Deserializer<'de>,
{
    either::<One<T>, D>(from)
}

/// An `Option` of a structure. `null` is none.
pub mod option {
    use super::{Deserialize, Deserializer, FromBytes, Immutable, IntoBytes, One};
    use super::{Serialize, Serializer};

    /// Writes it.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<T, S>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error>
    where
        T: IntoBytes + Immutable + Serialize,
        S: Serializer,
    {
        value.as_ref().map(One).serialize(to)
    }

    /// Reads it.
    ///
    /// # Errors
    /// As for one structure.
    pub fn deserialize<'de, T, D>(from: D) -> Result<Option<T>, D::Error>
    where
        T: FromBytes + IntoBytes + Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Option::deserialize(from)?.map(|One(value)| value))
    }
}

/// A `Vec` of structures, one after another in one string.
pub mod list {
    use super::{Deserialize, Deserializer, FromBytes, Immutable, IntoBytes, Many};
    use super::{Serialize, Serializer, either, text};

    /// Writes it.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<T, S>(values: &[T], to: S) -> Result<S::Ok, S::Error>
    where
        T: IntoBytes + Immutable + Serialize,
        S: Serializer,
    {
        match to.is_human_readable() {
            true => to.serialize_str(&text(values.as_bytes())),
            false => values.serialize(to),
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// The size of the string is no multiple of a structure's; otherwise as for one.
    pub fn deserialize<'de, T, D>(from: D) -> Result<Vec<T>, D::Error>
    where
        T: FromBytes + IntoBytes + Deserialize<'de>,
        D: Deserializer<'de>,
    {
        either::<Many<T>, D>(from)
    }
}

/// An `Option` of a large structure. Zeros at its end are left out.
pub(super) mod short {
    use super::{Deserialize, Deserializer, FromBytes, Immutable, IntoBytes, Short};
    use super::{Serialize, Serializer};

    pub fn serialize<T, S>(value: &Option<Box<T>>, to: S) -> Result<S::Ok, S::Error>
    where
        T: IntoBytes + Immutable + Serialize,
        S: Serializer,
    {
        value.as_deref().map(Short).serialize(to)
    }

    pub fn deserialize<'de, T, D>(from: D) -> Result<Option<Box<T>>, D::Error>
    where
        T: FromBytes + IntoBytes + Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Option::deserialize(from)?.map(|Short(value)| value))
    }
}

/// The digits of `bytes`.
fn text(bytes: &[u8]) -> String {
    let digits = |byte: &u8| [byte >> 4, byte & 0xf].map(|value| DIGITS[usize::from(value)]);
    bytes.iter().flat_map(digits).map(char::from).collect()
}

/// Reads the digits of the structure `T` into as many bytes, which are zeros.
fn read<T, E: Error>(text: &str, bytes: &mut [u8]) -> Result<(), E> {
    // Most of these structures are zeros, which take no time in pieces of eight.
    let (pieces, rest) = bytes.as_chunks_mut::<8>();
    let (texts, rest_text) = text.as_bytes().as_chunks::<16>();
    let mut seen = 0;
    for (piece, text) in pieces.iter_mut().zip(texts) {
        if text != b"0000000000000000" {
            seen |= read_piece(text, piece);
        }
    }
    seen |= read_piece(rest_text, rest);
    match seen {
        NONE => Err(E::custom(format_args!(
            "{} has a character that is no hexadecimal digit",
            name::<T>()
        ))),
        _ => Ok(()),
    }
}

/// Reads digits into as many bytes. Returns [`NONE`] if one is no digit, otherwise less.
fn read_piece(text: &[u8], bytes: &mut [u8]) -> u8 {
    let mut seen = 0;
    for (byte, digits) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let [high, low] = [digits[0], digits[1]].map(|digit| VALUES[usize::from(digit)]);
        seen |= high | low;
        *byte = high << 4 | low & 0xf;
    }
    seen
}

/// The error for a string of the structure `T` that has another number of digits.
fn misfit<T, E: Error>(text: &str, wanted: impl Display) -> E {
    E::custom(format_args!(
        "{} has {} hexadecimal digits instead of {wanted}",
        name::<T>(),
        text.len()
    ))
}

/// The name of a structure.
fn name<T>() -> &'static str {
    let path = type_name::<T>();
    path.rsplit("::").next().unwrap_or(path)
}

/// Reads digits or a list; in formats that are not for people, what these have.
fn either<'de, F: Digits<'de>, D: Deserializer<'de>>(from: D) -> Result<F::Value, D::Error> {
    match from.is_human_readable() {
        true => from.deserialize_any(Either::<F>(PhantomData)),
        false => F::Value::deserialize(from),
    }
}

struct Either<F>(PhantomData<F>);

impl<'de, F: Digits<'de>> Visitor<'de> for Either<F> {
    type Value = F::Value;

    fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "the hexadecimal digits of {}", name::<F::Structure>())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<F::Value, E> {
        F::from_digits(text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<F::Value, A::Error> {
        F::Value::deserialize(SeqAccessDeserializer::new(list))
    }
}

/// What has a form as digits.
trait Digits<'de> {
    /// Its structure.
    type Structure;
    /// What is read, also from other forms.
    type Value: Deserialize<'de>;

    fn from_digits<E: Error>(text: &str) -> Result<Self::Value, E>;
}

/// One structure.
struct One<T>(T);

impl<'de, T: FromBytes + IntoBytes + Deserialize<'de>> Digits<'de> for One<T> {
    type Structure = T;
    type Value = T;

    fn from_digits<E: Error>(text: &str) -> Result<T, E> {
        let wanted = 2 * size_of::<T>();
        if text.len() != wanted {
            return Err(misfit::<T, E>(text, wanted));
        }
        let mut value = T::new_zeroed();
        read::<T, E>(text, value.as_mut_bytes())?;
        Ok(value)
    }
}

impl<T: IntoBytes + Immutable + Serialize> Serialize for One<&T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        serialize(self.0, to)
    }
}

impl<'de, T: FromBytes + IntoBytes + Deserialize<'de>> Deserialize<'de> for One<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        deserialize(from).map(One)
    }
}

/// Several structures.
struct Many<T>(PhantomData<T>);

impl<'de, T: FromBytes + IntoBytes + Deserialize<'de>> Digits<'de> for Many<T> {
    type Structure = T;
    type Value = Vec<T>;

    fn from_digits<E: Error>(text: &str) -> Result<Vec<T>, E> {
        const { assert!(size_of::<T>() > 0) };
        let each = 2 * size_of::<T>();
        if !text.len().is_multiple_of(each) {
            let wanted = format_args!("a multiple of {each}");
            return Err(misfit::<T, E>(text, wanted));
        }
        let mut values = Vec::new();
        values.resize_with(text.len() / each, T::new_zeroed);
        read::<T, E>(text, values.as_mut_slice().as_mut_bytes())?;
        Ok(values)
    }
}

/// A structure whose zeros at the end are left out.
struct Short<T>(T);

impl<'de, T: FromBytes + IntoBytes + Deserialize<'de>> Digits<'de> for Short<Box<T>> {
    type Structure = T;
    type Value = Box<T>;

    fn from_digits<E: Error>(text: &str) -> Result<Box<T>, E> {
        let most = 2 * size_of::<T>();
        if text.len() > most || !text.len().is_multiple_of(2) {
            let wanted = format_args!("an even number up to {most}");
            return Err(misfit::<T, E>(text, wanted));
        }
        let mut value = Box::new(T::new_zeroed());
        read::<T, E>(text, &mut value.as_mut_bytes()[..text.len() / 2])?;
        Ok(value)
    }
}

impl<T: IntoBytes + Immutable + Serialize> Serialize for Short<&T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if !to.is_human_readable() {
            return self.0.serialize(to);
        }
        let bytes = self.0.as_bytes();
        let end = bytes.iter().rposition(|byte| *byte != 0);
        to.serialize_str(&text(&bytes[..end.map_or(0, |last| last + 1)]))
    }
}

impl<'de, T: FromBytes + IntoBytes + Deserialize<'de>> Deserialize<'de> for Short<Box<T>> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        either::<Short<Box<T>>, D>(from).map(Short)
    }
}

#[cfg(test)]
mod tests;
