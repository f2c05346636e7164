// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The PC's keyboard controller, of which only the reset line is there.

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use super::port::{port, read_byte, written_byte};
use super::{PortRange, RestoreError, Suspend};
use crate::layout::{I8042_DATA, I8042_STATUS};
use crate::outcome::{Outcome, OutcomeLatch};

/// Status: the output buffer holds a byte. It always does, so a driver that drains the buffer before
/// it talks to the controller (Linux: 16 reads) gives up at once and finds no controller, instead of
/// waiting half a second for the answer to its first command. The "input buffer full" bit stays
/// clear: Linux waits for that before it pulses the reset line.
const STATUS: u8 = 0x01;
/// Commands 0xF0 to 0xFF pulse the output lines whose bit is clear; line 0 is the CPU's reset.
const PULSE_COMMANDS: std::ops::RangeInclusive<u8> = 0xf0..=0xff;
const PULSE_RESET_INACTIVE: u8 = 0x01;

/// Ports 0x60 and 0x64: writing 0xFE to the command port is a [`Outcome::Reset`].
#[derive(Debug)]
pub struct I8042 {
    outcome: OutcomeLatch,
}

impl I8042 {
    /// A controller that reports resets to `outcome`.
    pub fn new(outcome: OutcomeLatch) -> Self {
        I8042 { outcome }
    }

    /// The ports it claims.
    pub fn ports(&self) -> [PortRange; 2] {
        [
            PortRange::new(I8042_DATA, 1),
            PortRange::new(I8042_STATUS, 1),
        ]
    }
}

impl DevicePio for I8042 {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        read_byte(data, || {
            (port(base, offset) == I8042_STATUS).then_some(STATUS)
        });
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let resets =
            |command| PULSE_COMMANDS.contains(&command) && command & PULSE_RESET_INACTIVE == 0;
        if port(base, offset) == I8042_STATUS && written_byte(data).is_some_and(resets) {
            self.outcome.set(Outcome::Reset);
        }
    }
}

impl Suspend for I8042 {
    type State = ();

    fn save(&self) {}

    fn restore(&self, _state: &()) -> Result<(), RestoreError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::port::tests::{check_odd_accesses, read, write};
    use super::super::suspend::tests::check_stateless;
    use super::*;

    #[test]
    fn only_the_reset_pulse_resets() {
        for command in 0..=u8::MAX {
            let outcome = OutcomeLatch::new().unwrap();
            let i8042 = I8042::new(outcome.clone());
            write(&i8042, I8042_DATA, &[command]);
            write(&i8042, I8042_STATUS, &[command, 0]);
            assert!(!outcome.is_set());
            write(&i8042, I8042_STATUS, &[command]);
            let resets = command >= 0xf0 && command % 2 == 0;
            assert_eq!(outcome.is_set(), resets, "command {command:#x}");
        }
    }

    #[test]
    fn probe_finds_no_controller_and_reset_waits_for_nothing() {
        let i8042 = I8042::new(OutcomeLatch::new().unwrap());
        // The drain never ends: bit 0 stays set. The wait before a command ends at once: bit 1 is clear.
        for _ in 0..32 {
            assert_eq!(read(&i8042, I8042_STATUS), [0x01]);
            assert_eq!(read(&i8042, I8042_DATA), [0xff]);
        }
    }

    #[test]
    fn odd_accesses_are_harmless() {
        let outcome = OutcomeLatch::new().unwrap();
        let i8042 = I8042::new(outcome.clone());
        for range in i8042.ports() {
            check_odd_accesses(&i8042, range);
        }
        assert!(!outcome.is_set());
    }

    #[test]
    fn suspends() {
        check_stateless(&I8042::new(OutcomeLatch::new().unwrap()));
    }
}
