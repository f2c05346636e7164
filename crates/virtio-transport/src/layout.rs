// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a driver sees of a device, constant for the machine's life, and the features of queues.

use thiserror::Error;

/// `VIRTIO_F_INDIRECT_DESC`: descriptors may refer to tables of descriptors (virtio 1.4, 2.7.5.3).
pub const INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`: each side states when it wants the next notification (2.7.7, 2.7.10).
pub const EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`: always offered. A driver must accept it.
pub const VERSION_1: u64 = 1 << 32;
/// The queue features that this crate implements, for a device's [`Layout::features`].
pub const RING_FEATURES: u64 = INDIRECT_DESC | EVENT_IDX;

/// Bits 24 to 40 and 43 to 49 belong to queues and transports (virtio 1.4, 2.2), all others to the device type.
const RESERVED: u64 = ((1 << 50) - (1 << 24)) & !(0b11 << 41);

/// The largest queue size (2.7).
pub const MAX_QUEUE_SIZE: u16 = 1 << 15;
/// The most queues of a device. The PCI transport has a page of notification addresses, enough for 1,024.
pub const MAX_QUEUES: usize = 1024;
/// The largest device configuration that the transports support, in bytes.
pub const MAX_CONFIG: u32 = 0xe00;

/// A device's properties, constant for the machine's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The device ID of virtio 1.4, section 5; below 64.
    pub id: u16,
    /// The features that it offers: bits 0 to 23, 41, 42 and 50 to 63 of its type, and those of [`RING_FEATURES`] that
    /// it supports.
    pub features: u64,
    /// Features that require another one, as `(bit, required bit)`. A driver that accepts the first without the second
    /// is refused.
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

    /// Whether a driver may accept these features.
    pub fn accepts(&self, features: u64) -> bool {
        let has = |bit: u8| features >> bit & 1 == 1;
        features & !self.offered() == 0
            && features & VERSION_1 != 0
            && self
                .requires
                .iter()
                .all(|&(bit, needed)| !has(bit) || has(needed))
    }

    /// Checks that a transport supports the device.
    ///
    /// # Errors
    /// What is not supported.
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

/// Why a transport doesn't support a device: a mistake in the device's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The ID is outside of virtio's range.
    #[error("the virtio device ID {0} is outside of 1 to 63")]
    Id(u16),
    /// These features of queues or transports are not implemented here.
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
