// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! pvpanic: the guest tells that its kernel panicked (QEMU, `docs/specs/pvpanic`).

use log::warn;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use super::port::{port, read_byte, written_byte};
use super::{PortRange, RestoreError, Suspend};
use crate::layout::PVPANIC;
use crate::outcome::{Outcome, OutcomeLatch};
use crate::spec::OnPanic;

/// The kernel panicked, and does not handle it itself.
const PANICKED: u8 = 1 << 0;
/// The kernel panicked and hands over to its crash kernel.
const CRASH_LOADED: u8 = 1 << 1;

/// Port 0x505: reads tell the supported events, a write reports one.
#[derive(Debug)]
pub struct Pvpanic {
    on_panic: OnPanic,
    outcome: OutcomeLatch,
}

impl Pvpanic {
    /// A device that treats a panic as `on_panic` says.
    pub fn new(on_panic: OnPanic, outcome: OutcomeLatch) -> Self {
        Pvpanic { on_panic, outcome }
    }

    /// The port it claims.
    pub fn ports(&self) -> [PortRange; 1] {
        [PortRange::new(PVPANIC, 1)]
    }
}

impl DevicePio for Pvpanic {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        read_byte(data, || {
            (port(base, offset) == PVPANIC).then_some(PANICKED | CRASH_LOADED)
        });
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let (PVPANIC, Some(event)) = (port(base, offset), written_byte(data)) else {
            return;
        };
        if event & PANICKED != 0 {
            match self.on_panic {
                OnPanic::Exit => {
                    self.outcome.set(Outcome::GuestPanic);
                }
                OnPanic::Continue => warn!("the guest's kernel panicked (pvpanic); it goes on"),
            }
        } else if event & CRASH_LOADED != 0 {
            warn!("the guest's kernel panicked (pvpanic); its crash kernel takes over");
        } else {
            warn!("pvpanic: unknown event {event:#x} from the guest");
        }
    }
}

impl Suspend for Pvpanic {
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

    fn outcome_of(on_panic: OnPanic, event: u8) -> Option<Outcome> {
        let outcome = OutcomeLatch::new().unwrap();
        write(&Pvpanic::new(on_panic, outcome.clone()), PVPANIC, &[event]);
        outcome.get()
    }

    #[test]
    fn only_a_panic_ends_the_run_and_only_if_asked() {
        assert_eq!(outcome_of(OnPanic::Exit, 1), Some(Outcome::GuestPanic));
        assert_eq!(outcome_of(OnPanic::Exit, 3), Some(Outcome::GuestPanic));
        assert_eq!(outcome_of(OnPanic::Continue, 1), None);
        assert_eq!(outcome_of(OnPanic::Exit, 2), None);
        assert_eq!(outcome_of(OnPanic::Exit, 0), None);
        assert_eq!(outcome_of(OnPanic::Exit, 0xfc), None);
    }

    #[test]
    fn read_tells_both_events() {
        let device = Pvpanic::new(OnPanic::Exit, OutcomeLatch::new().unwrap());
        assert_eq!(read(&device, PVPANIC), [0x03]);
        check_odd_accesses(&device, device.ports()[0]);
        assert!(!device.outcome.is_set());
        check_stateless(&device);
    }
}
