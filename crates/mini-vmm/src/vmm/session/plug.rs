// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that come and go while the guest runs.

use std::time::{Duration, Instant};

use super::Session;
use crate::devices::{NewDevice, SlotError};
use crate::telemetry::Event;
use crate::vmm::control::{self, Answer, Command, Envelope, GIVE_UP};

/// A device that the guest is asked to give up.
#[derive(Debug)]
pub(super) struct Removal {
    slot: u8,
    by: Instant,
    /// Who waits for it.
    envelope: Envelope,
}

impl Session<'_> {
    /// Adds a device, and tells the guest.
    pub(super) fn add(&mut self, device: &NewDevice) -> Result<(), control::Error> {
        let slot = device.slot().ok_or(SlotError::None)?;
        let (backends, spec) = self.run.backends();
        let before = (backends.clone(), spec.clone());
        backends.add(device, spec);
        let possible = spec.check_devices().map_err(control::Error::NotPossible);
        let added = possible.and_then(|()| Ok(self.machine.devices.plug(slot, spec, backends)?));
        if added.is_err() {
            (*backends, *spec) = before;
            return added;
        }
        self.run.count(&self.machine);
        self.run.reporter.events.say(&Event::DeviceAdded(slot));
        Ok(())
    }

    /// Removes a device: at once, or when the guest has given it up. Returns the answer, or keeps the envelope until then.
    pub(super) fn remove(
        &mut self,
        envelope: Envelope,
    ) -> Option<(Envelope, Result<Answer, control::Error>)> {
        let Command::RemoveDevice { slot, force } = envelope.command else {
            return Some((envelope, Ok(Answer::Done)));
        };
        if self.run.spec.taken_slots().all(|taken| taken != slot) {
            return Some((envelope, Err(control::Error::NoDevice)));
        }
        if force {
            self.unplug(slot);
            // Who waits for the guest need not any more.
            self.finish_removals();
            return Some((envelope, Ok(Answer::Done)));
        }
        if self.removals.iter().any(|removal| removal.slot == slot) {
            return Some((envelope, Err(control::Error::Leaving)));
        }
        self.machine.devices.ask_for(slot);
        let by = Instant::now() + GIVE_UP;
        self.removals.push(Removal { slot, by, envelope });
        None
    }

    /// Removes what the guest has given up, and answers who waits for that, or has waited for too long.
    pub(super) fn finish_removals(&mut self) {
        let slots: Vec<_> = self.removals.iter().map(|removal| removal.slot).collect();
        for slot in slots {
            if self.machine.devices.is_given_up(slot) {
                self.unplug(slot);
            }
        }
        let now = Instant::now();
        let devices = &self.machine.devices;
        for removal in std::mem::take(&mut self.removals) {
            let is_gone = self
                .run
                .spec
                .taken_slots()
                .all(|taken| taken != removal.slot);
            if is_gone {
                removal.envelope.answer(Ok(Answer::Done));
            } else if removal.by <= now && devices.withdraw(removal.slot) {
                removal.envelope.answer(Err(control::Error::NotGivenUp));
            } else {
                self.removals.push(removal);
            }
        }
    }

    /// How long the loop may sleep for the sake of removals, in milliseconds; -1 for ever.
    pub(super) fn until_removal(&self) -> i32 {
        let next = self.removals.iter().map(|removal| removal.by).min();
        next.map_or(-1, |by| {
            let wait = by.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            i32::try_from(wait.as_millis()).unwrap_or(i32::MAX)
        })
    }

    /// The next machine doesn't have the devices that this one's guest was to give up.
    pub(super) fn forget_removed(&mut self) {
        for removal in std::mem::take(&mut self.removals) {
            let (backends, spec) = self.run.backends();
            backends.remove(removal.slot, spec);
            removal.envelope.answer(Ok(Answer::Done));
        }
    }

    fn unplug(&mut self, slot: u8) {
        self.machine.devices.unplug(slot, &self.run.spec);
        let (backends, spec) = self.run.backends();
        backends.remove(slot, spec);
        self.run.count(&self.machine);
        self.run.reporter.events.say(&Event::DeviceRemoved(slot));
    }
}
