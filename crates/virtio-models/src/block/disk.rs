// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk's properties.

use super::spec::Cache;

/// The unit of offsets in requests, in bytes (virtio 1.4, section 5.2.6).
pub const SECTOR: u64 = 512;

/// A disk's properties, as its driver sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its capacity, in units of 512 bytes.
    pub sectors: u64,
    /// Whether writes are refused.
    pub readonly: bool,
    /// Its ID: the answer to `VIRTIO_BLK_T_GET_ID`, padded with zeros.
    pub serial: [u8; 20],
    /// The unit of requests in bytes: a power of two, 512 to 4,096.
    pub block_size: u32,
    /// The alignment that buffers need in the VMM's memory, in bytes: a power of two up to 4,096. Misaligned buffers
    /// are copied.
    pub alignment: u32,
    /// The unit of the length of each buffer, in bytes: a power of two up to 4,096. A disk with direct I/O needs its
    /// block size here. Other buffers are copied.
    pub length_alignment: u32,
    /// The number of queues, 1 to 64.
    pub queues: u16,
    /// Whether writes complete before they are on stable storage.
    pub cache: Cache,
}

impl Default for Disk {
    fn default() -> Self {
        Disk {
            sectors: 0,
            readonly: false,
            serial: [0; 20],
            block_size: 512,
            alignment: 1,
            length_alignment: 1,
            queues: 1,
            cache: Cache::Writeback,
        }
    }
}

impl Disk {
    /// Whether the driver can flush.
    pub(super) fn flushes(&self) -> bool {
        self.cache != Cache::Unsafe
    }

    /// Whether writes complete before they are on stable storage, until the driver changes that.
    pub(super) fn writes_back(&self) -> bool {
        self.cache != Cache::Writethrough
    }

    /// Whether all fields are in range.
    pub(super) const fn is_possible(&self) -> bool {
        matches!(self.block_size, 512 | 1024 | 2048 | 4096)
            && self.alignment.is_power_of_two()
            && self.alignment <= 4096
            && self.length_alignment.is_power_of_two()
            && self.length_alignment <= 4096
            && self.queues >= 1
            && self.queues <= 64
    }
}
