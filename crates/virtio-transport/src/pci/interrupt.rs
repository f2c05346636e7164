// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Interrupts of a function: the ISR, and MSI-X vectors.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use serde::{Deserialize, Serialize};

use crate::device::{Interrupt, RestoreError};

/// No vector (`VIRTIO_MSI_NO_VECTOR`).
pub const NO_VECTOR: u16 = 0xffff;

/// A queue has used buffers.
const QUEUE: u8 = 1;
/// The configuration changed.
const CONFIG: u8 = 2;

/// A function's MSI-X vectors.
pub trait Vectors: Send + Sync {
    /// Their number. Constant.
    fn count(&self) -> u16;
    /// Sends the message of `vector`, or sets its pending bit if it is masked. `vector` is below
    /// [`count`](Self::count).
    fn fire(&self, vector: u16);
}

/// The vector numbers. The driver may change them at any time, so they are atomics instead of a lock.
pub(super) struct PciInterrupt {
    isr: AtomicU8,
    config: AtomicU16,
    queues: Box<[AtomicU16]>,
    vectors: Arc<dyn Vectors>,
}

/// Vector numbers and interrupt status. Plain, untrusted data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptState {
    /// The ISR.
    pub isr: u8,
    /// The configuration's vector.
    pub config: u16,
    /// The queues' vectors.
    pub queues: Vec<u16>,
}

impl PciInterrupt {
    pub(super) fn new(queues: usize, vectors: Arc<dyn Vectors>) -> Self {
        PciInterrupt {
            isr: AtomicU8::new(0),
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            vectors,
        }
    }

    /// The ISR's bit comes first. Without MSI-X it is all that a driver gets, and that of the configuration is set in any
    /// case (4.1.4.5.1).
    fn fire(&self, vector: &AtomicU16, why: u8) {
        self.isr.fetch_or(why, Ordering::SeqCst);
        let vector = vector.load(Ordering::Acquire);
        if vector != NO_VECTOR {
            self.vectors.fire(vector);
        }
    }

    /// Reads and clears the ISR (4.1.4.5).
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::SeqCst)
    }

    fn vector(&self, queue: Option<u32>) -> Option<&AtomicU16> {
        match queue {
            None => Some(&self.config),
            Some(queue) => self.queues.get(queue as usize),
        }
    }

    /// The vector of a queue, or of the configuration.
    pub(super) fn get(&self, queue: Option<u32>) -> u16 {
        let vector = self.vector(queue);
        vector.map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    /// Sets a vector. A vector that doesn't exist reads back as [`NO_VECTOR`] (4.1.5.1.2).
    pub(super) fn set(&self, queue: Option<u32>, value: u16) {
        let is_one = value < self.vectors.count();
        if let Some(vector) = self.vector(queue) {
            vector.store(if is_one { value } else { NO_VECTOR }, Ordering::Release);
        }
    }

    pub(super) fn reset(&self) {
        let queues = vec![NO_VECTOR; self.queues.len()];
        self.restore(&InterruptState {
            isr: 0,
            config: NO_VECTOR,
            queues,
        });
    }

    pub(super) fn save(&self) -> InterruptState {
        InterruptState {
            isr: self.isr.load(Ordering::SeqCst),
            config: self.get(None),
            queues: self
                .queues
                .iter()
                .map(|vector| vector.load(Ordering::Acquire))
                .collect(),
        }
    }

    pub(super) fn check(&self, state: &InterruptState) -> Result<(), RestoreError> {
        let is_one = |vector: u16| vector == NO_VECTOR || vector < self.vectors.count();
        if state.isr & !(QUEUE | CONFIG) != 0 {
            return Err(RestoreError::Value("the ISR has unknown bits"));
        }
        if state.queues.len() != self.queues.len() {
            return Err(RestoreError::Value(
                "the device has another number of queues",
            ));
        }
        if !is_one(state.config) || !state.queues.iter().all(|vector| is_one(*vector)) {
            return Err(RestoreError::Value("the function has no such MSI-X vector"));
        }
        Ok(())
    }

    pub(super) fn restore(&self, state: &InterruptState) {
        self.isr.store(state.isr, Ordering::SeqCst);
        self.config.store(state.config, Ordering::Release);
        for (vector, value) in self.queues.iter().zip(&state.queues) {
            vector.store(*value, Ordering::Release);
        }
    }
}

impl Interrupt for PciInterrupt {
    fn queue(&self, queue: u16) {
        if let Some(vector) = self.vector(Some(queue.into())) {
            self.fire(vector, QUEUE);
        }
    }

    fn config(&self) {
        self.fire(&self.config, CONFIG);
    }
}
