// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reset control register of PC chipsets (Intel ICH datasheets, "RST_CNT", I/O port CF9h).

use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use super::port::{lock, port, read_byte, written_byte};
use super::{PortRange, RestoreError, Suspend};
use crate::layout::CF9_RESET;
use crate::outcome::{Outcome, OutcomeLatch};

/// RST_CPU: going from 0 to 1 resets.
const RESET_CPU: u8 = 1 << 2;
/// SYS_RST (bit 1) and FULL_RST (bit 3) choose the kind of reset, and read back.
const KIND: u8 = (1 << 1) | (1 << 3);

/// Port 0xCF9: a write with bit 2 set is a [`Outcome::Reset`].
#[derive(Debug)]
pub struct Cf9 {
    outcome: OutcomeLatch,
    state: Mutex<Cf9State>,
}

/// The saved state of a [`Cf9`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cf9State {
    /// The kind of reset that was chosen, bits 1 and 3.
    pub kind: u8,
}

impl Cf9 {
    /// A register that reports resets to `outcome`.
    pub fn new(outcome: OutcomeLatch) -> Self {
        Cf9 {
            outcome,
            state: Mutex::default(),
        }
    }

    /// The port it claims.
    pub fn ports(&self) -> [PortRange; 1] {
        [PortRange::new(CF9_RESET, 1)]
    }
}

impl DevicePio for Cf9 {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        read_byte(data, || {
            (port(base, offset) == CF9_RESET).then(|| lock(&self.state).kind)
        });
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let (CF9_RESET, Some(value)) = (port(base, offset), written_byte(data)) {
            lock(&self.state).kind = value & KIND;
            if value & RESET_CPU != 0 {
                self.outcome.set(Outcome::Reset);
            }
        }
    }
}

impl Suspend for Cf9 {
    type State = Cf9State;

    fn save(&self) -> Cf9State {
        *lock(&self.state)
    }

    fn restore(&self, state: &Cf9State) -> Result<(), RestoreError> {
        let Cf9State { kind } = *state;
        if kind & !KIND != 0 {
            return Err(RestoreError::Field {
                device: "the CF9 reset register",
                field: "kind",
                value: kind.into(),
            });
        }
        *lock(&self.state) = Cf9State { kind };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::port::tests::{check_odd_accesses, read, write};
    use super::super::suspend::tests::check_suspend;
    use super::*;

    fn cf9() -> (Cf9, OutcomeLatch) {
        let outcome = OutcomeLatch::new().unwrap();
        (Cf9::new(outcome.clone()), outcome)
    }

    #[test]
    fn bit_2_resets() {
        for value in 0..=u8::MAX {
            let (cf9, outcome) = cf9();
            write(&cf9, CF9_RESET, &[value]);
            assert_eq!(outcome.get().is_some(), value & 4 != 0, "value {value:#x}");
            assert_eq!(read(&cf9, CF9_RESET), [value & 0x0a]);
        }
    }

    #[test]
    fn linux_sequence_resets() {
        let (cf9, outcome) = cf9();
        let [value] = read(&cf9, CF9_RESET);
        let value = value & !0x0e;
        write(&cf9, CF9_RESET, &[value | 0x02]);
        assert_eq!(outcome.get(), None);
        write(&cf9, CF9_RESET, &[value | 0x0e]);
        assert_eq!(outcome.get(), Some(Outcome::Reset));
    }

    #[test]
    fn odd_accesses_are_harmless() {
        let (cf9, outcome) = cf9();
        check_odd_accesses(&cf9, cf9.ports()[0]);
        write(&cf9, CF9_RESET, &[0x0e, 0x0e]);
        assert!(!outcome.is_set());
    }

    #[test]
    fn suspends() {
        let (device, _) = cf9();
        write(&device, CF9_RESET, &[2]);
        check_suspend(&device, &cf9().0, |cf9| write(cf9, CF9_RESET, &[8]));
        let bad = Cf9State { kind: 4 };
        assert!(
            device
                .restore(&bad)
                .unwrap_err()
                .to_string()
                .contains("kind = 0x4")
        );
        assert_eq!(device.save(), Cf9State { kind: 2 });
    }
}
