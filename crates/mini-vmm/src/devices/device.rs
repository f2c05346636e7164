// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device's interface to the machine: a slot in its plan, and an object-safe trait.

use std::borrow::Cow;
use std::error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use pci_root::Windows;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vcpu_loop::bus::{BusDevice, Space};
use virtio_models::{balloon, block, net, vsock};
use vm_memory::GuestMemoryMmap;

use super::Backends;
use super::events::EventSource;
use super::virtio::{IoThreads, Slots};
use crate::config::VmSpec;
use crate::console::{ConsoleOutput, InputTarget};
use crate::irq::{IrqLine, Irqs};
use crate::memory::Returned;
use crate::outcome::OutcomeLatch;

/// An address range of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Ports or memory.
    pub space: Space,
    /// The first address.
    pub base: u64,
    /// The number of ports or bytes, at least 1.
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

    /// `size` bytes of memory from `base` on.
    pub const fn memory(base: u64, size: u64) -> Self {
        Window {
            space: Space::Mmio,
            base,
            size,
        }
    }
}

/// A device in the plan of a machine: its properties before it is created.
#[derive(Clone)]
pub struct Slot {
    /// Its name, the same in every snapshot.
    pub id: Cow<'static, str>,
    /// Its windows. An access carries the window's index in this list.
    pub windows: Vec<Window>,
    /// The GSI of its interrupt line, if it has one.
    pub gsi: Option<u32>,
    /// Its part of the DSDT.
    pub aml: Vec<u8>,
    /// The address ranges of PCI, if this is the root.
    pub pci: Option<Windows>,
    /// Its words on the kernel command line, for kernels that find it only there.
    pub cmdline: Option<String>,
    /// Bits of the FADT's `IAPC_BOOT_ARCH` that it inverts.
    pub boot_arch: u16,
    /// Creates it.
    pub(super) build: Build,
}

/// Creates a device.
pub(super) type Build =
    Arc<dyn Fn(&mut Parts<'_>) -> io::Result<Arc<dyn Device>> + Send + Sync + 'static>;

impl Slot {
    /// A device with these windows and nothing else.
    pub(super) fn new(
        id: impl Into<Cow<'static, str>>,
        windows: &[Window],
        build: impl Fn(&mut Parts<'_>) -> io::Result<Arc<dyn Device>> + Send + Sync + 'static,
    ) -> Self {
        Slot {
            id: id.into(),
            windows: windows.to_vec(),
            gsi: None,
            aml: Vec::new(),
            pci: None,
            cmdline: None,
            boot_arch: 0,
            build: Arc::new(build),
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

/// What a device is created with.
pub(super) struct Parts<'a> {
    /// The machine's description.
    pub spec: &'a VmSpec,
    /// Takes the outcome when the run ends.
    pub outcome: &'a OutcomeLatch,
    /// The console's output, if there is one.
    pub output: Option<&'a ConsoleOutput>,
    /// What the machine's devices use on the host.
    pub backends: &'a Backends,
    /// The GSI of the device's interrupt line.
    pub gsi: Option<u32>,
    /// The machine's interrupts, for a device that sends MSIs.
    pub irqs: &'a Irqs,
    /// The guest's memory, for a device with DMA.
    pub memory: &'a GuestMemoryMmap,
    /// The threads of the virtio devices.
    pub io: &'a IoThreads,
    /// Takes what it provides to the process.
    pub offers: &'a mut Offers,
    /// Takes its event sources.
    pub events: &'a mut Vec<EventSource>,
}

impl Parts<'_> {
    /// The device's interrupt line, edge-triggered.
    pub fn edge(&self) -> IrqLine {
        self.gsi
            .map_or_else(IrqLine::unconnected, |gsi| self.irqs.edge(gsi))
    }
}

/// What devices provide to the process.
#[derive(Clone, Default)]
pub struct Offers {
    /// Takes the console's input.
    pub console_input: Option<Arc<dyn InputTarget>>,
    /// Takes the virtio console's input.
    pub hvc_input: Option<Arc<dyn InputTarget>>,
    /// The guest's power button.
    pub power_button: Option<Arc<dyn PowerButton>>,
    /// Tells the guest of a new generation.
    pub generation: Option<Arc<dyn Generation>>,
    /// Tells the guest of devices that come and go.
    pub plug_events: Option<Arc<dyn PlugEvents>>,
    /// The slots for them, if the machine has some.
    pub(super) slots: Option<Arc<dyn Slots>>,
    /// The control of each disk, in order.
    pub disks: Vec<Arc<block::Control>>,
    /// The control of each network, in order.
    pub nets: Vec<Arc<net::Control>>,
    /// The counters of each disk, by name.
    pub disk_counters: Vec<(String, Arc<block::Counters>)>,
    /// The counters of each network, by name.
    pub net_counters: Vec<(String, Arc<net::Counters>)>,
    /// The counters of the socket device.
    pub vsock_counters: Option<Arc<vsock::Counters>>,
    /// The control of the balloon.
    pub balloon: Option<Arc<balloon::Control>>,
    /// The balloon's counters.
    pub balloon_counters: Option<Arc<balloon::Counters>>,
    /// What the balloon gave back to the host.
    pub returned: Option<Returned>,
}

impl fmt::Debug for Offers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offers")
            .field("console_input", &self.console_input.is_some())
            .field("power_button", &self.power_button.is_some())
            .field("disks", &self.disks.len())
            .finish()
    }
}

/// The guest's power button.
pub trait PowerButton: Send + Sync {
    /// Presses it.
    ///
    /// # Errors
    /// The interrupt can't be raised.
    fn press(&self) -> io::Result<()>;

    /// Repeats the interrupt for a press that the guest has not noticed. Otherwise does nothing.
    ///
    /// # Errors
    /// As [`press`](Self::press).
    fn remind(&self) -> io::Result<()>;
}

/// Tells the guest that it may now run more than once.
pub trait Generation: Send + Sync {
    /// Notes the event that its generation ID in memory has changed. Returns the GSI of the interrupt, an edge, for which
    /// the guest looks at it.
    fn announce(&self) -> u32;
}

/// Tells the guest that something has happened to slots.
pub trait PlugEvents: Send + Sync {
    /// Notes the event, and interrupts the guest.
    ///
    /// # Errors
    /// The interrupt can't be raised. The guest notices the event at the next one.
    fn tell(&self) -> io::Result<()>;
}

/// A device: registers on the bus, and a state that can be saved and restored.
///
/// All methods except for register accesses are called while the vCPUs are paused. The defaults suit a device without
/// state.
pub trait Device: BusDevice + fmt::Debug {
    /// Stops input from outside of the machine, so that [`save`](Self::save) sees the final state. The threads of
    /// virtio devices stop those.
    fn pause(&self) {}

    /// Takes input again.
    fn resume(&self) {}

    /// The current state. `None` if there is none to save. It may wait for the host until `by`.
    ///
    /// # Errors
    /// The host failed. The device is unchanged.
    fn save(&self, by: Instant) -> Result<Option<Saved>, SuspendError> {
        let _ = by;
        Ok(None)
    }

    /// Restores a saved state. The state is checked first: after an error nothing has changed.
    ///
    /// # Errors
    /// The state is not possible for this device, or its interrupt can't be raised.
    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let id = saved.id.clone();
        Err(RestoreError::Devices { id })
    }
}

/// A device's state: plain data. Untrusted if it comes from a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// The device's [`Slot::id`].
    pub id: String,
    /// The version of `state`, counted from 1 per device.
    pub version: u32,
    /// The state.
    pub state: Value,
}

impl Saved {
    /// The state of device `id` in version `version`.
    pub(super) fn new<S: Serialize>(
        id: &str,
        version: u32,
        state: &S,
    ) -> Result<Option<Self>, SuspendError> {
        let state =
            serde_json::to_value(state).map_err(|reason| SuspendError::state(id, reason))?;
        Ok(Some(Saved {
            id: id.to_owned(),
            version,
            state,
        }))
    }

    /// Reads the state of the virtio device or PCI root `id`, whose newest version is `version`.
    pub(super) fn read_as<S: DeserializeOwned>(
        &self,
        id: &str,
        version: u32,
    ) -> Result<S, RestoreError> {
        let misfit = |reason: Box<dyn error::Error + Send + Sync>| RestoreError::Virtio {
            device: id.to_owned(),
            reason,
        };
        if self.id != id {
            return Err(RestoreError::Devices { id: id.to_owned() });
        }
        if self.version != version {
            let found = self.version;
            return Err(misfit(
                format!("it has version {found} and this program knows {version}").into(),
            ));
        }
        S::deserialize(&self.state).map_err(|reason| misfit(reason.into()))
    }

    /// Reads the state of device `id`, whose newest version is `version`.
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

/// Why a device can't be paused or saved.
#[derive(Debug, thiserror::Error)]
pub enum SuspendError {
    /// It has requests that don't complete.
    #[error(
        "device {device} has requests under way that don't end in time; look for a file or host that hangs, and try again"
    )]
    Busy {
        /// The device.
        device: String,
    },
    /// A thread doesn't answer, so its devices can't be stopped.
    #[error(
        "thread {thread} of the guest's devices does not answer; look for a file or host that hangs, and try again"
    )]
    Thread {
        /// Its name.
        thread: String,
    },
    /// Its state can't be saved.
    #[error(
        "the state of device {device} can't be taken ({reason}); look at the host's log, and try again"
    )]
    State {
        /// The device.
        device: String,
        /// The cause.
        reason: Box<dyn error::Error + Send + Sync>,
    },
}

impl SuspendError {
    /// The error that the state of `device` can't be saved.
    pub(super) fn state(
        device: &str,
        reason: impl Into<Box<dyn error::Error + Send + Sync>>,
    ) -> Self {
        SuspendError::State {
            device: device.to_owned(),
            reason: reason.into(),
        }
    }
}

/// Why a saved state was refused.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A field has an impossible value.
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
    /// The state has the wrong format.
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
        /// The state's version.
        found: u32,
        /// The known version.
        known: u32,
    },
    /// The state of a virtio device, or of the PCI root, does not fit.
    #[error(
        "the saved state of device {device:?} does not fit it ({reason}); restore it with the options that it was saved with"
    )]
    Virtio {
        /// The device.
        device: String,
        /// The cause.
        reason: Box<dyn error::Error + Send + Sync>,
    },
    /// The current state can't be saved. A failed restore needs it to go back.
    #[error(transparent)]
    Suspend(#[from] SuspendError),
    /// The machine and the saved state do not have the same devices.
    #[error(
        "the machine and its saved state differ in device {id:?}: restore it with the options that it was saved with"
    )]
    Devices {
        /// The first device that only one of them has, or whose position differs.
        id: String,
    },
    /// The interrupt for the restored state can't be raised.
    #[error("the interrupt of {device} could not be raised after a restore: {source}")]
    Interrupt {
        /// The device.
        device: &'static str,
        /// The host's error.
        source: io::Error,
    },
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The state of a device, which has it at once.
    pub(crate) fn state_of(device: &dyn Device) -> Option<Saved> {
        device.save(Instant::now()).unwrap()
    }

    /// The test suite for every device with a state. A snapshot survives serialization, a mutation is visible, and a
    /// restore undoes it, here and in a `fresh` device.
    pub(crate) fn check_suspend(device: &dyn Device, fresh: &dyn Device, mutate: impl FnOnce()) {
        device.pause();
        let saved = state_of(device).unwrap();
        let text = serde_json::to_string(&saved).unwrap();
        let parsed: Saved = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed, saved, "the text form loses nothing");
        device.resume();

        mutate();
        let mutated = state_of(device);
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
        assert_eq!(state_of(device), mutated, "what is refused changes nothing");

        device.restore(&parsed).unwrap();
        assert_eq!(
            state_of(device).as_ref(),
            Some(&saved),
            "restore undoes the mutation"
        );
        fresh.restore(&parsed).unwrap();
        assert_eq!(
            state_of(fresh),
            Some(saved),
            "a fresh device takes the state"
        );
    }

    /// The error of restoring `state` instead of the device's own.
    pub(crate) fn refusal<S: Serialize>(device: &dyn Device, state: &S) -> RestoreError {
        let saved = state_of(device).unwrap();
        let state = serde_json::to_value(state).unwrap();
        let bad = Saved {
            state,
            ..saved.clone()
        };
        let error = device.restore(&bad).unwrap_err();
        assert_eq!(
            state_of(device),
            Some(saved),
            "what is refused changes nothing"
        );
        error
    }
}
