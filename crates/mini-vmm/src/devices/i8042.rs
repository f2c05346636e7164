// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The PC's keyboard controller, with only the reset line.

use std::sync::Arc;

use vcpu_loop::Next;
use vcpu_loop::bus::{BusDevice, Place};

use super::port::{read_byte, write_byte};
use super::{Device, Slot, Window};
use crate::config::VmSpec;
use crate::irq::{NoPin, Pins};
use crate::layout::{I8042_DATA, I8042_STATUS};
use crate::outcome::{Outcome, OutcomeLatch};

const ID: &str = "i8042";
/// The index of the window with the status and command port. The data port has its own.
const STATUS_WINDOW: usize = 1;

/// Every machine has it.
pub(super) fn plan(_: &VmSpec, _: &mut Pins) -> Result<Option<Slot>, NoPin> {
    let windows = [Window::ports(I8042_DATA, 1), Window::ports(I8042_STATUS, 1)];
    Ok(Some(Slot::new(ID, &windows, |parts| {
        Ok(Arc::new(I8042::new(parts.outcome.clone())))
    })))
}

/// Status: the output buffer holds a byte. It always does. So a driver that drains the buffer first (Linux: 16 reads)
/// gives up at once and finds no controller. Otherwise it would wait half a second for the answer to its first command.
/// The "input buffer full" bit stays clear, since Linux waits for that before it pulses the reset line.
const STATUS: u8 = 0x01;
/// Commands 0xF0 to 0xFF pulse the output lines whose bit is clear. Line 0 is the CPU's reset.
const PULSE_COMMANDS: std::ops::RangeInclusive<u8> = 0xf0..=0xff;
const PULSE_RESET_INACTIVE: u8 = 0x01;

/// Ports 0x60 and 0x64: writing 0xFE to the command port is an [`Outcome::Reset`].
#[derive(Debug)]
pub struct I8042 {
    outcome: OutcomeLatch,
}

impl I8042 {
    /// A controller that reports resets to `outcome`.
    pub fn new(outcome: OutcomeLatch) -> Self {
        I8042 { outcome }
    }
}

impl BusDevice for I8042 {
    fn read(&self, place: Place, data: &mut [u8]) -> Next {
        read_byte(data, || (place.window == STATUS_WINDOW).then_some(STATUS))
    }

    fn write(&self, place: Place, data: &[u8]) -> Next {
        write_byte(data, |command| {
            let resets = PULSE_COMMANDS.contains(&command) && command & PULSE_RESET_INACTIVE == 0;
            if place.window == STATUS_WINDOW && resets {
                self.outcome.set(Outcome::Reset);
            }
        })
    }
}

impl Device for I8042 {}

#[cfg(test)]
mod tests {
    use super::super::port::tests::{check_odd_accesses, read_at};
    use super::*;

    const DATA: Place = Place {
        window: 0,
        offset: 0,
    };
    const COMMAND: Place = Place {
        window: 1,
        offset: 0,
    };

    #[test]
    fn only_the_reset_pulse_resets() {
        for command in 0..=u8::MAX {
            let outcome = OutcomeLatch::new().unwrap();
            let i8042 = I8042::new(outcome.clone());
            let _ = i8042.write(DATA, &[command]);
            let _ = i8042.write(COMMAND, &[command, 0]);
            assert!(!outcome.is_set());
            let _ = i8042.write(COMMAND, &[command]);
            let resets = command >= 0xf0 && command % 2 == 0;
            assert_eq!(outcome.is_set(), resets, "command {command:#x}");
        }
    }

    #[test]
    fn probe_finds_no_controller_and_reset_waits_for_nothing() {
        let i8042 = I8042::new(OutcomeLatch::new().unwrap());
        // The drain never ends: bit 0 stays set. The wait before a command ends at once: bit 1 is clear.
        for _ in 0..32 {
            assert_eq!(read_at(&i8042, COMMAND), [0x01]);
            assert_eq!(read_at(&i8042, DATA), [0xff]);
        }
    }

    #[test]
    fn odd_accesses_are_harmless() {
        let outcome = OutcomeLatch::new().unwrap();
        let i8042 = I8042::new(outcome.clone());
        check_odd_accesses(&i8042, &[1, 1]);
        assert!(!outcome.is_set());
    }
}
