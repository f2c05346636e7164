// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All devices of a machine: created from its plan, put on the bus, saved and restored together.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vcpu_loop::bus::{self, BusBuilder, BusDevice};
use vm_memory::GuestMemoryMmap;

use super::device::Parts;
use super::events;
use super::plug::Later;
use super::virtio::IoThreads;
use super::{Backends, Device, Offers, RestoreError, Saved, Slot, SuspendError};
use crate::config::VmSpec;
use crate::console::ConsoleOutput;
use crate::irq::Irqs;
use crate::outcome::OutcomeLatch;
use crate::sync::Worker;

/// How long a pause waits for requests in flight, of all devices together. A host that is slower has other problems.
pub(super) const DRAIN: Duration = Duration::from_secs(10);

/// What the devices of a machine are connected to.
#[derive(Clone, Copy, Debug)]
pub struct Connections<'a> {
    /// The machine's description.
    pub spec: &'a VmSpec,
    /// The console's output, if there is one.
    pub output: Option<&'a ConsoleOutput>,
    /// What they use on the host.
    pub backends: &'a Backends,
    /// Takes the outcome when the run ends.
    pub outcome: &'a OutcomeLatch,
    /// The machine's interrupts.
    pub irqs: &'a Irqs,
    /// The guest's memory.
    pub memory: &'a GuestMemoryMmap,
}

/// The devices of one machine.
#[derive(Debug)]
pub struct DeviceSet {
    // First, so that it stops before the devices that it serves are dropped.
    _thread: Option<Worker>,
    /// The threads of virtio devices. They end before guest memory is unmapped.
    pub(super) io: IoThreads,
    devices: Vec<Arc<dyn Device>>,
    pub(super) offers: Offers,
    pub(super) later: Option<Later>,
}

impl Drop for DeviceSet {
    fn drop(&mut self) {
        self.io.end();
    }
}

impl DeviceSet {
    /// Creates the devices of `slots` and puts them on `bus`.
    ///
    /// # Errors
    /// [`Error`] names the device.
    pub fn build(
        slots: &[Slot],
        connections: &Connections<'_>,
        bus: &mut BusBuilder,
    ) -> Result<Self, Error> {
        let mut set = DeviceSet {
            _thread: None,
            io: IoThreads::new(connections.outcome),
            devices: Vec::with_capacity(slots.len()),
            offers: Offers::default(),
            later: None,
        };
        let mut sources = Vec::new();
        for slot in slots {
            let mut parts = Parts {
                spec: connections.spec,
                outcome: connections.outcome,
                output: connections.output,
                backends: connections.backends,
                gsi: slot.gsi,
                irqs: connections.irqs,
                memory: connections.memory,
                io: &set.io,
                offers: &mut set.offers,
                events: &mut sources,
            };
            let device = (slot.build)(&mut parts).map_err(|reason| Error::Host {
                device: slot.id.to_string(),
                reason,
            })?;
            for (number, window) in slot.windows.iter().enumerate() {
                let device = Arc::clone(&device) as Arc<dyn BusDevice>;
                bus.insert(window.space, window.base, window.size, number, device)
                    .map_err(Error::Bus)?;
            }
            set.devices.push(device);
        }
        set.later = set.offers.slots.is_some().then(|| Later {
            outcome: connections.outcome.clone(),
            irqs: connections.irqs.clone(),
            memory: connections.memory.clone(),
        });
        set._thread = events::start(sources, connections.outcome).map_err(Error::Events)?;
        Ok(set)
    }

    /// What they provide to the process.
    pub fn offers(&self) -> &Offers {
        &self.offers
    }

    /// Stops input from outside of the machine and writes to guest memory.
    ///
    /// # Errors
    /// A device can't stop in time. All keep running then.
    pub fn pause(&self) -> Result<(), SuspendError> {
        self.devices.iter().for_each(|device| device.pause());
        let paused = self.io.pause(Instant::now() + DRAIN);
        paused.inspect_err(|_| self.resume())
    }

    /// Lets them take input again.
    pub fn resume(&self) {
        self.devices.iter().for_each(|device| device.resume());
        self.io.resume();
    }

    /// The states of the devices that have one.
    ///
    /// # Errors
    /// The host failed. All devices are unchanged.
    pub fn save(&self) -> Result<Vec<Saved>, SuspendError> {
        let by = Instant::now() + DRAIN;
        let states = self.devices.iter().map(|device| device.save(by));
        states.filter_map(Result::transpose).collect()
    }

    /// Restores saved states. After an error nothing has changed.
    ///
    /// # Errors
    /// The list of devices differs, or a device refuses its state.
    pub fn restore(&self, states: &[Saved]) -> Result<(), RestoreError> {
        let by = Instant::now() + DRAIN;
        let (mut stateful, mut before) = (Vec::new(), Vec::new());
        for device in &self.devices {
            if let Some(saved) = device.save(by)? {
                stateful.push(device);
                before.push(saved);
            }
        }
        check_list(&before, states)?;
        let restore_all = |states: &[Saved]| {
            let mut pairs = stateful.iter().zip(states);
            pairs.try_for_each(|(device, saved)| device.restore(saved))
        };
        restore_all(states).inspect_err(|_| {
            // A state that was just saved should restore. If it doesn't, the first error is more useful.
            let _ = restore_all(&before);
        })
    }
}

/// Checks that the same devices have states in `mine` and `theirs`.
fn check_list(mine: &[Saved], theirs: &[Saved]) -> Result<(), RestoreError> {
    let id = |states: &[Saved], at: usize| states.get(at).map(|saved| saved.id.clone());
    for at in 0..mine.len().max(theirs.len()) {
        let (mine, theirs) = (id(mine, at), id(theirs, at));
        if mine != theirs {
            let id = theirs.or(mine).unwrap_or_default();
            return Err(RestoreError::Devices { id });
        }
    }
    Ok(())
}

/// Why the devices can't be created.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host lacks a resource for a device.
    #[error("can't make device {device} ({reason}); raise the limit on open files (ulimit -n)")]
    Host {
        /// The device.
        device: String,
        /// The host's error.
        reason: io::Error,
    },
    /// The host lacks a thread or a file descriptor for their events.
    #[error(
        "can't wait for the devices' events ({0}); raise the limits on threads and open files (ulimit -u, ulimit -n)"
    )]
    Events(io::Error),
    /// Two devices claim the same addresses.
    #[error("can't put the devices on the bus ({0}); move the debug-exit port")]
    Bus(bus::Error),
}

#[cfg(test)]
mod tests {
    use super::super::device::tests::{check_suspend, state_of};
    use super::*;
    use crate::config::SerialSpec;
    use crate::layout;
    use crate::plan::MachinePlan;

    /// The devices of a machine with or without COM1 and debug-exit port, and their bus.
    fn devices(serial: bool, debug_exit: Option<u16>) -> (DeviceSet, Arc<bus::Bus>) {
        let mut spec = VmSpec::new("vmlinux");
        (spec.debug_exit, spec.rtc) = (debug_exit, true);
        spec.serial = if serial {
            SerialSpec::Stdio
        } else {
            SerialSpec::Off
        };
        let plan = MachinePlan::new(&spec).unwrap();
        let output = serial.then(ConsoleOutput::discard);
        let outcome = OutcomeLatch::new().unwrap();
        let mut bus = BusBuilder::new();
        let irqs = Irqs::unconnected();
        let connections = Connections {
            spec: &spec,
            output: output.as_ref(),
            backends: &Backends::default(),
            outcome: &outcome,
            irqs: &irqs,
            memory: &GuestMemoryMmap::new(),
        };
        let set = DeviceSet::build(&plan.devices, &connections, &mut bus);
        (set.unwrap(), bus.build())
    }

    #[test]
    fn what_they_offer_depends_on_what_there_is() {
        let (with, _) = devices(true, None);
        assert!(with.offers().console_input.is_some() && with.offers().power_button.is_some());
        let (without, _) = devices(false, None);
        assert!(without.offers().console_input.is_none());
        assert!(without.offers().power_button.is_some());
    }

    #[test]
    fn another_set_of_devices_is_refused() {
        let ((with, _), (without, _)) = (devices(true, None), devices(false, None));
        for (machine, other) in [(&with, &without), (&without, &with)] {
            let before = machine.save().unwrap();
            let error = machine.restore(&other.save().unwrap()).unwrap_err();
            assert!(error.to_string().contains("\"serial\""), "{error}");
            assert_eq!(machine.save().unwrap(), before);
        }
    }

    #[test]
    fn a_bad_part_leaves_all_as_it_was() {
        let (set, bus) = devices(true, None);
        let saved = set.save().unwrap();
        // Each state is changed, so that the first ones are restored before the last one is refused.
        let _ = bus.pio_write(layout::ACPI_SLEEP_CONTROL, &[4]);
        let _ = bus.pio_write(layout::SERIAL + 7, &[1]);
        let before = set.save().unwrap();
        for bad in 0..saved.len() {
            let mut states = saved.clone();
            states[bad].version = 99;
            set.restore(&states).unwrap_err();
            assert_eq!(set.save().unwrap(), before);
        }
        set.restore(&saved).unwrap();
        assert_eq!(set.save().unwrap(), saved);
    }

    #[test]
    fn a_port_that_is_taken_is_no_debug_exit() {
        let spec = VmSpec {
            debug_exit: Some(layout::PVPANIC),
            ..VmSpec::new("vmlinux")
        };
        let plan = MachinePlan::new(&spec).unwrap();
        let outcome = OutcomeLatch::new().unwrap();
        let irqs = Irqs::unconnected();
        let output = ConsoleOutput::discard();
        let mut bus = BusBuilder::new();
        let connections = Connections {
            spec: &spec,
            output: Some(&output),
            backends: &Backends::default(),
            outcome: &outcome,
            irqs: &irqs,
            memory: &GuestMemoryMmap::new(),
        };
        let error = DeviceSet::build(&plan.devices, &connections, &mut bus);
        assert!(matches!(error, Err(Error::Bus(_))), "{error:?}");
    }

    #[test]
    fn every_device_with_a_state_passes_the_suite() {
        let ((set, bus), (fresh, _)) = (devices(true, None), devices(true, None));
        let change = |id: &str| match id {
            "acpi" => bus.pio_write(layout::ACPI_SLEEP_CONTROL, &[4]),
            "cf9" => bus.pio_write(layout::CF9_RESET, &[2]),
            "rtc" => bus.pio_write(layout::RTC, &[1]),
            "serial" => bus.pio_write(layout::SERIAL + 7, &[1]),
            other => panic!("how is device {other} changed?"),
        };
        let stateful = |set: &DeviceSet| {
            let devices = set
                .devices
                .iter()
                .filter(|device| state_of(&***device).is_some());
            devices.cloned().collect::<Vec<_>>()
        };
        for (device, fresh) in stateful(&set).iter().zip(stateful(&fresh)) {
            let id = state_of(&**device).unwrap().id;
            check_suspend(&**device, &*fresh, || {
                let _ = change(&id);
            });
        }
    }
}
