// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Features and configuration (virtio 1.4, sections 5.2.3 and 5.2.4).

use virtio_transport::layout::{Layout, RING_FEATURES};

use super::disk::Disk;

/// The device ID (virtio 1.4, section 5).
const ID: u16 = 2;
/// The queue size in entries.
pub(super) const QUEUE_SIZE: u16 = 256;
/// The most data segments of a request. Header and status take two more descriptors.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// The size of the configuration, up to `write_zeroes_may_unmap` and its padding.
const LEN: u32 = 60;
/// The offset of the cache mode.
pub(super) const WRITEBACK_AT: u32 = 32;

/// 1 GiB in sectors.
pub(super) const MAX_DISCARD_SECTORS: u32 = 2 << 20;
/// 16 MiB in sectors: the most that is written if the host can't make zeros in another way.
pub(super) const MAX_WRITE_ZEROES_SECTORS: u32 = 32 << 10;

const SEG_MAX_FEATURE: u64 = 1 << 2;
const RO: u64 = 1 << 5;
const BLK_SIZE: u64 = 1 << 6;
pub(super) const FLUSH: u64 = 1 << 9;
const TOPOLOGY: u64 = 1 << 10;
pub(super) const CONFIG_WCE: u64 = 1 << 11;
const MQ: u64 = 1 << 12;
pub(super) const DISCARD: u64 = 1 << 13;
pub(super) const WRITE_ZEROES: u64 = 1 << 14;

pub(super) fn layout(disk: &Disk) -> Layout {
    let mut features = RING_FEATURES | SEG_MAX_FEATURE | BLK_SIZE | TOPOLOGY;
    if disk.flushes() {
        features |= FLUSH;
    }
    features |= if disk.readonly {
        RO
    } else {
        DISCARD | WRITE_ZEROES
    };
    if disk.flushes() && !disk.readonly {
        features |= CONFIG_WCE;
    }
    if disk.queues > 1 {
        features |= MQ;
    }
    Layout {
        id: ID,
        features,
        requires: &[],
        queues: vec![QUEUE_SIZE; usize::from(disk.queues)],
        config_len: LEN,
    }
}

/// Appends the configuration.
pub(super) fn config(disk: &Disk, writeback: bool, out: &mut Vec<u8>) {
    let block = disk.block_size;
    // Current file systems have blocks of 4 KiB: a partial write costs a read.
    let physical = 4096_u32.max(block);
    let blocks = physical / block;
    out.extend(disk.sectors.to_le_bytes());
    out.extend(0_u32.to_le_bytes());
    out.extend(SEG_MAX.to_le_bytes());
    out.extend([0; 4]);
    out.extend(block.to_le_bytes());
    out.extend([blocks.trailing_zeros() as u8, 0]);
    out.extend((blocks as u16).to_le_bytes());
    out.extend(0_u32.to_le_bytes());
    out.extend([u8::from(writeback), 0]);
    out.extend(disk.queues.to_le_bytes());
    let (discard, zeroes) = if disk.readonly {
        ([0; 3], [0; 2])
    } else {
        (
            [MAX_DISCARD_SECTORS, 1, physical / 512],
            [MAX_WRITE_ZEROES_SECTORS, 1],
        )
    };
    for field in discard.into_iter().chain(zeroes) {
        out.extend(field.to_le_bytes());
    }
    out.extend([u8::from(!disk.readonly), 0, 0, 0]);
}
