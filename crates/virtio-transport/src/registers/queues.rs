// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The queue parameters.

use serde::{Deserialize, Serialize};

use crate::queue::{Position, QueueState};

use super::{DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET, Registers};

/// One queue's parameters, as set by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRegisters {
    pub(super) size: u16,
    pub(super) ready: bool,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

/// A part of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// The descriptor table.
    Descriptors,
    /// The available ring, or driver area.
    Available,
    /// The used ring, or device area.
    Used,
}

/// A half of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Bits 0 to 31.
    Low,
    /// Bits 32 to 63.
    High,
}

impl QueueRegisters {
    pub(super) const fn new(size: u16) -> Self {
        QueueRegisters {
            size,
            ready: false,
            descriptors: 0,
            available: 0,
            used: 0,
        }
    }

    /// The queue size: what the device offers, unless the driver has chosen less.
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// Whether the driver has enabled it.
    pub const fn is_ready(&self) -> bool {
        self.ready
    }

    /// The guest-physical address of a part.
    pub const fn address(&self, ring: Ring) -> u64 {
        match ring {
            Ring::Descriptors => self.descriptors,
            Ring::Available => self.available,
            Ring::Used => self.used,
        }
    }

    /// The queue with these parameters at its first position.
    pub(super) fn state(&self) -> QueueState {
        QueueState {
            size: self.size,
            descriptors: self.descriptors,
            available: self.available,
            used: self.used,
            position: Position::default(),
        }
    }

    /// The queue for the device's start, if it is enabled.
    pub(super) fn frozen(&self) -> Option<QueueState> {
        self.ready.then(|| self.state())
    }
}

impl Registers {
    /// The number of the selected queue.
    pub const fn queue_select(&self) -> u32 {
        self.guest.queue_select
    }

    /// The driver selects a queue. It may not exist.
    pub fn select_queue(&mut self, select: u32) {
        if !self.resetting {
            self.guest.queue_select = select;
        }
    }

    /// The selected queue, if it exists.
    pub fn queue(&self) -> Option<&QueueRegisters> {
        self.guest.queues.get(self.guest.queue_select as usize)
    }

    /// The size that the device offers for the selected queue; 0 if there is none.
    pub fn max_queue_size(&self) -> u16 {
        let select = self.guest.queue_select as usize;
        self.layout.queues.get(select).copied().unwrap_or(0)
    }

    /// The selected queue, if its parameters may be written: between `FEATURES_OK` and `DRIVER_OK` (3.1.1).
    fn queue_in_setup(&mut self) -> Option<&mut QueueRegisters> {
        if !self.is_at(FEATURES_OK, DRIVER_OK | FAILED | NEEDS_RESET) {
            return None;
        }
        self.guest.queues.get_mut(self.guest.queue_select as usize)
    }

    /// The selected queue, if it may be written and is not enabled yet.
    fn queue_to_set_up(&mut self) -> Option<&mut QueueRegisters> {
        self.queue_in_setup().filter(|queue| !queue.ready)
    }

    /// The driver sets the selected queue's size: a power of two, at most what is offered.
    pub fn set_queue_size(&mut self, size: u32) {
        let max = u32::from(self.max_queue_size());
        if let Some(queue) = self.queue_to_set_up()
            && size.is_power_of_two()
            && size <= max
        {
            // Fits, as `max` does.
            queue.size = size as u16;
        }
    }

    /// The driver sets half of the address of a part of the selected queue.
    pub fn set_queue_address(&mut self, ring: Ring, half: Half, value: u32) {
        let Some(queue) = self.queue_to_set_up() else {
            return;
        };
        let address = match ring {
            Ring::Descriptors => &mut queue.descriptors,
            Ring::Available => &mut queue.available,
            Ring::Used => &mut queue.used,
        };
        let (kept, shift) = match half {
            Half::Low => (*address >> 32 << 32, 0),
            Half::High => (*address & u64::from(u32::MAX), 32),
        };
        *address = kept | u64::from(value) << shift;
    }

    /// The driver enables the selected queue. Ignored if its rings are misaligned.
    pub fn enable_queue(&mut self) {
        if let Some(queue) = self.queue_to_set_up() {
            queue.ready = queue.state().check().is_ok();
        }
    }

    /// The driver disables the selected queue, to set it up again before `DRIVER_OK`.
    pub fn disable_queue(&mut self) {
        if let Some(queue) = self.queue_in_setup() {
            queue.ready = false;
        }
    }
}
