// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pause, save and restore: what every device can do from the first day.

use std::fmt::Debug;
use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A device whose state can be saved and brought back.
///
/// Called from the thread that runs the event loop, while all vCPUs are paused.
pub trait Suspend {
    /// The saved state: plain data.
    type State: Serialize + DeserializeOwned + Clone + PartialEq + Debug;

    /// Stops taking input from outside of the machine, so that [`save`](Self::save) sees the last state.
    fn pause(&self) {}

    /// Takes input again.
    fn resume(&self) {}

    /// The state now.
    fn save(&self) -> Self::State;

    /// Replaces the state by a saved one. The state is checked first: on an error nothing changed.
    ///
    /// # Errors
    /// When no device of this kind can be in that state, or when its interrupt can't be raised.
    fn restore(&self, state: &Self::State) -> Result<(), RestoreError>;
}

/// Why a saved state was not taken.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A field has a value that the device never saves.
    #[error(
        "the saved state of {device} has {field} = {value:#x}, which {device} never has: the snapshot is damaged, take a new one"
    )]
    Field {
        /// The device.
        device: &'static str,
        /// The field of its state.
        field: &'static str,
        /// The value found.
        value: u64,
    },
    /// The machine and the saved state do not have the same devices.
    #[error(
        "the machine {} {device} and its saved state {}: restore it with the options that it was saved with",
        if *in_machine { "has" } else { "lacks" },
        if *in_machine { "does not" } else { "has it" }
    )]
    Missing {
        /// The device.
        device: &'static str,
        /// Whether it is the machine that has it.
        in_machine: bool,
    },
    /// The interrupt that the restored state asks for could not be raised.
    #[error("the interrupt of {device} could not be raised after a restore: {source}")]
    Interrupt {
        /// The device.
        device: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The suite that every device passes: a snapshot survives its text form, a mutation is visible,
    /// and a restore (here, and into a `fresh` device) undoes it.
    pub(crate) fn check_suspend<D: Suspend>(device: &D, fresh: &D, mutate: impl FnOnce(&D)) {
        device.pause();
        let saved = device.save();
        let text = serde_json::to_string(&saved).unwrap();
        let parsed: D::State = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed, saved, "the text form loses nothing");
        device.resume();

        mutate(device);
        assert_ne!(device.save(), saved, "the mutation must be visible");

        device.restore(&parsed).unwrap();
        assert_eq!(device.save(), saved, "restore undoes the mutation");
        fresh.restore(&parsed).unwrap();
        assert_eq!(fresh.save(), saved, "a fresh device takes the state");
    }

    /// The same for devices without state.
    pub(crate) fn check_stateless<D: Suspend<State = ()>>(device: &D) {
        device.pause();
        device.save();
        device.restore(&()).unwrap();
        device.resume();
    }
}
