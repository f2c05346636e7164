// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A user's description of a disk.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::rate::Limits;

/// The most queues of a disk.
pub const MAX_QUEUES: u16 = 64;

/// A user's description of a disk. Plain data: [`open`](super::open) checks it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockSpec {
    /// The image: a file or a block device.
    pub path: PathBuf,
    /// The image's format. It is never guessed: a guest can write any header to a raw disk.
    #[serde(default)]
    pub format: Format,
    /// Whether the disk is read-only.
    #[serde(default)]
    pub readonly: bool,
    /// The disk's serial number for the guest: up to 20 printable ASCII characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Whether to bypass the host's page cache (`O_DIRECT`).
    #[serde(default)]
    pub direct: bool,
    /// The number of queues, 1 to [`MAX_QUEUES`]. A driver uses at most one per vCPU.
    #[serde(default = "one")]
    pub queues: u16,
    /// Whether writes complete before they are on stable storage.
    #[serde(default)]
    pub cache: Cache,
    /// What reads and writes the image.
    #[serde(default)]
    pub engine: Engine,
    /// Limits per second: `bandwidth` in bytes, `iops` in requests.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// A directory for what the guest writes: the image is only read, and may be shared. `tmp` is the host's directory for
    /// temporary files. What was written is gone when the machine ends. Needs the feature `qcow2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<PathBuf>,
}

fn is_default(limits: &Limits) -> bool {
    *limits == Limits::default()
}

const fn one() -> u16 {
    1
}

impl BlockSpec {
    /// A writable raw image, with defaults for everything else.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        BlockSpec {
            path: path.into(),
            format: Format::default(),
            readonly: false,
            serial: None,
            direct: false,
            queues: 1,
            cache: Cache::default(),
            engine: Engine::default(),
            limits: Limits::default(),
            overlay: None,
        }
    }
}

/// The format of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// Plain sectors.
    #[default]
    Raw,
    /// What QEMU makes: with a map of what is in use. Needs the feature `qcow2`.
    Qcow2,
}

/// Whether writes complete before they are on stable storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Yes. A driver flushes what it wants to keep, and can switch to writethrough.
    #[default]
    Writeback,
    /// No, unless the driver switches to writeback.
    Writethrough,
    /// Yes, and nothing is flushed: the driver is offered neither `VIRTIO_BLK_F_FLUSH` nor `VIRTIO_BLK_F_CONFIG_WCE`. If
    /// the host fails, everything may be lost. For disks that can be made again. Only the VMM itself flushes, for a
    /// machine that it saves.
    Unsafe,
}

/// What reads and writes an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// io_uring, or threads if the host refuses it or the image isn't raw.
    #[default]
    Auto,
    /// Threads.
    Sync,
    /// io_uring. An image without it can't be opened.
    Async,
}
