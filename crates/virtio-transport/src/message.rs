// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a transport and its device's thread say to each other.
//!
//! The transport ([`Registers`](crate::registers::Registers)) makes [`Command`]s out of register writes; the VMM carries
//! them to the device's thread, where a [`Worker`](crate::worker::Worker) performs them; its [`Answer`]s go back into the
//! transport. Both ends are pure state machines, and every interleaving of the messages is a legal one:
//!
//! - A transport has at most one [`Command::Start`] and one [`Command::Reset`] under way, since a reset that isn't
//!   answered lets nothing else happen; and one [`Command::SetConfig`] per vCPU, which waits for it.
//! - **Epochs** order what two vCPUs send in no order. A reset ends an epoch: a start of that epoch that arrives behind
//!   it is dropped, and so is what a device has to say about it afterwards.

use thiserror::Error;

use crate::broken::Broken;
use crate::device::StartError;
use crate::queue::{Position, QueueError, QueueState};

/// What a device is started with: the parameters as they were at `DRIVER_OK`. No later register write changes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activation {
    /// How many resets came before.
    pub epoch: u64,
    /// The features that the driver took.
    pub features: u64,
    /// The queues; `None` where the driver set up none.
    pub queues: Vec<Option<QueueState>>,
}

impl Activation {
    /// Whether the driver set up this queue.
    pub fn has(&self, queue: u16) -> bool {
        self.queues
            .get(usize::from(queue))
            .is_some_and(Option::is_some)
    }

    /// How far each queue has come.
    pub fn positions(&self) -> Vec<Option<Position>> {
        let position = |queue: &Option<QueueState>| queue.map(|state| state.position);
        self.queues.iter().map(position).collect()
    }

    /// Goes on where a device stopped. Only positions are taken from what it gave back.
    pub(crate) fn keep_positions(&mut self, given_back: &[Option<QueueState>]) {
        for (queue, state) in self.queues.iter_mut().zip(given_back) {
            if let (Some(queue), Some(state)) = (queue, state) {
                queue.position = state.position;
            }
        }
    }
}

/// From a transport to its device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The driver is ready.
    Start(Activation),
    /// The driver wants to begin anew.
    Reset {
        /// The epoch that ends.
        epoch: u64,
    },
    /// The driver wrote to the configuration.
    SetConfig {
        /// When it did.
        epoch: u64,
        /// The offset in bytes.
        at: u32,
        /// What it wrote: the first `len` bytes.
        data: [u8; 8],
        /// How many bytes, 1 to 8.
        len: u8,
    },
}

/// From a device to its transport.
#[derive(Debug)]
pub enum Answer {
    /// The reset is done: nothing of the device's touches guest memory.
    Reset {
        /// The epoch that has ended.
        epoch: u64,
        /// The configuration now.
        config: Vec<u8>,
    },
    /// A [`Command::SetConfig`] was dealt with.
    ConfigSet {
        /// The configuration now.
        config: Vec<u8>,
    },
    /// The configuration is another one.
    Config {
        /// The configuration now.
        config: Vec<u8>,
    },
    /// The device can't go on before a reset.
    NeedsReset {
        /// When that happened.
        epoch: u64,
        /// Why.
        why: Failure,
    },
}

/// Why a device can't go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Failure {
    /// The driver broke a rule.
    #[error("the guest's driver broke a rule of virtio: {0}")]
    Broken(#[from] Broken),
    /// A queue is none.
    #[error("the guest's driver set up queue {queue} where none can be: {why}")]
    Queue {
        /// The queue.
        queue: u16,
        /// What is wrong.
        why: QueueError,
    },
    /// The host can't start the device.
    #[error("the device can't start: {0}")]
    Start(#[from] StartError),
}
