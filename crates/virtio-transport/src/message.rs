// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The messages between a transport and its device's thread.
//!
//! The transport ([`Registers`](crate::registers::Registers)) turns register writes into [`Command`]s. The VMM passes
//! them to the device's thread, where a [`Worker`](crate::worker::Worker) executes them. Its [`Answer`]s go back to the
//! transport. Both sides are pure state machines, and every interleaving of the messages is allowed:
//!
//! - A transport has at most one [`Command::Start`] and one [`Command::Reset`] pending, since an unanswered reset
//!   blocks everything else. It has at most one [`Command::SetConfig`] per vCPU, which waits for it.
//! - Two vCPUs send their messages in no fixed order. **Epochs** order them: a reset ends an epoch. A start of that
//!   epoch that arrives after the reset is dropped, and so are later answers about that epoch.

use thiserror::Error;

use crate::broken::Broken;
use crate::device::StartError;
use crate::queue::{Position, QueueError, QueueState};

/// The parameters of a start, as they were at `DRIVER_OK`. Later register writes don't change them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activation {
    /// The number of earlier resets.
    pub epoch: u64,
    /// The features that the driver accepted.
    pub features: u64,
    /// The queues; `None` for those that the driver didn't set up.
    pub queues: Vec<Option<QueueState>>,
}

impl Activation {
    /// Whether the driver set up this queue.
    pub fn has(&self, queue: u16) -> bool {
        self.queues
            .get(usize::from(queue))
            .is_some_and(Option::is_some)
    }

    /// The numbers of the queues that the driver set up.
    pub fn numbers(&self) -> impl Iterator<Item = u16> + '_ {
        let all = (0..).take(self.queues.len());
        all.filter(|queue| self.has(*queue))
    }

    /// The position of each queue.
    pub fn positions(&self) -> Vec<Option<Position>> {
        let position = |queue: &Option<QueueState>| queue.map(|state| state.position);
        self.queues.iter().map(position).collect()
    }

    /// Sets the positions to those of the queues that a stopped device returned. Their other fields are ignored.
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
    /// The driver resets the device.
    Reset {
        /// The epoch that ends.
        epoch: u64,
    },
    /// The driver wrote to the configuration.
    SetConfig {
        /// The epoch of the write.
        epoch: u64,
        /// The offset in bytes.
        at: u32,
        /// The data: the first `len` bytes.
        data: [u8; 8],
        /// How many bytes, 1 to 8.
        len: u8,
    },
}

/// From a device to its transport.
#[derive(Debug)]
pub enum Answer {
    /// The reset is done: the device accesses no guest memory.
    Reset {
        /// The epoch that has ended.
        epoch: u64,
        /// The current configuration.
        config: Vec<u8>,
    },
    /// A [`Command::SetConfig`] was handled.
    ConfigSet {
        /// The current configuration.
        config: Vec<u8>,
    },
    /// The configuration has changed.
    Config {
        /// The current configuration.
        config: Vec<u8>,
    },
    /// The device needs a reset to continue.
    NeedsReset {
        /// The epoch in which that happened.
        epoch: u64,
        /// The reason.
        why: Failure,
    },
}

/// Why a device needs a reset.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Failure {
    /// The driver broke a rule.
    #[error("the guest's driver broke a rule of virtio: {0}")]
    Broken(Broken),
    /// The host's side of the device has failed.
    #[error("{0}")]
    Host(&'static str),
    /// A queue's parameters are invalid.
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

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Host(why) => Failure::Host(why),
            broken => Failure::Broken(broken),
        }
    }
}
