// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a machine asks of KVM: MSRs to change, and capabilities to have.

use std::fmt::{self, Display, Formatter};

use para_abi::MSR_KVM_API_MAGIC;
use serde::de::SeqAccess;
use serde::de::value::SeqAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Error;
use super::words::{self, Word, WordError};
use crate::layout::FORWARD_MSR;

/// The most MSRs that a machine may change: those of one `KVM_SET_MSRS` (KVM API 4.18).
pub const MAX_MSRS: usize = 256;

/// MSRs that can't be changed, as first and last index, and why not (Intel SDM volume 4, table 2-2).
const FIXED: [(u32, u32, &str); 8] = [
    (0x10, 0x10, "KVM starts the TSCs of all vCPUs in sync"),
    (0x1b, 0x1b, "the machine's local APICs are where they are"),
    (0x6e0, 0x6e0, "the guest sets its timer itself"),
    (0x800, 0x8ff, "the guest sets its local APIC itself"),
    (
        0xc000_0080,
        0xc000_0080,
        "the way a kernel is entered decides about it",
    ),
    (
        0xc000_0100,
        0xc000_0101,
        "the way a kernel is entered decides about it",
    ),
    (
        MSR_KVM_API_MAGIC,
        MSR_KVM_API_MAGIC,
        "guests register for hypercalls by it",
    ),
    (FORWARD_MSR, FORWARD_MSR, "hypercalls are forwarded by it"),
];

/// A change of an MSR that each vCPU starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrChange {
    /// The MSR's index.
    pub index: u32,
    /// The bits that change.
    pub mask: u64,
    /// What they become.
    pub value: u64,
}

impl MsrChange {
    /// What `before` becomes.
    pub const fn apply(self, before: u64) -> u64 {
        before & !self.mask | self.value & self.mask
    }
}

/// Reads `0b` and up to `most` of `0`, `1` and `x`, the last of them for bit 0, with any `_` in between: a mask of the
/// bits that are not `x`, and their values. Digits on the left may be missing: they are `x`.
pub(crate) fn read_bitmap(bitmap: &str, most: usize) -> Option<(u64, u64)> {
    let digits = || {
        bitmap
            .strip_prefix("0b")
            .into_iter()
            .flat_map(str::chars)
            .filter(|c| *c != '_')
    };
    if !(1..=most).contains(&digits().count()) {
        return None;
    }
    digits().try_fold((0, 0), |(mask, value), digit| match digit {
        '0' => Some((mask << 1 | 1, value << 1)),
        '1' => Some((mask << 1 | 1, value << 1 | 1)),
        'x' => Some((mask << 1, value << 1)),
        _ => None,
    })
}

/// Checks changes of MSRs.
///
/// # Errors
/// One of them can't be changed, or is changed twice, or they are too many.
pub fn check_msrs(changes: &[MsrChange]) -> Result<(), Error> {
    if changes.len() > MAX_MSRS {
        let count = changes.len();
        return Err(Error::TooManyMsrs { count });
    }
    for (at, MsrChange { index, .. }) in changes.iter().enumerate() {
        let fixed = FIXED
            .iter()
            .find(|(first, last, _)| (first..=last).contains(&index));
        if let Some((.., why)) = fixed {
            return Err(Error::FixedMsr { index: *index, why });
        }
        if changes[..at].iter().any(|other| other.index == *index) {
            return Err(Error::SameMsr { index: *index });
        }
    }
    Ok(())
}

/// As it is read.
impl Display for MsrChange {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}=0b", self.index)?;
        let bits = (u64::BITS - self.mask.leading_zeros()).max(1);
        for bit in (0..bits).rev() {
            let is_set = |bits: u64| bits >> bit & 1 != 0;
            f.write_str(match (is_set(self.mask), is_set(self.value)) {
                (false, _) => "x",
                (true, false) => "0",
                (true, true) => "1",
            })?;
        }
        Ok(())
    }
}

impl Word for MsrChange {
    const EXPECTED: &'static str = "a change of an MSR such as \"0x10a=0b1x0\"";

    fn from_word(word: &str) -> Result<Self, WordError> {
        let (index, bitmap) = word.split_once('=').ok_or(WordError::Msr)?;
        let digits = index.strip_prefix("0x").ok_or(WordError::Msr)?;
        // `from_str_radix` accepts a sign.
        let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let index = is_hex.then(|| u32::from_str_radix(digits, 16).ok());
        let (mask, value) = read_bitmap(bitmap, 64).ok_or(WordError::Msr)?;
        Ok(MsrChange {
            index: index.flatten().ok_or(WordError::Msr)?,
            mask,
            value,
        })
    }
}

impl Serialize for MsrChange {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MsrChange {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        words::word(from)
    }
}

/// A list in JSON, or the single word of a flag.
impl Word for Vec<MsrChange> {
    const EXPECTED: &'static str = "a list of changes of MSRs such as [\"0x10a=0b1x0\"]";

    fn from_word(words: &str) -> Result<Self, WordError> {
        words.split(',').map(MsrChange::from_word).collect()
    }

    fn from_list<'de, A: SeqAccess<'de>>(list: A) -> Result<Self, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list))
    }
}

/// Capabilities by their numbers: a list in JSON, or the single word of a flag.
impl Word for Vec<u32> {
    const EXPECTED: &'static str = "a list of the numbers of KVM's capabilities such as [121]";

    fn from_word(words: &str) -> Result<Self, WordError> {
        let number = |word: &str| word.parse().map_err(|_| WordError::Capabilities);
        words.split(',').map(number).collect()
    }

    fn from_list<'de, A: SeqAccess<'de>>(list: A) -> Result<Self, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn change(word: &str) -> MsrChange {
        MsrChange::from_word(word).expect(word)
    }

    #[test]
    fn bits_change_or_stay() {
        let some = change("0x10a=0b1x_0");
        assert_eq!((some.index, some.mask, some.value), (0x10a, 0b101, 0b100));
        assert_eq!(some.apply(0b11), 0b110);
        assert_eq!(change("0x1=0bx").apply(7), 7);
        let all = change(&format!("0xffffffff=0b{}", "1".repeat(64)));
        assert_eq!(all.apply(0), u64::MAX);
        for word in [
            "",
            "0x1",
            "1=0b1",
            "0x=0b1",
            "0x+1=0b1",
            "0x100000000=0b1",
            "0x1=1",
            "0x1=0b",
            "0x1=0b2",
            "0x1=0b_",
        ] {
            assert_eq!(MsrChange::from_word(word), Err(WordError::Msr), "{word}");
        }
        let long = format!("0x1=0b{}", "x".repeat(65));
        assert_eq!(MsrChange::from_word(&long), Err(WordError::Msr));
    }

    #[test]
    fn what_is_ours_or_there_twice_is_refused() {
        let check = |words: &str| {
            let changes = Vec::<MsrChange>::from_word(words).expect(words);
            check_msrs(&changes).map_err(|error| error.to_string())
        };
        check("0x277=0b1,0x1a0=0b1").unwrap();
        for (word, why) in [
            ("0x10=0b1", "MSR 0x10 can't be changed, because KVM starts"),
            ("0x80f=0b1", "its local APIC"),
            ("0xc0000080=0b1", "the way a kernel is entered"),
            ("0x87655678=0b1", "guests register"),
            ("0x277=0b1,0x277=0b0", "MSR 0x277 is changed twice"),
        ] {
            let error = check(word).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let many: Vec<_> = (0..=MAX_MSRS)
            .map(|n| format!("{:#x}=0b1", 0x2000 + n))
            .collect();
        assert!(check(&many.join(",")).unwrap_err().contains("257 changes"));
        check(&many[1..].join(",")).unwrap();
    }

    proptest! {
        #[test]
        fn a_change_is_read_as_it_was_written(index: u32, mask: u64, value: u64) {
            let value = value & mask;
            let change = MsrChange { index, mask, value };
            prop_assert_eq!(MsrChange::from_word(&change.to_string()), Ok(change));
        }
    }
}
