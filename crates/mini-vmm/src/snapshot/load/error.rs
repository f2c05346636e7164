// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why a snapshot can't be used.

use std::io;
use std::path::PathBuf;

use super::super::format::{FORMAT, Id};
use super::{CloneId, MAX_CLONE_ID};
use crate::config;
use crate::text::{one_line, shorten};

/// The most characters of a reason. It may have words of the file.
const MAX_REASON: usize = 200;

/// A reason that may have words of the file.
pub(in crate::snapshot) fn brief(reason: &impl ToString) -> String {
    shorten(&one_line(&reason.to_string()), MAX_REASON)
}

/// Why a snapshot can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file can't be opened or read.
    #[error("can't read {path:?} ({reason}); give a snapshot that mini-vmm has written")]
    Read {
        /// The file.
        path: PathBuf,
        /// The host's error.
        reason: io::Error,
    },
    /// A file is no regular file, or is too large.
    #[error("{path:?} {what}; give a snapshot that mini-vmm has written")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// The manifest is no manifest.
    #[error(
        "the snapshot's manifest can't be read: {}; it is damaged or of another program, take a new snapshot", brief(.0)
    )]
    Manifest(#[source] serde_json::Error),
    /// The manifest has another format.
    #[error(
        "the snapshot has format {found} and this program reads {FORMAT}; use the mini-vmm that wrote it"
    )]
    Format {
        /// The snapshot's format.
        found: u32,
    },
    /// A part has another version.
    #[error(
        "the snapshot's {part} has version {found} and this program reads 1; use the mini-vmm that wrote it"
    )]
    Version {
        /// The part.
        part: &'static str,
        /// Its version.
        found: u32,
    },
    /// The manifest contradicts itself or the state.
    #[error("the snapshot is damaged: {0}; take a new snapshot")]
    Lie(&'static str),
    /// The state's bytes are not those that were written.
    #[error("the snapshot's state is damaged: {0}; take a new snapshot")]
    Damaged(&'static str),
    /// The state is not one of a machine.
    #[error("the snapshot's state can't be read: {}; it is damaged, take a new snapshot", brief(.0))]
    State(#[source] serde_json::Error),
    /// The machine's description is not one.
    #[error("the snapshot's machine is not possible: {}; it is damaged, take a new snapshot", brief(.0))]
    Spec(#[source] config::Error),
    /// A memory file has no end like ours.
    #[error("the memory file is not complete or not of mini-vmm; take a new snapshot")]
    Tail,
    /// The snapshot has changes only.
    #[error(
        "this snapshot has only what changed since snapshot {parent}; make it whole with `mini-vmm snapshot merge BASE \
         DIFF OUT`, and use OUT"
    )]
    Changes {
        /// The snapshot that it continues.
        parent: Id,
    },
    /// A snapshot has the wrong kind for its place in a merge.
    #[error("{0}")]
    Order(&'static str),
    /// A Diff continues another snapshot.
    #[error(
        "the Diff continues snapshot {parent}, not {base}; merge Diffs in their order, onto their own base"
    )]
    Stranger {
        /// The snapshot that it continues.
        parent: Id,
        /// The base.
        base: Id,
    },
    /// A memory file belongs to another snapshot.
    #[error(
        "the memory belongs to snapshot {memory} and the state to {state}; give two files of one snapshot"
    )]
    Pair {
        /// The identity in the memory file.
        memory: Id,
        /// The identity in the manifest.
        state: Id,
    },
    /// Nobody would learn the clone's number.
    #[error(
        "the guest did not ask for this snapshot, so it can't be told its number as a clone; leave that out"
    )]
    NoCaller,
    /// The guest would take the number for an error.
    #[error("a clone's number is 1 to {MAX_CLONE_ID}, not {0}; choose a smaller one")]
    CloneId(CloneId),
}

impl Error {
    /// No Diff, where a merge needs one.
    pub(in crate::snapshot) const WHOLE: Self =
        Error::Order("the second snapshot is whole already; use it as it is");
}
