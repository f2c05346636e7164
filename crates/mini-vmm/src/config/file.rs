// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Machines described in JSON files.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::config::{self, Draft, VmSpec};
use crate::text::shorten;

/// The largest config file in bytes. The longest command line fits many times.
pub const MAX_SIZE: u64 = 1 << 20;

/// The most characters of a reason. It may contain words of the file, which have any length.
const MAX_REASON: usize = 500;

/// Why a config file is not valid.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be opened or read.
    #[error("can't read the config file {path:?}: {source}; name a file with the machine's JSON")]
    Read {
        /// The file.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// The path is a directory.
    #[error("the config file {path:?} is a directory; name a file with the machine's JSON")]
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// The file is too large.
    #[error(
        "the config file {path:?} has more than {MAX_SIZE} bytes; name a file with the machine's JSON"
    )]
    Huge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not text.
    #[error(
        "the config file {path:?} is not UTF-8 at line {line}, column {column}; save it as UTF-8"
    )]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The column in bytes, counted from 1.
        column: usize,
    },
    /// The file is not JSON, or doesn't describe a machine.
    #[error(
        "config file {path:?}, line {}, column {}: {} (--print-config shows how a file looks)",
        json.line(), json.column().max(1), shorten(&without_place(json), MAX_REASON)
    )]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where. Its own message would repeat the position.
        json: serde_json::Error,
    },
    /// The described machine is not valid.
    #[error(transparent)]
    Spec(#[from] config::Error),
    /// The description can't be written as JSON.
    #[error("JSON can't hold this machine: {0}; rename the file")]
    Print(#[source] serde_json::Error),
}

/// The message of `error` without the position at its end.
fn without_place(error: &serde_json::Error) -> String {
    let what = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let what = what.strip_suffix(&place).unwrap_or(&what);
    match what.strip_prefix("EOF while parsing") {
        Some(part) => format!("the file ends within{part}"),
        None => what.to_owned(),
    }
}

/// The machine that `flags` describe, with missing values from the file `config`. Each flag is a name and a word.
///
/// # Errors
/// When the file can't be read, or the file, a flag or the machine is not valid.
pub fn resolve(flags: &[(&str, OsString)], config: Option<&Path>) -> Result<VmSpec, Error> {
    Ok(draft(flags, config)?.finish()?)
}

/// Like [`resolve`], but the kernel may be missing: its path is then empty.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_partly(flags: &[(&str, OsString)], config: Option<&Path>) -> Result<VmSpec, Error> {
    Ok(draft(flags, config)?.finish_partly()?)
}

fn draft(flags: &[(&str, OsString)], config: Option<&Path>) -> Result<Draft, Error> {
    let mut draft = config.map(load).transpose()?.unwrap_or_default();
    for (key, word) in flags {
        draft.say(key, word)?;
    }
    Ok(draft)
}

/// Reads the machine description in the file at `path`.
///
/// # Errors
/// When it can't be read, is larger than [`MAX_SIZE`], or is not JSON of a machine.
pub fn load(path: &Path) -> Result<Draft, Error> {
    let read_error = |source: io::Error| match source.kind() {
        io::ErrorKind::IsADirectory => Error::Directory { path: path.into() },
        _ => Error::Read {
            path: path.into(),
            source,
        },
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(read_error)?;
    file.take(MAX_SIZE + 1)
        .read_to_end(&mut bytes)
        .map_err(read_error)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(Error::Huge { path: path.into() });
    }
    parse(&bytes, path)
}

/// Parses `bytes` from the file at `path`. A pure function.
///
/// # Errors
/// When they are not JSON of a machine.
pub fn parse(bytes: &[u8], path: &Path) -> Result<Draft, Error> {
    let text = str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line_start = before.iter().rposition(|byte| *byte == b'\n');
        Error::NotUtf8 {
            path: path.into(),
            line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
            column: before.len() - line_start.map_or(0, |at| at + 1) + 1,
        }
    })?;
    // Some editors mark UTF-8 files with a BOM.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    serde_json::from_str(text).map_err(|json| Error::Json {
        path: path.into(),
        json,
    })
}

/// The JSON that describes `spec`, with a newline at its end. [`load`] reads it back.
///
/// # Errors
/// When a path is not UTF-8.
pub fn to_json(spec: &VmSpec) -> Result<String, Error> {
    let mut json = serde_json::to_string_pretty(spec).map_err(Error::Print)?;
    json.push('\n');
    Ok(json)
}

#[cfg(test)]
mod tests;
