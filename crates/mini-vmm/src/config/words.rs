// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The words for values, in flags and in JSON.

use std::ffi::OsStr;
use std::fmt::{self, Display, Formatter};
use std::marker::PhantomData;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hypercall_patch::PioPort;
use serde::de::{self, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::layout;
use crate::text::{one_line, shorten, shown};

/// The most characters of a reason that lists keys.
const MAX_REASON: usize = 300;

/// What a word is not. The messages continue the phrase "`word` is ".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    /// Not a number of vCPUs.
    #[error(
        "not a number of vCPUs; write a whole number from 1 to {}, such as 2",
        layout::MAX_CPUS
    )]
    Count,
    /// Not a switch's position.
    #[error("not a switch's position; write on or off")]
    Switch,
    /// Not a number of bytes.
    #[error("not a size; write a whole number and a unit (K, M, G or T), such as 512M")]
    Size,
    /// A number of bytes that 64 bits can't hold.
    #[error("more bytes than an address can reach; write a size such as 512M or 4G")]
    HugeSize,
    /// Not a length of time.
    #[error(
        "not a time; write a whole number of seconds or with a unit (ms, s, m, h), such as 90 or 5m, or off"
    )]
    Time,
    /// Not a port number.
    #[error("not an I/O port; write a number up to 0xffff, such as 0xf4, or on or off")]
    Port,
    /// Not a CPU feature with a sign.
    #[error("not a CPU feature; write + or - and a name as in /proc/cpuinfo, such as -avx2")]
    Feature,
    /// The name of a CPU feature without a sign.
    #[error("not a CPU feature with its sign; write + before the name to show it, - to hide it")]
    UnsignedFeature,
    /// Not a place for a console.
    #[error("not a place for a console; write off, stdio, pty, file=PATH or socket=PATH")]
    Serial,
    /// Not a route of hypercalls.
    #[error("not a route for hypercalls; write auto, vendor, forward, pio or pio=PORT")]
    Route,
    /// Not a port that fits a hypercall's instruction.
    #[error(
        "not a route for hypercalls; write pio=PORT with a port up to 0xff, such as pio={}, or pio",
        PioPort::DEFAULT
    )]
    RoutePort,
    /// A port with another meaning.
    #[error("no route for hypercalls: {0}")]
    ForbiddenPort(hypercall_patch::ForbiddenPort),
    /// Not a whole number.
    #[error("not a whole number; write digits only, such as 4")]
    Number,
    /// Not a change of an MSR.
    #[error(
        "not a change of an MSR; write INDEX=BITS with 0, 1, and x for what stays, such as 0x10a=0b1x0"
    )]
    Msr,
    /// Not numbers of capabilities.
    #[error("not a list of KVM's capabilities; write their numbers, such as 121,171")]
    Capabilities,
    /// Not a limit.
    #[error(
        "not a limit; write so much per second, such as 10M, or SIZE/MILLISECONDS+ONCE, such as 10M/1000+50M"
    )]
    Bucket,
    /// Not a disk.
    #[error("no disk: {}; write path=FILE and options, such as path=disk.img,readonly", shorten(&one_line(.0), MAX_REASON))]
    Disk(String),
    /// Not a device for random numbers.
    #[error("no device for random numbers: {}; write on, off or limits, such as bandwidth=1M,iops=100", shorten(&one_line(.0), MAX_REASON))]
    Rng(String),
    /// Not a name of an I/O thread.
    #[error("no name for an I/O thread; write 1 to 12 letters, digits, - or _, such as fast")]
    IoThread,
    /// Not a network.
    #[error("no network: {}; write tap=NAME, fd=N or user, and options, such as user,forward=8080:80", shorten(&one_line(.0), MAX_REASON))]
    Net(String),
    /// Not a socket device.
    #[error("no vsock: {}; write cid=N,socket=PATH, such as cid=3,socket=v.sock", shorten(&one_line(.0), MAX_REASON))]
    Vsock(String),
    /// Not a device of another process.
    #[error("no vhost-user device: {}; write socket=PATH,device=TYPE and options, such as socket=fs.sock,device=fs,tag=work", shorten(&one_line(.0), MAX_REASON))]
    VhostUser(String),
    /// Not a type of virtio device.
    #[error("no type of device; write fs, blk, net or a device ID of the virtio specification")]
    VirtioDevice,
    /// Not a shared directory.
    #[error("no shared directory: {}; write path=DIR and options, such as path=.,tag=work,readonly", shorten(&one_line(.0), MAX_REASON))]
    Share(String),
    /// Not shared memory.
    #[error("no shared memory: {}; write path=FILE, such as path=/dev/shm/f,size=1M", shorten(&one_line(.0), MAX_REASON))]
    SharedMemory(String),
    /// Not a console port.
    #[error("no console port: {}; write name=NAME,to=WHERE, such as name=org.example.log,to=file:log", shorten(&one_line(.0), MAX_REASON))]
    ConsolePort(String),
    /// Not the host's end of a console port.
    #[error("no end of a console port; write stdio, pty, file:PATH, unix:PATH or fd:N")]
    PortTarget,
    /// Not a balloon.
    #[error("no balloon: {}; write options, such as size=256M,deflate-on-oom,stats=5", shorten(&one_line(.0), MAX_REASON))]
    Balloon(String),
    /// Not a MAC address.
    #[error("not a MAC address; write six pairs of hexadecimal digits, such as 52:54:00:12:34:56")]
    Mac,
    /// Not a forwarded port.
    #[error("not a forwarded port; write HOST:GUEST, such as 8080:80 or 127.0.0.1/8080:80")]
    Forward,
    /// Not one of the few valid words.
    #[error("none of the words for it; --help shows them")]
    Choice,
    /// Not UTF-8.
    #[error("not text; write it in UTF-8")]
    Text,
}

/// A value that is written as a word, by a flag or in JSON.
pub(crate) trait Word: Sized {
    /// What JSON must have, for error messages.
    const EXPECTED: &'static str;

    /// Whether JSON may have a number, which is read as its digits.
    const NUMBERS: bool = false;

    /// Whether JSON may have a boolean, which is read as `on` or `off`.
    const BOOLS: bool = false;

    /// Parses its word.
    fn from_word(word: &str) -> Result<Self, WordError>;

    /// Parses its word, which may have any bytes.
    fn from_os_word(word: &OsStr) -> Result<Self, WordError> {
        // No valid word contains the replacement character.
        Self::from_word(&word.to_string_lossy())
    }

    /// Reads a JSON string.
    fn from_string<E: de::Error>(word: &str) -> Result<Self, E> {
        Self::from_word(word).map_err(|why| match why {
            WordError::Choice => {
                E::invalid_value(Unexpected::Str(word), &Expected::<Self>(PhantomData))
            }
            why => E::custom(format_args!("\"{}\" is {why}", shown(word))),
        })
    }

    /// Reads a JSON list.
    fn from_list<'de, A: SeqAccess<'de>>(_list: A) -> Result<Self, A::Error> {
        Err(de::Error::invalid_type(
            Unexpected::Seq,
            &Expected::<Self>(PhantomData),
        ))
    }

    /// Reads a JSON object.
    fn from_map<'de, A: MapAccess<'de>>(_map: A) -> Result<Self, A::Error> {
        Err(de::Error::invalid_type(
            Unexpected::Map,
            &Expected::<Self>(PhantomData),
        ))
    }

    /// Sets this to the value of a later flag. A list of devices grows instead.
    fn put(&mut self, later: Self) {
        *self = later;
    }

    /// Writes what JSON must have.
    fn expecting(f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(Self::EXPECTED)
    }
}

/// Deserializes a [`Word`].
pub(super) struct Worded<T>(pub(super) T);

impl<'de, T: Word> Deserialize<'de> for Worded<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        word(from).map(Worded)
    }
}

/// The visitor for a [`Word`].
struct Expected<T>(PhantomData<T>);

impl<T: Word> Expected<T> {
    /// Parses `word`, the form of the plain value `found`, if such values are `taken`.
    fn plain<E: de::Error>(self, taken: bool, word: &str, found: Unexpected<'_>) -> Result<T, E> {
        match taken {
            true => T::from_word(word).map_err(|_| E::invalid_value(found, &self)),
            false => Err(E::invalid_type(found, &self)),
        }
    }
}

impl<'de, T: Word> Visitor<'de> for Expected<T> {
    type Value = T;

    fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
        T::expecting(f)
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<T, E> {
        T::from_string(word)
    }

    fn visit_bytes<E: de::Error>(self, word: &[u8]) -> Result<T, E> {
        let word = OsStr::from_bytes(word);
        match word.to_str() {
            Some(word) => T::from_string(word),
            None => T::from_os_word(word)
                .map_err(|why| E::custom(format_args!("{:?} is {why}", word.display()))),
        }
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        let word = number.to_string();
        self.plain(T::NUMBERS, &word, Unexpected::Unsigned(number))
    }

    fn visit_bool<E: de::Error>(self, on: bool) -> Result<T, E> {
        let word = if on { "on" } else { "off" };
        self.plain(T::BOOLS, word, Unexpected::Bool(on))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<T, A::Error> {
        T::from_list(list)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::from_map(map)
    }
}

/// Deserializes a word in a device's field.
pub(super) fn word<'de, T: Word, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    from.deserialize_any(Expected(PhantomData))
}

/// Deserializes the path of a device.
pub(super) fn path<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    Ok(word::<Option<PathBuf>, D>(from)?.unwrap_or_default())
}

/// A number of vCPUs. Its range is checked later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count(pub(super) u64);

impl Word for Count {
    const EXPECTED: &'static str = "a whole number of vCPUs such as 2";
    const NUMBERS: bool = true;

    fn from_word(word: &str) -> Result<Self, WordError> {
        word.parse().map(Count).map_err(|_| WordError::Count)
    }
}

/// A whole number. Its range is checked later.
pub(super) struct Number(pub(super) u64);

impl Word for Number {
    const EXPECTED: &'static str = "a whole number such as 4";
    const NUMBERS: bool = true;

    fn from_word(word: &str) -> Result<Self, WordError> {
        word.parse().map(Number).map_err(|_| WordError::Number)
    }
}

impl Word for bool {
    const EXPECTED: &'static str = "\"on\" or \"off\", true or false";
    const BOOLS: bool = true;

    fn from_word(word: &str) -> Result<Self, WordError> {
        match word {
            "on" | "true" => Ok(true),
            "off" | "false" => Ok(false),
            _ => Err(WordError::Switch),
        }
    }
}

/// Serializes a switch.
pub(super) fn write_switch<S: Serializer>(on: &bool, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(if *on { "on" } else { "off" })
}

/// Binary units, each 1024 times the one before.
const SIZE_UNITS: [&str; 5] = ["", "K", "M", "G", "T"];

/// Bytes, such as `512M`.
impl Word for u64 {
    const EXPECTED: &'static str = "a size such as \"512M\", or a number of bytes";
    const NUMBERS: bool = true;

    fn from_word(word: &str) -> Result<Self, WordError> {
        let (number, unit) = split_number(word).ok_or(WordError::Size)?;
        let letter = match unit.get(1..) {
            Some(rest) if rest.eq_ignore_ascii_case("ib") => &unit[..1],
            _ => unit,
        };
        let mut units = SIZE_UNITS.iter();
        let power = units.position(|unit| unit.eq_ignore_ascii_case(letter));
        let power = power.ok_or(WordError::Size)?;
        let number: u64 = number.parse().map_err(|_| WordError::HugeSize)?;
        number
            .checked_mul(1 << (10 * power))
            .ok_or(WordError::HugeSize)
    }
}

/// The bytes of a size such as `512M`.
pub(crate) fn parse_size(word: &str) -> Option<u64> {
    u64::from_word(word).ok()
}

/// Serializes the path of a kernel. An empty one is none.
pub(super) fn write_kernel<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    Some(path)
        .filter(|path| !path.as_os_str().is_empty())
        .serialize(to)
}

/// Serializes bytes like [`ByteSize`].
pub(super) fn write_size<S: Serializer>(bytes: &u64, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&ByteSize(*bytes))
}

/// Prints bytes in the largest binary unit that is exact, such as `512M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) u64);

impl Display for ByteSize {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        // 0 is a multiple of every unit.
        let zeros = self.0.trailing_zeros() % u64::BITS;
        let power = (zeros as usize / 10).min(SIZE_UNITS.len() - 1);
        write!(f, "{}{}", self.0 >> (10 * power), SIZE_UNITS[power])
    }
}

/// Units of time and their nanoseconds, largest first.
const TIME_UNITS: [(&str, u128); 6] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// A time limit such as `90s` or `5m`. A plain number counts seconds; `off` is no limit.
impl Word for Option<Duration> {
    const EXPECTED: &'static str = "a time such as \"5m\", a whole number of seconds, or \"off\"";
    const NUMBERS: bool = true;
    const BOOLS: bool = true;

    fn from_word(word: &str) -> Result<Self, WordError> {
        if word == "off" {
            return Ok(None);
        }
        let (number, unit) = split_number(word).ok_or(WordError::Time)?;
        let unit = if unit.is_empty() { "s" } else { unit };
        let scale = TIME_UNITS.iter().find(|(name, _)| *name == unit);
        let (_, scale) = scale.ok_or(WordError::Time)?;
        let number: u64 = number.parse().map_err(|_| WordError::Time)?;
        let nanos = u128::from(number) * scale;
        let seconds = u64::try_from(nanos / 1_000_000_000).map_err(|_| WordError::Time)?;
        let rest = (nanos % 1_000_000_000) as u32;
        Ok(Some(Duration::new(seconds, rest)))
    }
}

/// Serializes a time limit in the largest unit that is exact.
pub(super) fn write_time<S: Serializer>(
    limit: &Option<Duration>,
    to: S,
) -> Result<S::Ok, S::Error> {
    let Some(limit) = limit else {
        return to.serialize_str("off");
    };
    let nanos = limit.as_nanos();
    let exact = TIME_UNITS.iter().find(|(_, scale)| nanos % scale == 0);
    // A zero divides by every unit; write it in seconds.
    let (name, scale) = exact.filter(|_| nanos != 0).unwrap_or(&TIME_UNITS[2]);
    to.collect_str(&format_args!("{}{name}", nanos / scale))
}

/// The debug-exit port: `0xf4`, `244`, `on` for the default, or `off`.
impl Word for Option<u16> {
    const EXPECTED: &'static str = "an I/O port such as \"0xf4\" or 244, true or false";
    const NUMBERS: bool = true;
    const BOOLS: bool = true;

    fn from_word(word: &str) -> Result<Self, WordError> {
        match bool::from_word(word) {
            Ok(on) => Ok(on.then_some(layout::DEBUG_EXIT)),
            Err(_) => parse_port(word).map(Some).ok_or(WordError::Port),
        }
    }
}

/// Serializes a port in hexadecimal.
pub(super) fn write_port<S: Serializer>(port: &Option<u16>, to: S) -> Result<S::Ok, S::Error> {
    match port {
        Some(port) => to.collect_str(&format_args!("{port:#x}")),
        None => to.serialize_str("off"),
    }
}

/// Parses a port number such as `0xf4` or `244`.
pub(super) fn parse_port(word: &str) -> Option<u16> {
    let lower = word.to_ascii_lowercase();
    let (digits, radix) = match lower.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (lower.as_str(), 10),
    };
    // `from_str_radix` accepts a sign, but a port has none.
    if !digits.starts_with(|c: char| c.is_digit(radix)) {
        return None;
    }
    u16::from_str_radix(digits, radix).ok()
}

impl Word for Option<PathBuf> {
    const EXPECTED: &'static str = "path string";

    fn from_word(word: &str) -> Result<Self, WordError> {
        Ok(Some(word.into()))
    }

    fn from_os_word(word: &OsStr) -> Result<Self, WordError> {
        Ok(Some(word.into()))
    }
}

impl Word for Option<String> {
    const EXPECTED: &'static str = "a string";

    fn from_word(word: &str) -> Result<Self, WordError> {
        Ok(Some(word.into()))
    }

    fn from_os_word(word: &OsStr) -> Result<Self, WordError> {
        word.to_str()
            .ok_or(WordError::Text)
            .and_then(Self::from_word)
    }
}

/// Splits `word` after its leading digits. There must be at least one.
fn split_number(word: &str) -> Option<(&str, &str)> {
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    (digits > 0).then(|| word.split_at(digits))
}

#[cfg(test)]
mod tests;
