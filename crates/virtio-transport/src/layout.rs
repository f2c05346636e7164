// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device is to its driver, for as long as the machine lives; and the features that belong to queues.

use thiserror::Error;

/// `VIRTIO_F_INDIRECT_DESC`: descriptors may name tables of descriptors (virtio 1.4, 2.7.5.3).
pub const INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`: each side says when it wants to be notified next (2.7.7, 2.7.10).
pub const EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`: always offered, and a driver that doesn't take it is refused.
pub const VERSION_1: u64 = 1 << 32;
/// The features of queues that this crate has, for a device's [`Layout::features`].
pub const RING_FEATURES: u64 = INDIRECT_DESC | EVENT_IDX;

/// Bits 24 to 40 and 43 to 49 belong to queues and transports (virtio 1.4, 2.2); all others to the kind of device.
const RESERVED: u64 = ((1 << 50) - (1 << 24)) & !(0b11 << 41);

/// The longest queue (2.7).
pub const MAX_QUEUE_SIZE: u16 = 1 << 15;
/// How many queues a device can have. The PCI transport has a page of notification addresses, with room for 1,024.
pub const MAX_QUEUES: usize = 1024;
/// How long a device's configuration can be, in bytes: what the transports have room for.
pub const MAX_CONFIG: u32 = 0xe00;

/// What a device is: constant for the machine's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The device ID of virtio 1.4, section 5; below 64.
    pub id: u16,
    /// The features that it offers: bits 0 to 23, 41, 42 and 50 to 63 by its kind, and of [`RING_FEATURES`] what it can do.
    pub features: u64,
    /// Bits of [`features`](Self::features) that need another one, as `(bit, needed bit)`: a driver that takes the
    /// first without the second is refused.
    pub requires: &'static [(u8, u8)],
    /// The size of each queue, in entries: a power of two.
    pub queues: Vec<u16>,
    /// The length of its configuration in bytes.
    pub config_len: u32,
}

impl Layout {
    /// The features that a driver sees.
    pub const fn offered(&self) -> u64 {
        self.features | VERSION_1
    }

    /// Whether a driver may take these features.
    pub fn accepts(&self, features: u64) -> bool {
        let has = |bit: u8| features >> bit & 1 == 1;
        features & !self.offered() == 0
            && features & VERSION_1 != 0
            && self
                .requires
                .iter()
                .all(|&(bit, needed)| !has(bit) || has(needed))
    }

    /// Whether a transport can carry the device.
    ///
    /// # Errors
    /// What it can't carry.
    pub fn check(&self) -> Result<(), LayoutError> {
        let unknown = self.features & RESERVED & !RING_FEATURES;
        if !(1..64).contains(&self.id) {
            return Err(LayoutError::Id(self.id));
        }
        if unknown != 0 {
            return Err(LayoutError::Features(unknown));
        }
        if self.requires.iter().any(|(a, b)| *a >= 64 || *b >= 64) {
            return Err(LayoutError::Requires);
        }
        if self.queues.len() > MAX_QUEUES {
            return Err(LayoutError::Queues(self.queues.len()));
        }
        let is_wrong = |size: u16| !size.is_power_of_two() || size > MAX_QUEUE_SIZE;
        if let Some(size) = self.queues.iter().copied().find(|size| is_wrong(*size)) {
            return Err(LayoutError::QueueSize(size));
        }
        if self.config_len > MAX_CONFIG {
            return Err(LayoutError::Config(self.config_len));
        }
        Ok(())
    }
}

/// Why no transport carries a device: a mistake in the device's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The ID is not one of virtio's.
    #[error("the virtio device ID {0} is outside of 1 to 63")]
    Id(u16),
    /// Features of queues or transports that this crate doesn't have.
    #[error("the features {0:#x} belong to queues or transports and are not implemented")]
    Features(u64),
    /// A feature's requirement names a bit above 63.
    #[error("a feature's requirement names a bit above 63")]
    Requires,
    /// Too many queues.
    #[error("{0} queues are more than {MAX_QUEUES}")]
    Queues(usize),
    /// A size that no queue can have.
    #[error("the queue size {0} is not a power of two up to {MAX_QUEUE_SIZE}")]
    QueueSize(u16),
    /// The configuration is too long.
    #[error("a configuration of {0} bytes is longer than {MAX_CONFIG}")]
    Config(u32),
}
