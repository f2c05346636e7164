// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The settings of disks.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use virtio_models::block::BlockSpec;
use virtio_models::rate::{Limit, Limits};

use super::device::Listed;
use super::iothread::{self, IoThreadName};
use super::words::{self, WordError};
use super::{shared, slots};

pub use virtio_models::block::{Cache, Engine, Format};

/// A disk.
///
/// As JSON it is an object with these fields as keys. The flag has the same keys in its word, such as
/// `path=disk.img,readonly`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// The image: a file or a block device.
    #[serde(deserialize_with = "words::path")]
    pub path: PathBuf,
    /// The image's format. It is never guessed.
    #[serde(default)]
    pub format: Format,
    /// Whether the disk is read-only.
    #[serde(default, deserialize_with = "words::word")]
    pub readonly: bool,
    /// The disk's serial number for the guest: up to 20 printable ASCII characters.
    #[serde(default, deserialize_with = "words::word")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Whether to bypass the host's page cache.
    #[serde(default, deserialize_with = "words::word")]
    pub direct: bool,
    /// The number of queues, 1 to [`MAX_QUEUES`](virtio_models::block::MAX_QUEUES).
    #[serde(default = "shared::one", deserialize_with = "shared::queues")]
    pub queues: u16,
    /// Whether writes complete before they are on stable storage.
    #[serde(default)]
    pub cache: Cache,
    /// What reads and writes the image.
    #[serde(default)]
    pub engine: Engine,
    /// The limit of bytes.
    #[serde(default, deserialize_with = "shared::bandwidth")]
    #[serde(serialize_with = "shared::write_bandwidth")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Limit>,
    /// The limit of requests.
    #[serde(default, deserialize_with = "shared::iops")]
    #[serde(serialize_with = "shared::write_iops")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops: Option<Limit>,
    /// A directory for what the guest writes, which is gone when the machine ends. The image is only read. `tmp` is the
    /// host's directory for temporary files.
    #[serde(default, deserialize_with = "words::word")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlay: Option<PathBuf>,
    /// The I/O thread of the disk. By default it is the one that devices share.
    #[serde(default, deserialize_with = "iothread::named")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iothread: Option<IoThreadName>,
    /// The slot of a disk that can be removed while the guest runs: one of [`HotplugSlots`](super::HotplugSlots).
    #[serde(default, deserialize_with = "slots::slot")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<u8>,
}

impl DiskSpec {
    /// A writable raw image, with defaults for everything else.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        DiskSpec {
            path: path.into(),
            format: Format::default(),
            readonly: false,
            serial: None,
            direct: false,
            queues: shared::one(),
            cache: Cache::default(),
            engine: Engine::default(),
            bandwidth: None,
            iops: None,
            overlay: None,
            iothread: None,
            slot: None,
        }
    }

    /// Whether the guest can change the image.
    pub const fn changes_image(&self) -> bool {
        !self.readonly && self.overlay.is_none()
    }

    /// The device's description.
    pub(crate) fn block(&self) -> BlockSpec {
        BlockSpec {
            path: self.path.clone(),
            format: self.format,
            readonly: self.readonly,
            serial: self.serial.clone(),
            direct: self.direct,
            queues: self.queues,
            cache: self.cache,
            engine: self.engine,
            limits: Limits {
                bandwidth: self.bandwidth,
                iops: self.iops,
            },
            overlay: self.overlay.clone(),
        }
    }
}

/// A list in JSON, or the disk of one flag.
impl Listed for DiskSpec {
    const EXPECTED: &'static str = "a list of disks such as [{\"path\": \"disk.img\"}]";
    const REFUSED: fn(String) -> WordError = WordError::Disk;
}

#[cfg(test)]
pub(super) mod tests;
