// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The saved state of a device's registers.

use serde::{Deserialize, Serialize};

use crate::device::RestoreError;
use crate::message::Activation;
use crate::queue::Position;

use super::{
    ACKNOWLEDGE, Config, DRIVER_OK, FAILED, FEATURES_OK, Guest, NEEDS_RESET, ORDER, QueueRegisters,
    Registers,
};

/// What a driver has set, and what it reads. Plain, untrusted data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistersState {
    /// The status.
    pub status: u8,
    /// The features that the driver wrote.
    pub features: u64,
    /// Which 32 bits of the offered features are read.
    pub device_features_select: u32,
    /// Which 32 bits of the driver's features are written.
    pub driver_features_select: u32,
    /// The number of the selected queue.
    pub queue_select: u32,
    /// The queues' parameters.
    pub queues: Vec<QueueRegisters>,
    /// The configuration that the driver can read.
    pub config: Vec<u8>,
    /// Its generation.
    pub generation: u32,
}

impl Registers {
    /// The state; `None` until it is [settled](Self::is_settled).
    pub fn save(&self) -> Option<RegistersState> {
        if !self.is_settled() {
            return None;
        }
        let Guest {
            status,
            features,
            device_features_select,
            driver_features_select,
            queue_select,
            queues,
        } = self.guest.clone();
        let Config {
            bytes,
            generation,
            is_new,
        } = self.config.clone();
        Some(RegistersState {
            status,
            features,
            device_features_select,
            driver_features_select,
            queue_select,
            queues,
            config: bytes,
            // A copy that no driver has read is the next one's.
            generation: generation.wrapping_add(is_new.into()),
        })
    }

    /// Restores a state to new registers. Returns what to start the device with, if it was running. `positions` are
    /// those of its queues ([`WorkerState`](crate::worker::WorkerState)).
    ///
    /// # Errors
    /// The state is one that no driver can produce with this device. Nothing has changed then.
    pub fn restore(
        &mut self,
        state: &RegistersState,
        positions: Option<&[Option<Position>]>,
    ) -> Result<Option<Activation>, RestoreError> {
        self.check(state)?;
        let state = state.clone();
        let mut restored = self.clone();
        restored.guest = Guest {
            status: state.status,
            features: state.features,
            device_features_select: state.device_features_select,
            driver_features_select: state.driver_features_select,
            queue_select: state.queue_select,
            queues: state.queues,
        };
        // The device publishes its own copy when it starts. If that differs, the driver is notified.
        restored.config = Config {
            bytes: state.config,
            generation: state.generation,
            is_new: false,
        };
        // A device that was accessed but not started must be told of a reset, too.
        restored.touched = state.status != 0;
        let activation = restored.activation_at(positions)?;
        *self = restored;
        Ok(activation)
    }

    /// Checks that a driver can have produced this state.
    fn check(&self, state: &RegistersState) -> Result<(), RestoreError> {
        let status = state.status;
        let wrong = |what| Err(RestoreError::Value(what));
        let known = ACKNOWLEDGE | FAILED | NEEDS_RESET;
        let known = ORDER.iter().fold(known, |bits, (bit, _)| bits | bit);
        let in_order = |(bit, before): &(u8, u8)| status & bit == 0 || status & before != 0;
        if status & !known != 0 || !ORDER.iter().all(in_order) {
            return wrong("the device status has bits that no driver sets together");
        }
        if status & FEATURES_OK != 0 && !self.layout.accepts(state.features) {
            return wrong("the driver has features that this device doesn't offer");
        }
        if state.config.len() != self.layout.config_len as usize {
            return wrong("the configuration has another length than this device's");
        }
        if state.queues.len() != self.layout.queues.len() {
            return wrong("the device has another number of queues");
        }
        for (queue, max) in state.queues.iter().zip(&self.layout.queues) {
            if queue.size > *max || !queue.size.is_power_of_two() {
                return wrong("a queue has a size that this device doesn't offer");
            }
            if queue.ready && (status & FEATURES_OK == 0 || queue.state().check().is_err()) {
                return wrong("a queue is ready that can't be");
            }
        }
        Ok(())
    }

    /// What to start the device with, at the given positions.
    fn activation_at(
        &self,
        positions: Option<&[Option<Position>]>,
    ) -> Result<Option<Activation>, RestoreError> {
        let runs = self.guest.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK;
        let positions = match (runs, positions) {
            (false, None) => return Ok(None),
            (true, Some(positions)) => positions,
            _ => {
                return Err(RestoreError::Value(
                    "status and device don't agree on whether it runs",
                ));
            }
        };
        let mut activation = self.activation();
        if positions.len() != activation.queues.len() {
            return Err(RestoreError::Value(
                "the device has another number of queues",
            ));
        }
        for (queue, position) in activation.queues.iter_mut().zip(positions) {
            match (queue, position) {
                (Some(queue), Some(position)) => queue.position = *position,
                (None, None) => {}
                _ => {
                    return Err(RestoreError::Value(
                        "the device runs other queues than its driver set up",
                    ));
                }
            }
        }
        Ok(Some(activation))
    }
}
