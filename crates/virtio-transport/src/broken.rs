// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What ends a device's work on its queues.

use thiserror::Error;

/// A driver broke a rule of the queues, so that what it wants can't be told any more. The device gets
/// `DEVICE_NEEDS_RESET` (virtio 1.4, 2.1.2) and takes no further requests until the driver resets it.
///
/// It is the guest's mistake, so a VMM goes on, and need not print more than one line for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Broken {
    /// A ring or a descriptor table is not in guest memory.
    #[error("guest address {address:#x} of a ring or descriptor table is not in guest memory")]
    Memory {
        /// The guest-physical address.
        address: u64,
    },
    /// The available ring's index is further ahead than the queue is long (2.7.6).
    #[error("the available index {index} is more than the queue size {size} ahead of {next}")]
    AvailableIndex {
        /// What the driver wrote.
        index: u16,
        /// The next entry that the device would take.
        next: u16,
        /// The queue's size.
        size: u16,
    },
    /// A descriptor's index lies outside of its table.
    #[error("descriptor {index} is outside of a table of {size}")]
    Index {
        /// The index.
        index: u16,
        /// The table's length in descriptors.
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
    /// A buffer ends behind the last address.
    #[error("the buffer of {len} bytes at guest address {address:#x} wraps")]
    Wraps {
        /// The guest-physical address.
        address: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// A buffer that the device reads follows one that it writes (2.7.4.2).
    #[error("the chain from descriptor {head} has a readable buffer behind a writable one")]
    Order {
        /// The chain's first descriptor.
        head: u16,
    },
    /// An indirect table breaks one of its rules (2.7.5.3.1).
    #[error("the chain from descriptor {head} has an indirect table that {fault}")]
    Indirect {
        /// The chain's first descriptor.
        head: u16,
        /// The rule.
        fault: IndirectFault,
    },
    /// A device gave back a chain that it doesn't have: a mistake of the device's, not of the guest's.
    #[error("the device gave back chain {head}, which it doesn't have")]
    NotInFlight {
        /// The chain's first descriptor.
        head: u16,
    },
    /// The driver broke a rule of this kind of device.
    #[error("{0}")]
    Device(&'static str),
}

/// What is wrong with an indirect table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IndirectFault {
    /// `VIRTIO_F_INDIRECT_DESC` was not negotiated.
    #[error("was not negotiated")]
    NotNegotiated,
    /// It is named by an entry of another one.
    #[error("is inside of another one")]
    Nested,
    /// The descriptor that names it goes on.
    #[error("has a next descriptor")]
    Next,
    /// It is empty, or its length is no multiple of a descriptor's 16 bytes.
    #[error("has {0} bytes, which is no number of descriptors")]
    Length(u32),
}
