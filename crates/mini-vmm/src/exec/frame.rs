// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Frames: a header of eight bytes, and a payload whose length is limited by its kind. Numbers are little-endian.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::VERSION;

/// The bytes of a header: the kind, three zeros, and the payload's length.
pub const HEADER: usize = 8;
/// The most bytes of data in a frame.
pub const MAX_DATA: usize = 64 << 10;
/// The most bytes of a command with its environment and directory.
pub const MAX_START: usize = 128 << 10;
/// The most bytes of an agent's reason.
pub const MAX_REASON: usize = 1024;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To the agent: the command. The first frame, and only that.
    Start = 1,
    /// To the agent: input of the command. An empty one is its end.
    Input = 2,
    /// To the agent: a signal for the command.
    Signal = 3,
    /// From the agent: the command runs.
    Started = 16,
    /// From the agent: data of its standard output.
    Output = 17,
    /// From the agent: data of its standard error.
    Errors = 18,
    /// From the agent: how many more bytes of input it has taken.
    Taken = 19,
    /// From the agent: how it ended. The last frame.
    End = 20,
    /// From the agent: why there is no command. The last frame.
    Refused = 21,
}

impl Kind {
    const ALL: [Kind; 9] = [
        Kind::Start,
        Kind::Input,
        Kind::Signal,
        Kind::Started,
        Kind::Output,
        Kind::Errors,
        Kind::Taken,
        Kind::End,
        Kind::Refused,
    ];

    /// The least and the most bytes of its payload.
    const fn limits(self) -> (usize, usize) {
        match self {
            Kind::Start => (4, MAX_START),
            Kind::Input => (0, MAX_DATA),
            Kind::Output | Kind::Errors => (1, MAX_DATA),
            Kind::Signal | Kind::Started | Kind::Taken => (4, 4),
            Kind::End => (8, 8),
            Kind::Refused => (4, 4 + MAX_REASON),
        }
    }
}

/// A frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: Kind,
    /// Its data.
    pub payload: &'a [u8],
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Bad {
    /// Its header begins with something else.
    #[error("{0:?} is no header of a frame")]
    Header([u8; 4]),
    /// Its payload can't have this length.
    #[error("a frame {0:?} has a payload of {1} bytes")]
    Length(Kind, u32),
    /// Its payload means nothing.
    #[error("a frame {0:?} has a payload without a meaning")]
    Payload(Kind),
    /// It does not belong here.
    #[error("a frame {0:?} came at the wrong time")]
    Order(Kind),
}

/// The header of a frame with `length` bytes of payload.
///
/// # Panics
/// If such a frame can't be that long.
pub fn header(kind: Kind, length: usize) -> [u8; HEADER] {
    let (least, most) = kind.limits();
    assert!((least..=most).contains(&length), "{kind:?}: {length}");
    let [a, b, c, d] = (length as u32).to_le_bytes();
    [kind as u8, 0, 0, 0, a, b, c, d]
}

/// The frame at the start of `bytes`. `None` if not all of it is there.
///
/// # Errors
/// [`Bad`] says why it is no frame. That is known once its header is there.
pub fn parse(bytes: &[u8]) -> Result<Option<Frame<'_>>, Bad> {
    let Some((&[byte, a, b, c, length @ ..], rest)) = bytes.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let kind = Kind::ALL.into_iter().find(|kind| *kind as u8 == byte);
    let kind = kind.filter(|_| [a, b, c] == [0; 3]);
    let kind = kind.ok_or(Bad::Header([byte, a, b, c]))?;
    let length = u32::from_le_bytes(length);
    let (least, most) = kind.limits();
    if !(least..=most).contains(&(length as usize)) {
        return Err(Bad::Length(kind, length));
    }
    let payload = rest.get(..length as usize);
    Ok(payload.map(|payload| Frame { kind, payload }))
}

impl Frame<'_> {
    /// The bytes of the whole frame.
    pub fn size(&self) -> usize {
        HEADER + self.payload.len()
    }

    /// The number that is its payload.
    ///
    /// # Errors
    /// It has another payload.
    pub fn number(&self) -> Result<u32, Bad> {
        let bytes = self.payload.try_into();
        bytes
            .map(u32::from_le_bytes)
            .map_err(|_| Bad::Payload(self.kind))
    }
}

/// A command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// The program and its arguments. There is a program.
    pub words: Vec<OsString>,
    /// Additions to the agent's environment: names and values.
    pub env: Vec<(OsString, OsString)>,
    /// Where it runs. Empty: where the agent does.
    pub directory: PathBuf,
}

impl Start {
    /// The payload of [`Kind::Start`]. `None` if it would be too long, or no agent would take it.
    pub fn payload(&self) -> Option<Vec<u8>> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for count in [self.words.len(), self.env.len()] {
            out.extend(u32::try_from(count).ok()?.to_le_bytes());
        }
        let mut put = |text: &[u8]| {
            out.extend((text.len() as u32).to_le_bytes());
            out.extend(text);
        };
        for word in &self.words {
            put(word.as_bytes());
        }
        for (name, value) in &self.env {
            put(&[name.as_bytes(), b"=", value.as_bytes()].concat());
        }
        put(self.directory.as_os_str().as_bytes());
        let fits = out.len() <= MAX_START && Start::parse(&out).as_ref() == Ok(self);
        fits.then_some(out)
    }

    /// Reads the payload of [`Kind::Start`].
    ///
    /// # Errors
    /// [`Unread`] says why it is no command for this version.
    pub fn parse(payload: &[u8]) -> Result<Start, Unread> {
        let mut rest = payload;
        match number(&mut rest) {
            Some(VERSION) => {}
            Some(version) => return Err(Unread::Version(version)),
            None => return Err(Unread::Payload),
        }
        Start::read(rest).ok_or(Unread::Payload)
    }

    /// What follows the version.
    fn read(mut rest: &[u8]) -> Option<Start> {
        let rest = &mut rest;
        let (words, env) = (number(rest)?, number(rest)?);
        // No vector is reserved by a number of the other side's.
        let words = (0..words).map(|_| text(rest));
        let words = words.collect::<Option<Vec<OsString>>>()?;
        let env = (0..env).map(|_| variable(&text(rest)?));
        let env = env.collect::<Option<Vec<_>>>()?;
        let directory = text(rest)?.into();
        let program = words.first()?;
        (rest.is_empty() && !program.is_empty()).then_some(Start {
            words,
            env,
            directory,
        })
    }
}

/// Why a command can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// It is one of another version.
    Version(u32),
    /// It is none.
    Payload,
}

/// Splits `NAME=VALUE`. `None` if that is no variable.
pub fn variable(text: &OsStr) -> Option<(OsString, OsString)> {
    let bytes = text.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=')?;
    let part = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
    (at > 0 && !bytes.contains(&0)).then(|| (part(&bytes[..at]), part(&bytes[at + 1..])))
}

/// Takes a number from the front.
fn number(rest: &mut &[u8]) -> Option<u32> {
    let (number, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u32::from_le_bytes(*number))
}

/// Takes a text from the front. No text has a NUL.
fn text(rest: &mut &[u8]) -> Option<OsString> {
    let length = number(rest)? as usize;
    let (text, after) = rest.split_at_checked(length)?;
    *rest = after;
    (!text.contains(&0)).then(|| OsString::from_vec(text.to_vec()))
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With this exit code.
    Code(u8),
    /// By this signal, 1 to 64.
    Signal(u8),
}

impl End {
    /// The payload of [`Kind::End`].
    pub fn payload(self) -> [u8; 8] {
        let (what, number) = match self {
            End::Code(code) => (0, code),
            End::Signal(signal) => (1, signal),
        };
        [what, 0, 0, 0, number, 0, 0, 0]
    }

    /// Reads the payload of [`Kind::End`].
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(payload: &[u8]) -> Result<End, Bad> {
        match payload {
            [0, 0, 0, 0, code, 0, 0, 0] => Ok(End::Code(*code)),
            [1, 0, 0, 0, signal @ 1..=64, 0, 0, 0] => Ok(End::Signal(*signal)),
            _ => Err(Bad::Payload(Kind::End)),
        }
    }

    /// The exit code that tells this, as shells have it.
    pub const fn exit_code(self) -> u8 {
        match self {
            End::Code(code) => code,
            End::Signal(signal) => 128 + signal,
        }
    }
}

/// Why an agent has no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such program or directory.
    Absent = 1,
    /// The guest's system can't start it.
    Failed = 2,
    /// It runs too many.
    Busy = 3,
    /// It speaks another version of the protocol.
    Version = 4,
}

impl Refusal {
    const ALL: [Refusal; 4] = [
        Refusal::Absent,
        Refusal::Failed,
        Refusal::Busy,
        Refusal::Version,
    ];

    /// The payload of [`Kind::Refused`]. A long reason is cut.
    pub fn payload(self, reason: &str) -> Vec<u8> {
        let mut end = reason.len().min(MAX_REASON);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        [&(self as u32).to_le_bytes()[..], &reason.as_bytes()[..end]].concat()
    }

    /// Reads the payload of [`Kind::Refused`].
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(payload: &[u8]) -> Result<(Refusal, &str), Bad> {
        let bad = Bad::Payload(Kind::Refused);
        let mut rest = payload;
        let code = number(&mut rest).ok_or(bad)?;
        let refusal = Refusal::ALL.into_iter().find(|known| *known as u32 == code);
        let reason = str::from_utf8(rest).map_err(|_| bad)?;
        Ok((refusal.ok_or(bad)?, reason))
    }
}

#[cfg(test)]
mod tests;
