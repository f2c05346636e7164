// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The serial port's settings.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use serde::{Deserialize, Serialize, Serializer, ser};

use super::device;
use super::words::{self, Word, WordError};

/// The destination of COM1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SerialSpec {
    /// None: the machine has no COM1.
    Off,
    /// The VMM's standard input and output.
    #[default]
    Stdio,
    /// Output to this file. No input.
    File(#[serde(deserialize_with = "words::path")] PathBuf),
    /// A new pseudo-terminal, whose name is printed.
    Pty,
    /// A listening Unix socket at this path; one client at a time.
    Socket(#[serde(deserialize_with = "words::path")] PathBuf),
}

impl SerialSpec {
    /// Reads `off`, `stdio`, `pty`, `file=PATH` or `socket=PATH`. A path may hold any bytes.
    ///
    /// # Errors
    /// [`WordError::Serial`] for any other word, and for an empty path.
    pub fn from_word(word: &OsStr) -> Result<Self, WordError> {
        device::from_word(word).map_err(|_| WordError::Serial)
    }

    /// The word that [`SerialSpec::from_word`] reads back as this value.
    pub fn to_word(&self) -> OsString {
        let (word, path) = match self {
            SerialSpec::Off => ("off", None),
            SerialSpec::Stdio => ("stdio", None),
            SerialSpec::Pty => ("pty", None),
            SerialSpec::File(path) => ("file=", Some(path)),
            SerialSpec::Socket(path) => ("socket=", Some(path)),
        };
        let path = path.map_or(OsStr::new(""), |path| path.as_os_str());
        [OsStr::new(word), path].join(OsStr::new(""))
    }
}

impl Word for SerialSpec {
    const EXPECTED: &'static str = "\"off\", \"stdio\", \"pty\", \"file=PATH\" or \"socket=PATH\"";
    const BOOLS: bool = true;

    fn from_word(word: &str) -> Result<Self, WordError> {
        SerialSpec::from_word(OsStr::new(word))
    }

    fn from_os_word(word: &OsStr) -> Result<Self, WordError> {
        SerialSpec::from_word(word)
    }
}

/// Serializes `serial` as its word.
pub(super) fn write_serial<S: Serializer>(serial: &SerialSpec, to: S) -> Result<S::Ok, S::Error> {
    let word = serial.to_word().into_string().map_err(|word| {
        ser::Error::custom(format_args!("{word:?} is not UTF-8, which JSON needs"))
    })?;
    to.serialize_str(&word)
}
