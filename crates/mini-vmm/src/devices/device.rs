// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device is to the machine: a slot in its plan, and an object behind one door.

use std::fmt;
use std::io;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vcpu_loop::bus::{BusDevice, Space};

use super::events::EventSource;
use crate::config::VmSpec;
use crate::console::{ConsoleOutput, InputTarget};
use crate::irq::{IrqLine, Irqs};
use crate::outcome::OutcomeLatch;

/// Addresses that reach a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Ports or memory.
    pub space: Space,
    /// The first address.
    pub base: u64,
    /// How many there are, in bytes; at least 1.
    pub size: u64,
}

impl Window {
    /// `size` ports from `base` on.
    pub const fn ports(base: u16, size: u16) -> Self {
        Window {
            space: Space::Pio,
            base: base as u64,
            size: size as u64,
        }
    }
}

/// A device in the plan of a machine: all that can be said of it before it exists.
#[derive(Clone)]
pub struct Slot {
    /// Its name, the same in every snapshot.
    pub id: &'static str,
    /// Its windows; an access tells the device which one by its place in this list.
    pub windows: Vec<Window>,
    /// The GSI of its interrupt line, if it has one.
    pub gsi: Option<u32>,
    /// Its part of the DSDT.
    pub aml: Vec<u8>,
    /// Bits of the FADT's `IAPC_BOOT_ARCH` that are other than usual because it is there.
    pub boot_arch: u16,
    /// Makes it.
    pub(super) build: Build,
}

/// Makes a device.
pub(super) type Build = fn(&mut Parts<'_>) -> io::Result<Arc<dyn Device>>;

impl Slot {
    /// A device with these windows and nothing else.
    pub(super) fn new(id: &'static str, windows: &[Window], build: Build) -> Self {
        Slot {
            id,
            windows: windows.to_vec(),
            gsi: None,
            aml: Vec::new(),
            boot_arch: 0,
            build,
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("id", &self.id)
            .field("windows", &self.windows)
            .field("gsi", &self.gsi)
            .finish_non_exhaustive()
    }
}

/// What devices are made of.
pub(super) struct Parts<'a> {
    /// The machine's description.
    pub spec: &'a VmSpec,
    /// Where the end of the run is reported.
    pub outcome: &'a OutcomeLatch,
    /// The console's output, if there is one.
    pub output: Option<&'a ConsoleOutput>,
    /// The GSI of the device's interrupt line.
    pub gsi: Option<u32>,
    /// The machine's interrupts, for a device that sends messages.
    pub irqs: &'a Irqs,
    /// What it does for the rest of the process.
    pub offers: &'a mut Offers,
    /// What wakes it.
    pub events: &'a mut Vec<EventSource>,
}

impl Parts<'_> {
    /// The device's interrupt line, as an edge.
    pub fn edge(&self) -> IrqLine {
        self.gsi
            .map_or_else(IrqLine::unconnected, |gsi| self.irqs.edge(gsi))
    }
}

/// What devices do for the rest of the process.
#[derive(Clone, Default)]
pub struct Offers {
    /// Takes the console's input.
    pub console_input: Option<Arc<dyn InputTarget>>,
    /// The guest's power button.
    pub power_button: Option<Arc<dyn PowerButton>>,
}

impl fmt::Debug for Offers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offers")
            .field("console_input", &self.console_input.is_some())
            .field("power_button", &self.power_button.is_some())
            .finish()
    }
}

/// The guest's power button.
pub trait PowerButton: Send + Sync {
    /// Presses it.
    ///
    /// # Errors
    /// When the interrupt can't be raised.
    fn press(&self) -> io::Result<()>;

    /// Draws attention to a press that the guest has not noticed; does nothing otherwise.
    ///
    /// # Errors
    /// As [`press`](Self::press).
    fn remind(&self) -> io::Result<()>;
}

/// A device: registers on the bus, and a state that can be saved and brought back.
///
/// All but the registers is called while all vCPUs are paused. The defaults are those of a device without state.
pub trait Device: BusDevice + fmt::Debug {
    /// Stops taking input from outside of the machine, so that [`save`](Self::save) sees the last state.
    fn pause(&self) {}

    /// Takes input again.
    fn resume(&self) {}

    /// The state now; nothing if there is none to save.
    fn save(&self) -> Option<Saved> {
        None
    }

    /// Replaces the state by a saved one. The state is checked first: on an error nothing changed.
    ///
    /// # Errors
    /// When no device of this kind can be in that state, or when its interrupt can't be raised.
    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let id = saved.id.clone();
        Err(RestoreError::Devices { id })
    }
}

/// A device's state: plain data, untrusted when it comes from a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// The device's [`Slot::id`].
    pub id: String,
    /// The form of `state`, the device's own count from 1.
    pub version: u32,
    /// The state.
    pub state: Value,
}

impl Saved {
    /// The state of device `id` in its form `version`.
    pub(super) fn new<S: Serialize>(id: &str, version: u32, state: &S) -> Option<Self> {
        // Numbers, booleans and lists of them, which JSON has.
        let state = serde_json::to_value(state).ok()?;
        Some(Saved {
            id: id.to_owned(),
            version,
            state,
        })
    }

    /// Reads the state of device `id`, whose newest form is `version`.
    pub(super) fn read<S: DeserializeOwned>(
        &self,
        id: &'static str,
        version: u32,
    ) -> Result<S, RestoreError> {
        if self.id != id {
            return Err(RestoreError::Devices { id: id.to_owned() });
        }
        if self.version != version {
            return Err(RestoreError::Version {
                device: id,
                found: self.version,
                known: version,
            });
        }
        S::deserialize(&self.state).map_err(|reason| RestoreError::Form { device: id, reason })
    }
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
    /// The state has another form than the device's.
    #[error(
        "the saved state of {device} can't be read ({reason}): the snapshot is damaged, take a new one"
    )]
    Form {
        /// The device.
        device: &'static str,
        /// What is wrong.
        reason: serde_json::Error,
    },
    /// The state was saved by another version of the device.
    #[error(
        "the saved state of {device} has version {found} and this program knows {known}: restore it with the program that \
         saved it"
    )]
    Version {
        /// The device.
        device: &'static str,
        /// Its version.
        found: u32,
        /// The one that is known.
        known: u32,
    },
    /// The machine and the saved state do not have the same devices.
    #[error(
        "the machine and its saved state differ in device {id:?}: restore it with the options that it was saved with"
    )]
    Devices {
        /// The first device that only one of them has, or that stands elsewhere.
        id: String,
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

    /// The suite that every device with a state passes: a snapshot survives its text form, a mutation is visible,
    /// and a restore (here, and into a `fresh` device) undoes it.
    pub(crate) fn check_suspend(device: &dyn Device, fresh: &dyn Device, mutate: impl FnOnce()) {
        device.pause();
        let saved = device.save().unwrap();
        let text = serde_json::to_string(&saved).unwrap();
        let parsed: Saved = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed, saved, "the text form loses nothing");
        device.resume();

        mutate();
        let mutated = device.save();
        assert_ne!(
            mutated.as_ref(),
            Some(&saved),
            "the mutation must be visible"
        );

        let mut other = saved.clone();
        other.version += 1;
        device.restore(&other).unwrap_err();
        other = Saved {
            id: "another".to_owned(),
            ..saved.clone()
        };
        device.restore(&other).unwrap_err();
        other = Saved {
            state: Value::Null,
            ..saved.clone()
        };
        device.restore(&other).unwrap_err();
        assert_eq!(device.save(), mutated, "what is refused changes nothing");

        device.restore(&parsed).unwrap();
        assert_eq!(
            device.save().as_ref(),
            Some(&saved),
            "restore undoes the mutation"
        );
        fresh.restore(&parsed).unwrap();
        assert_eq!(fresh.save(), Some(saved), "a fresh device takes the state");
    }

    /// The error of restoring `state` in the place of the one that the device has.
    pub(crate) fn refusal<S: Serialize>(device: &dyn Device, state: &S) -> RestoreError {
        let saved = device.save().unwrap();
        let state = serde_json::to_value(state).unwrap();
        let bad = Saved {
            state,
            ..saved.clone()
        };
        let error = device.restore(&bad).unwrap_err();
        assert_eq!(
            device.save(),
            Some(saved),
            "what is refused changes nothing"
        );
        error
    }
}
