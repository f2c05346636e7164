// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Errors that stop a device's work on its queues.

use thiserror::Error;

/// A driver broke a rule of the queues, so its requests can't be followed any more. The device sets
/// `DEVICE_NEEDS_RESET` (virtio 1.4, 2.1.2) and takes no requests until the driver resets it.
///
/// It is the guest's mistake, except for [`Host`](Broken::Host). So a VMM continues, and one log line is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Broken {
    /// A ring or a descriptor table is not in guest memory.
    #[error("guest address {address:#x} of a ring or descriptor table is not in guest memory")]
    Memory {
        /// The guest-physical address.
        address: u64,
    },
    /// The available ring's index is ahead of the device by more than the queue size (2.7.6).
    #[error("the available index {index} is more than the queue size {size} ahead of {next}")]
    AvailableIndex {
        /// The index that the driver wrote.
        index: u16,
        /// The index of the next entry that the device would take.
        next: u16,
        /// The queue's size.
        size: u16,
    },
    /// A descriptor's index is outside of its table.
    #[error("descriptor {index} is outside of a table of {size}")]
    Index {
        /// The index.
        index: u16,
        /// The table's size in descriptors.
        size: u16,
    },
    /// A chain was made available while the device still has it (2.7.13).
    #[error("descriptor {head} was made available twice")]
    InFlight {
        /// The chain's first descriptor.
        head: u16,
    },
    /// A chain has more descriptors than the limit, or is a loop (2.7.5.2).
    #[error("the chain from descriptor {head} has more than {limit} descriptors")]
    TooMany {
        /// The chain's first descriptor.
        head: u16,
        /// The limit.
        limit: u16,
    },
    /// A chain has more than 2^32 bytes (2.7.5.2).
    #[error("the chain from descriptor {head} has more than 2^32 bytes")]
    TooLong {
        /// The chain's first descriptor.
        head: u16,
    },
    /// A buffer reaches beyond the last address.
    #[error("the buffer of {len} bytes at guest address {address:#x} wraps")]
    Wraps {
        /// The guest-physical address.
        address: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// A buffer that the device reads follows one that it writes (2.7.4.2).
    #[error("the chain from descriptor {head} has a readable buffer after a writable one")]
    Order {
        /// The chain's first descriptor.
        head: u16,
    },
    /// An indirect table breaks one of its rules (2.7.5.3.1).
    #[error("the chain from descriptor {head} has an indirect table that {fault}")]
    Indirect {
        /// The chain's first descriptor.
        head: u16,
        /// The broken rule.
        fault: IndirectFault,
    },
    /// A device returned a chain that it doesn't have. This is the device's mistake, not the guest's.
    #[error("the device gave back chain {head}, which it doesn't have")]
    NotInFlight {
        /// The chain's first descriptor.
        head: u16,
    },
    /// The driver broke a rule of this device type.
    #[error("{0}")]
    Device(&'static str),
    /// The host's side of the device has failed for good. This is not the guest's mistake. It becomes
    /// [`Failure::Host`](crate::message::Failure::Host).
    #[error("{0}")]
    Host(&'static str),
}

/// What is wrong with an indirect table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IndirectFault {
    /// `VIRTIO_F_INDIRECT_DESC` was not negotiated.
    #[error("was not negotiated")]
    NotNegotiated,
    /// An entry of another indirect table refers to it.
    #[error("is inside of another one")]
    Nested,
    /// The descriptor that refers to it has a next descriptor.
    #[error("has a next descriptor")]
    Next,
    /// It is empty, or its length is not a multiple of a descriptor's 16 bytes.
    #[error("has {0} bytes, which is no number of descriptors")]
    Length(u32),
}
