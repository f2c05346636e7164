// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! pvpanic: the guest reports that its kernel panicked (QEMU, `docs/specs/pvpanic`).

use std::sync::Arc;

use acpi_tables::Aml;
use acpi_tables::aml::{Device as AmlDevice, IO, Name, ResourceTemplate};
use log::warn;
use vcpu_loop::Next;
use vcpu_loop::bus::{BusDevice, Place};

use super::port::{read_byte, write_byte};
use super::{Device, Slot, Window};
use crate::config::{OnPanic, VmSpec};
use crate::irq::{NoPin, Pins};
use crate::layout::PVPANIC;
use crate::outcome::{Outcome, OutcomeLatch};
use crate::telemetry::{Event, EventLog};

const ID: &str = "pvpanic";

/// Every machine has it.
pub(super) fn plan(_: &VmSpec, _: &mut Pins) -> Result<Option<Slot>, NoPin> {
    let mut slot = Slot::new(ID, &[Window::ports(PVPANIC, 1)], |parts| {
        let (on_panic, outcome) = (parts.spec.on_panic, parts.outcome.clone());
        let events = parts.backends.events.clone();
        Ok(Arc::new(Pvpanic {
            events,
            ..Pvpanic::new(on_panic, outcome)
        }))
    });
    aml(&mut slot.aml);
    Ok(Some(slot))
}

/// `_STA`: present, enabled, shown, working (ACPI 6.5, section 6.3.7).
const PRESENT: u8 = 0xf;

/// The pvpanic device, with QEMU's name and one port.
fn aml(body: &mut Vec<u8>) {
    let io = IO::new(PVPANIC, PVPANIC, 1, 1);
    AmlDevice::new(
        "_SB_.PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_STA".into(), &PRESENT),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&io])),
        ],
    )
    .to_aml_bytes(body);
}

/// The kernel panicked, and has no crash kernel.
const PANICKED: u8 = 1 << 0;
/// The kernel panicked, and starts its crash kernel.
const CRASH_LOADED: u8 = 1 << 1;

/// Port 0x505: reads return the supported events, a write reports one.
#[derive(Debug)]
pub struct Pvpanic {
    on_panic: OnPanic,
    outcome: OutcomeLatch,
    events: EventLog,
}

impl Pvpanic {
    /// A device that handles a panic as `on_panic` says.
    pub fn new(on_panic: OnPanic, outcome: OutcomeLatch) -> Self {
        let events = EventLog::default();
        Pvpanic {
            on_panic,
            outcome,
            events,
        }
    }
}

impl BusDevice for Pvpanic {
    fn read(&self, place: Place, data: &mut [u8]) -> Next {
        read_byte(data, || {
            (place.offset == 0).then_some(PANICKED | CRASH_LOADED)
        })
    }

    fn write(&self, place: Place, data: &[u8]) -> Next {
        write_byte(data, |event| {
            if place.offset == 0 {
                self.report(event);
            }
        })
    }
}

impl Pvpanic {
    fn report(&self, event: u8) {
        if event & PANICKED != 0 {
            self.events.say(&Event::GuestPanic);
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

impl Device for Pvpanic {}

#[cfg(test)]
mod tests {
    use super::super::device::tests::state_of;
    use super::super::port::tests::{check_odd_accesses, read, write};
    use super::*;

    fn outcome_of(on_panic: OnPanic, event: u8) -> Option<Outcome> {
        let outcome = OutcomeLatch::new().unwrap();
        write(&Pvpanic::new(on_panic, outcome.clone()), 0, &[event]);
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
        assert_eq!(read(&device, 0), [0x03]);
        check_odd_accesses(&device, &[1]);
        assert!(!device.outcome.is_set());
        assert_eq!(state_of(&device), None);
    }
}
