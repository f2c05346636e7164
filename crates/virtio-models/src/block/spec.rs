// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a user says of a disk.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::rate::Limits;

/// How many queues a disk can have.
pub const MAX_QUEUES: u16 = 64;

/// A disk as its user describes it. Plain data: [`open`](super::open) says what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockSpec {
    /// The image: a file or a block device.
    pub path: PathBuf,
    /// How the image is laid out. It is said and never guessed: a guest can write any header into a raw disk.
    #[serde(default)]
    pub format: Format,
    /// Whether the guest can't write it.
    #[serde(default)]
    pub readonly: bool,
    /// What the guest sees as its serial number: up to 20 printable ASCII characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Whether the host's page cache is left out (`O_DIRECT`).
    #[serde(default)]
    pub direct: bool,
    /// How many queues, 1 to [`MAX_QUEUES`]: as many as vCPUs is the most that a driver uses.
    #[serde(default = "one")]
    pub queues: u16,
    /// Whether a write is done before it is on stable storage.
    #[serde(default)]
    pub cache: Cache,
    /// What it may do in a second: `bandwidth` in bytes, `iops` in requests.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
}

fn is_default(limits: &Limits) -> bool {
    *limits == Limits::default()
}

const fn one() -> u16 {
    1
}

impl BlockSpec {
    /// A raw image that the guest can write, and nothing else said.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        BlockSpec {
            path: path.into(),
            format: Format::default(),
            readonly: false,
            serial: None,
            direct: false,
            queues: 1,
            cache: Cache::default(),
            limits: Limits::default(),
        }
    }
}

/// How an image is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// Sector after sector.
    #[default]
    Raw,
}

/// Whether a write is done before it is on stable storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// It is: a driver flushes what it wants to keep. The driver can switch that off.
    #[default]
    Writeback,
    /// It isn't, until the driver asks for that.
    Writethrough,
}
