// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The debug-exit port, for test kernels: the guest chooses the exit code (QEMU's `isa-debug-exit`).

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use super::{PortRange, RestoreError, Suspend};
use crate::layout::DEBUG_EXIT_SIZE;
use crate::outcome::{Outcome, OutcomeLatch};

/// A write-only port: the low byte of what is written is an [`Outcome::DebugExit`].
#[derive(Debug)]
pub struct DebugExit {
    port: u16,
    outcome: OutcomeLatch,
}

impl DebugExit {
    /// A debug exit at `port` that reports to `outcome`.
    pub fn new(port: u16, outcome: OutcomeLatch) -> Self {
        DebugExit { port, outcome }
    }

    /// The ports it claims: four, fewer at the end of the port space.
    pub fn ports(&self) -> [PortRange; 1] {
        let room = (u16::MAX - self.port).saturating_add(1);
        [PortRange::new(self.port, room.min(DEBUG_EXIT_SIZE))]
    }
}

impl DevicePio for DebugExit {
    fn pio_read(&self, _base: PioAddress, _offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let (true, Some(value)) = (super::port::port(base, offset) == self.port, data.first()) {
            self.outcome.set(Outcome::DebugExit(*value));
        }
    }
}

impl Suspend for DebugExit {
    type State = ();

    fn save(&self) {}

    fn restore(&self, _state: &()) -> Result<(), RestoreError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::port::tests::{read, write};
    use super::super::suspend::tests::check_stateless;
    use super::*;
    use crate::layout::DEBUG_EXIT;

    #[test]
    fn low_byte_of_any_width_is_the_value() {
        for data in [&[7][..], &[7, 1], &[7, 1, 2, 3]] {
            let outcome = OutcomeLatch::new().unwrap();
            write(
                &DebugExit::new(DEBUG_EXIT, outcome.clone()),
                DEBUG_EXIT,
                data,
            );
            assert_eq!(outcome.get(), Some(Outcome::DebugExit(7)));
        }
    }

    #[test]
    fn odd_accesses_are_harmless() {
        let outcome = OutcomeLatch::new().unwrap();
        let device = DebugExit::new(DEBUG_EXIT, outcome.clone());
        assert_eq!(read(&device, DEBUG_EXIT), [0xff; 4]);
        write(&device, DEBUG_EXIT + 1, &[1]);
        write(&device, DEBUG_EXIT, &[]);
        assert!(!outcome.is_set());
        check_stateless(&device);
    }

    #[test]
    fn range_ends_with_the_port_space() {
        let sizes = [0xf4, 0xfffc, 0xfffd, 0xffff]
            .map(|port| DebugExit::new(port, OutcomeLatch::new().unwrap()).ports()[0].size);
        assert_eq!(sizes, [4, 4, 3, 1]);
    }
}
