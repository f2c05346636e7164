// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The words that stand for values on the command line and in a config file.
//!
//! Each type here is read by [`FromStr`] and written by [`Display`]; what is written reads back as
//! the same value. In JSON the same words are strings; plain counts may be numbers and switches may be booleans.

pub(super) mod json;

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Display, Formatter};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use hypercall_patch::PioPort;

use super::{CpuFeature, HypercallRoute, SerialSpec};
use crate::layout;

/// What a word is not. Reads after "`word` is ".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
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
    /// Not a place for COM1.
    #[error("not a place for COM1; write off, stdio, pty, file=PATH or socket=PATH")]
    Serial,
    /// Not a route of hypercalls.
    #[error("not a route for hypercalls; write auto, vendor, forward, pio or pio=PORT")]
    Route,
    /// Not a port that fits the instruction of a hypercall.
    #[error(
        "not a route for hypercalls; write pio=PORT with a port up to 0xff, such as pio={}, or pio",
        PioPort::DEFAULT
    )]
    RoutePort,
    /// A port that means something else.
    #[error("no route for hypercalls: {0}")]
    ForbiddenPort(hypercall_patch::ForbiddenPort),
}

/// A number of bytes, such as `512M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

/// Letters of binary units, each 1024 times the one before.
const SIZE_UNITS: [char; 4] = ['k', 'm', 'g', 't'];

impl FromStr for ByteSize {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        let (number, unit) = split_number(word).ok_or(WordError::Size)?;
        let unit = unit.to_ascii_lowercase();
        let shift = match unit.strip_suffix("ib").unwrap_or(&unit) {
            "" if unit.is_empty() => 0,
            letter => {
                let at = SIZE_UNITS.iter().position(|u| letter == u.to_string());
                10 * (at.ok_or(WordError::Size)? as u32 + 1)
            }
        };
        let number: u64 = number.parse().map_err(|_| WordError::HugeSize)?;
        number
            .checked_mul(1 << shift)
            .map(ByteSize)
            .ok_or(WordError::HugeSize)
    }
}

impl Display for ByteSize {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let ByteSize(mut number) = *self;
        let mut unit = None;
        for letter in SIZE_UNITS {
            if number == 0 || number % 1024 != 0 {
                break;
            }
            number /= 1024;
            unit = Some(letter.to_ascii_uppercase());
        }
        write!(f, "{number}")?;
        unit.map_or(Ok(()), |letter| write!(f, "{letter}"))
    }
}

/// A limit on time, such as `90s` or `5m`; a plain number counts seconds; `off` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLimit(pub Option<Duration>);

/// Units of time and their nanoseconds, largest first.
const TIME_UNITS: [(&str, u128); 6] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

impl FromStr for TimeLimit {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        if word == "off" {
            return Ok(TimeLimit(None));
        }
        let (number, unit) = split_number(word).ok_or(WordError::Time)?;
        let unit = if unit.is_empty() { "s" } else { unit };
        let scale = TIME_UNITS.iter().find(|(name, _)| *name == unit);
        let (_, scale) = scale.ok_or(WordError::Time)?;
        let number: u64 = number.parse().map_err(|_| WordError::Time)?;
        let nanos = u128::from(number) * scale;
        let seconds = u64::try_from(nanos / 1_000_000_000).map_err(|_| WordError::Time)?;
        let rest = (nanos % 1_000_000_000) as u32;
        Ok(TimeLimit(Some(Duration::new(seconds, rest))))
    }
}

impl Display for TimeLimit {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some(limit) = self.0 else {
            return f.write_str("off");
        };
        let nanos = limit.as_nanos();
        let exact = TIME_UNITS.iter().find(|(_, scale)| nanos % scale == 0);
        // A zero divides by every unit; write it in seconds.
        let (name, scale) = exact.filter(|_| nanos != 0).unwrap_or(&TIME_UNITS[2]);
        write!(f, "{}{name}", nanos / scale)
    }
}

/// A number of vCPUs; whether a machine may have that many is checked later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub u64);

impl FromStr for Count {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        word.parse().map(Count).map_err(|_| WordError::Count)
    }
}

impl Display for Count {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The position of a switch: `on` or `off`, also `true` or `false`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch(pub bool);

impl FromStr for Switch {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        match word {
            "on" | "true" => Ok(Switch(true)),
            "off" | "false" => Ok(Switch(false)),
            _ => Err(WordError::Switch),
        }
    }
}

impl Display for Switch {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "on" } else { "off" })
    }
}

/// The debug-exit device's port, which may be absent: `0xf4`, `244`, `on` for the usual one, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionalPort(pub Option<u16>);

impl OptionalPort {
    /// The usual port, or none.
    fn debug_exit(on: bool) -> Self {
        OptionalPort(on.then_some(layout::DEBUG_EXIT))
    }
}

impl FromStr for OptionalPort {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        if let Ok(Switch(on)) = word.parse() {
            return Ok(OptionalPort::debug_exit(on));
        }
        let port = parse_port(word).ok_or(WordError::Port)?;
        Ok(OptionalPort(Some(port)))
    }
}

/// Reads a port's number, such as `0xf4` or `244`.
fn parse_port(word: &str) -> Option<u16> {
    let lower = word.to_ascii_lowercase();
    let (digits, radix) = match lower.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (lower.as_str(), 10),
    };
    // `from_str_radix` takes a sign, a port has none.
    if !digits.starts_with(|c: char| c.is_digit(radix)) {
        return None;
    }
    u16::from_str_radix(digits, radix).ok()
}

impl Display for OptionalPort {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(port) => write!(f, "{port:#x}"),
            None => f.write_str("off"),
        }
    }
}

impl CpuFeature {
    /// Whether `name` can be meant for the name of a feature: letters, digits, `_`, and behind the first of these also
    /// `-` and `.`, at most 32. What names there are shows when the machine is built.
    pub fn is_name(name: &str) -> bool {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        (1..=32).contains(&name.len()) && !name.starts_with(['-', '.']) && name.chars().all(is_part)
    }
}

impl FromStr for CpuFeature {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
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

impl SerialSpec {
    /// Reads `off`, `stdio`, `pty`, `file=PATH` or `socket=PATH`. A path may hold any bytes.
    ///
    /// # Errors
    /// [`WordError::Serial`] for any other word, and for an empty path.
    pub fn from_word(word: &OsStr) -> Result<Self, WordError> {
        let path = |prefix: &str| {
            let path = word.as_bytes().strip_prefix(prefix.as_bytes())?;
            (!path.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(path)))
        };
        match word.as_bytes() {
            b"off" => Ok(SerialSpec::Off),
            b"stdio" => Ok(SerialSpec::Stdio),
            b"pty" => Ok(SerialSpec::Pty),
            _ => path("file=")
                .map(SerialSpec::File)
                .or_else(|| path("socket=").map(SerialSpec::Socket))
                .ok_or(WordError::Serial),
        }
    }

    /// The word that [`SerialSpec::from_word`] reads back as this value.
    pub fn to_word(&self) -> OsString {
        let (mut word, path) = match self {
            SerialSpec::Off => (OsString::from("off"), None),
            SerialSpec::Stdio => (OsString::from("stdio"), None),
            SerialSpec::Pty => (OsString::from("pty"), None),
            SerialSpec::File(path) => (OsString::from("file="), Some(path)),
            SerialSpec::Socket(path) => (OsString::from("socket="), Some(path)),
        };
        if let Some(path) = path {
            word.push(path);
        }
        word
    }
}

impl FromStr for SerialSpec {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        SerialSpec::from_word(OsStr::new(word))
    }
}

impl FromStr for HypercallRoute {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        match word {
            "auto" => Ok(HypercallRoute::Auto),
            "vendor" => Ok(HypercallRoute::Vendor),
            "forward" => Ok(HypercallRoute::Forward),
            "pio" => Ok(HypercallRoute::Pio(None)),
            _ => {
                let port = word.strip_prefix("pio=").ok_or(WordError::Route)?;
                let port = parse_port(port).and_then(|port| u8::try_from(port).ok());
                let port = PioPort::new(port.ok_or(WordError::RoutePort)?);
                Ok(HypercallRoute::Pio(Some(
                    port.map_err(WordError::ForbiddenPort)?,
                )))
            }
        }
    }
}

impl Display for HypercallRoute {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            HypercallRoute::Auto => f.write_str("auto"),
            HypercallRoute::Vendor => f.write_str("vendor"),
            HypercallRoute::Forward => f.write_str("forward"),
            HypercallRoute::Pio(None) => f.write_str("pio"),
            HypercallRoute::Pio(Some(port)) => write!(f, "pio={port}"),
        }
    }
}

/// Reads a [`HypercallRoute`] on the command line, and tells help and shells its words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RouteParser;

impl TypedValueParser for RouteParser {
    type Value = HypercallRoute;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        word: &OsStr,
    ) -> Result<HypercallRoute, clap::Error> {
        let parser = StringValueParser::new().try_map(|word| word.parse::<HypercallRoute>());
        parser.parse_ref(command, arg, word)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let words = [
            (
                "auto",
                "vendor where this KVM completes it and the ABI is kvm, else pio",
            ),
            ("vendor", "VMCALL or VMMCALL, which KVM itself answers"),
            (
                "forward",
                "VMCALL or VMMCALL, every one of which KVM forwards to the VMM",
            ),
            ("pio", "a port, pio=PORT to choose it; the VMM answers"),
        ];
        let values = words.map(|(word, help)| PossibleValue::new(word).help(help));
        Some(Box::new(values.into_iter()))
    }
}

/// Splits `word` after its leading digits, of which there must be some.
fn split_number(word: &str) -> Option<(&str, &str)> {
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    (digits > 0).then(|| word.split_at(digits))
}

#[cfg(test)]
mod tests;
