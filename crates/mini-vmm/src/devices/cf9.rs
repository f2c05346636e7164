// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reset control register of PC chipsets (Intel ICH datasheets, "RST_CNT", I/O port CF9h).

use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vcpu_loop::Next;
use vcpu_loop::bus::{BusDevice, Place};

use super::port::{read_byte, write_byte};
use super::{Device, RestoreError, Saved, Slot, SuspendError, Window};
use crate::config::VmSpec;
use crate::irq::{NoPin, Pins};
use crate::layout::CF9_RESET;
use crate::outcome::{Outcome, OutcomeLatch};
use crate::sync::lock;

const ID: &str = "cf9";
const VERSION: u32 = 1;

/// Every machine has it.
pub(super) fn plan(_: &VmSpec, _: &mut Pins) -> Result<Option<Slot>, NoPin> {
    let windows = [Window::ports(CF9_RESET, 1)];
    Ok(Some(Slot::new(ID, &windows, |parts| {
        Ok(Arc::new(Cf9::new(parts.outcome.clone())))
    })))
}

/// RST_CPU: going from 0 to 1 resets.
const RESET_CPU: u8 = 1 << 2;
/// SYS_RST (bit 1) and FULL_RST (bit 3) select the kind of reset. They can be read back.
const KIND: u8 = (1 << 1) | (1 << 3);

/// Port 0xCF9: a write that sets bit 2 is an [`Outcome::Reset`].
#[derive(Debug)]
pub struct Cf9 {
    outcome: OutcomeLatch,
    state: Mutex<Cf9State>,
}

/// The saved state of a [`Cf9`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cf9State {
    /// The selected kind of reset, bits 1 and 3.
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
}

impl BusDevice for Cf9 {
    fn read(&self, place: Place, data: &mut [u8]) -> Next {
        read_byte(data, || (place.offset == 0).then(|| lock(&self.state).kind))
    }

    fn write(&self, place: Place, data: &[u8]) -> Next {
        write_byte(data, |value| {
            if place.offset != 0 {
                return;
            }
            lock(&self.state).kind = value & KIND;
            if value & RESET_CPU != 0 {
                self.outcome.set(Outcome::Reset);
            }
        })
    }
}

impl Device for Cf9 {
    fn save(&self, _: Instant) -> Result<Option<Saved>, SuspendError> {
        Saved::new(ID, VERSION, &*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let Cf9State { kind } = saved.read(ID, VERSION)?;
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
    use super::super::device::tests::{check_suspend, refusal};
    use super::super::port::tests::{check_odd_accesses, read, write};
    use super::*;

    fn cf9() -> (Cf9, OutcomeLatch) {
        let outcome = OutcomeLatch::new().unwrap();
        (Cf9::new(outcome.clone()), outcome)
    }

    #[test]
    fn bit_2_resets() {
        for value in 0..=u8::MAX {
            let (cf9, outcome) = cf9();
            write(&cf9, 0, &[value]);
            assert_eq!(outcome.get().is_some(), value & 4 != 0, "value {value:#x}");
            assert_eq!(read(&cf9, 0), [value & 0x0a]);
        }
    }

    #[test]
    fn linux_sequence_resets() {
        let (cf9, outcome) = cf9();
        let [value] = read(&cf9, 0);
        let value = value & !0x0e;
        write(&cf9, 0, &[value | 0x02]);
        assert_eq!(outcome.get(), None);
        write(&cf9, 0, &[value | 0x0e]);
        assert_eq!(outcome.get(), Some(Outcome::Reset));
    }

    #[test]
    fn odd_accesses_are_harmless() {
        let (cf9, outcome) = cf9();
        check_odd_accesses(&cf9, &[1]);
        write(&cf9, 0, &[0x0e, 0x0e]);
        assert!(!outcome.is_set());
    }

    #[test]
    fn suspends() {
        let (device, _) = cf9();
        write(&device, 0, &[2]);
        check_suspend(&device, &cf9().0, || write(&device, 0, &[8]));
        let error = refusal(&device, &Cf9State { kind: 4 });
        assert!(error.to_string().contains("kind = 0x4"));
        assert_eq!(read(&device, 0), [2]);
    }
}
