// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The PM1 registers of an ACPI platform with fixed hardware (ACPI 6.5, section 4.8.3). Only soft-off has an effect.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use log::warn;
use serde::{Deserialize, Serialize};
use vcpu_loop::Next;
use vcpu_loop::bus::{BusDevice, Place};

use super::{Device, RestoreError, Saved, Slot, SuspendError, Window};
use crate::config::VmSpec;
use crate::irq::{NoPin, Pins};
use crate::layout::{ACPI_S5_SLEEP_TYPE, PM1_CONTROL, PM1_EVENTS, PM1_SIZE};
use crate::outcome::{Outcome, OutcomeLatch};
use crate::sync::lock;

const ID: &str = "pm1";
const VERSION: u32 = 1;

// Offsets of its registers, of 16 bits each.
const ENABLE: u64 = 2;
const CONTROL: u64 = (PM1_CONTROL - PM1_EVENTS) as u64;

/// A machine with a PIT and a PIC has it.
pub(super) fn plan(spec: &VmSpec, _: &mut Pins) -> Result<Option<Slot>, NoPin> {
    let windows = [Window::ports(PM1_EVENTS, PM1_SIZE)];
    Ok(spec.legacy_timer.then(|| {
        Slot::new(ID, &windows, |parts| {
            Ok(Arc::new(Pm1::new(parts.outcome.clone())))
        })
    }))
}

// The PM1 control register: bit 0 SCI_EN, bits 12:10 SLP_TYPx, bit 13 SLP_EN (reads zero).
const SCI_ENABLED: u64 = 1;
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_TYPE: u16 = 0b111 << SLEEP_TYPE_SHIFT;
const SLEEP_ENABLE: u16 = 1 << 13;

/// PM1 event and control registers. There are no fixed events: no status bit is ever set, and nothing raises the SCI.
/// The platform is always in ACPI mode.
#[derive(Debug)]
pub struct Pm1 {
    outcome: OutcomeLatch,
    state: Mutex<Pm1State>,
}

/// The saved state of a [`Pm1`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pm1State {
    /// The enable register. It keeps what the guest writes, since Linux checks that.
    pub enable: u16,
}

impl Pm1 {
    /// Registers that report soft-off to `outcome`.
    pub fn new(outcome: OutcomeLatch) -> Self {
        Pm1 {
            outcome,
            state: Mutex::default(),
        }
    }

    fn control(&self, value: u16) {
        if value & SLEEP_ENABLE == 0 {
            return;
        }
        let sleep_type = (value & SLEEP_TYPE) >> SLEEP_TYPE_SHIFT;
        if sleep_type == u16::from(ACPI_S5_SLEEP_TYPE) {
            self.outcome.set(Outcome::PowerOff);
            return;
        }
        warn!("the guest asked for sleep type {sleep_type}, which does not exist: ignored");
    }
}

impl BusDevice for Pm1 {
    /// Reads of any width return the registers' bytes.
    fn read(&self, place: Place, data: &mut [u8]) -> Next {
        let enable = u64::from(lock(&self.state).enable);
        let registers = (enable << (8 * ENABLE) | SCI_ENABLED << (8 * CONTROL)).to_le_bytes();
        let bytes = usize::try_from(place.offset)
            .ok()
            .and_then(|start| registers.get(start..start.checked_add(data.len())?));
        match bytes {
            Some(bytes) => data.copy_from_slice(bytes),
            None => return Next::Unclaimed,
        }
        Next::Continue
    }

    /// Only a 16-bit write at a register's start has an effect.
    fn write(&self, place: Place, data: &[u8]) -> Next {
        let &[low, high] = data else {
            return Next::Unclaimed;
        };
        let value = u16::from_le_bytes([low, high]);
        match place.offset {
            ENABLE => lock(&self.state).enable = value,
            CONTROL => self.control(value),
            _ => {}
        }
        Next::Continue
    }
}

impl Device for Pm1 {
    fn save(&self, _: Instant) -> Result<Option<Saved>, SuspendError> {
        Saved::new(ID, VERSION, &*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        *lock(&self.state) = saved.read(ID, VERSION)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::device::tests::check_suspend;
    use super::super::port::tests::{read, write};
    use super::*;

    fn pm1() -> Pm1 {
        Pm1::new(OutcomeLatch::new().unwrap())
    }

    #[test]
    fn s5_needs_its_type_the_enable_bit_and_all_16_bits() {
        for value in 0..=u16::MAX {
            let pm1 = pm1();
            write(&pm1, 0, &value.to_le_bytes());
            write(&pm1, CONTROL, &[value as u8]);
            write(&pm1, CONTROL + 1, &[(value >> 8) as u8]);
            assert!(!pm1.outcome.is_set());
            write(&pm1, CONTROL, &value.to_le_bytes());
            let expected = (value & 0x3c00 == 0x3400).then_some(Outcome::PowerOff);
            assert_eq!(pm1.outcome.get(), expected, "value {value:#x}");
        }
    }

    #[test]
    fn the_platform_is_in_acpi_mode_and_has_no_events() {
        let pm1 = pm1();
        write(&pm1, 0, &[0xff, 0xff]);
        write(&pm1, ENABLE, &[0x20, 0x01]);
        write(&pm1, CONTROL, &[0, 0x14]);
        assert_eq!(read(&pm1, 0), [0, 0, 0x20, 0x01]);
        assert_eq!(read(&pm1, ENABLE), [0x20, 0x01]);
        assert_eq!(read(&pm1, CONTROL), [1, 0]);
        assert_eq!(read(&pm1, CONTROL + 1), [0]);
    }

    #[test]
    fn no_access_is_a_panic() {
        let pm1 = pm1();
        for offset in [0, 1, 3, 5, 6, 7, 8, u64::MAX] {
            for len in [0, 1, 2, 3, 4, 8, 4096] {
                let place = Place { window: 0, offset };
                let _ = pm1.read(place, &mut vec![0; len]);
                let _ = pm1.write(place, &vec![0; len]);
            }
        }
        assert!(!pm1.outcome.is_set());
    }

    #[test]
    fn only_machines_with_the_timer_have_it() {
        let mut spec = VmSpec::new("vmlinux");
        assert!(plan(&spec, &mut Pins::new()).unwrap().is_none());
        spec.legacy_timer = true;
        assert!(plan(&spec, &mut Pins::new()).unwrap().is_some());
    }

    #[test]
    fn suspends() {
        let device = pm1();
        check_suspend(&device, &pm1(), || write(&device, ENABLE, &[0x20, 0]));
    }
}
