// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Power management: the sleep registers of the hardware-reduced ACPI platform, the reset register, and the events of
//! the Generic Event Device.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use log::warn;
use serde::{Deserialize, Serialize};
use vcpu_loop::Next;
use vcpu_loop::bus::{BusDevice, Place};

mod aml;

use super::port::{read_byte, write_byte};
use super::{
    Device, Generation, PlugEvents, PowerButton, RestoreError, Saved, Slot, SuspendError, Window,
};
use crate::config::VmSpec;
use crate::irq::{IrqLine, NoPin, Pins};
use crate::layout::{
    ACPI_PM, ACPI_PM_SIZE, ACPI_RESET, ACPI_RESET_VALUE, ACPI_S5_SLEEP_TYPE, ACPI_SLEEP_CONTROL,
    ACPI_SLEEP_STATUS, GED_EVENTS, GED_GENERATION, GED_GSI, GED_PCI_HOTPLUG, GED_POWER_BUTTON,
};
use crate::outcome::{Outcome, OutcomeLatch};
use crate::sync::lock;

const ID: &str = "acpi";
const VERSION: u32 = 1;
const DEVICE: &str = "the ACPI power device";

// Offsets of its registers.
const CONTROL: u64 = (ACPI_SLEEP_CONTROL - ACPI_PM) as u64;
const STATUS: u64 = (ACPI_SLEEP_STATUS - ACPI_PM) as u64;
const RESET: u64 = (ACPI_RESET - ACPI_PM) as u64;
const EVENTS: u64 = (GED_EVENTS - ACPI_PM) as u64;

/// Every machine has it.
pub(super) fn plan(spec: &VmSpec, _: &mut Pins) -> Result<Option<Slot>, NoPin> {
    let mut slot = Slot::new(ID, &[Window::ports(ACPI_PM, ACPI_PM_SIZE)], |parts| {
        let pm = Arc::new(AcpiPm::new(parts.outcome.clone(), parts.edge()));
        parts.offers.power_button = Some(pm.clone());
        parts.offers.generation = Some(pm.clone());
        parts.offers.plug_events = Some(pm.clone());
        Ok(pm)
    });
    slot.gsi = Some(GED_GSI);
    aml::describe(&mut slot.aml, spec.hotplug.0 > 0);
    Ok(Some(slot))
}

// The Sleep Control Register (ACPI 6.5, 4.8.3.7): bits 4:2 SLP_TYPx, bit 5 SLP_EN (reads zero).
/// All events.
const EVENT_BITS: u8 = GED_POWER_BUTTON | GED_PCI_HOTPLUG | GED_GENERATION;

const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE: u8 = 0b111 << SLEEP_TYPE_SHIFT;
const SLEEP_ENABLE: u8 = 1 << 5;
/// The Sleep Status Register's WAK_STS: set on waking up, cleared by writing it.
const WAKE_STATUS: u8 = 1 << 7;

/// Ports 0x600 to 0x603. S5 is an [`Outcome::PowerOff`], the reset register an [`Outcome::Reset`]. The power button and a
/// new generation ID are events. The guest reads them after the Generic Event Device's interrupt.
#[derive(Debug)]
pub struct AcpiPm {
    outcome: OutcomeLatch,
    irq: IrqLine,
    state: Mutex<AcpiPmState>,
}

/// The saved state of an [`AcpiPm`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcpiPmState {
    /// The sleep type last written, 0 to 7.
    pub sleep_type: u8,
    /// Whether WAK_STS is set.
    pub woken: bool,
    /// Events that the guest has not read yet ([`crate::layout::GED_EVENTS`]).
    pub events: u8,
}

impl AcpiPm {
    /// Registers that report to `outcome`, and interrupt through `irq`, an edge of [`crate::layout::GED_GSI`].
    pub fn new(outcome: OutcomeLatch, irq: IrqLine) -> Self {
        AcpiPm {
            outcome,
            irq,
            state: Mutex::default(),
        }
    }

    fn sleep_control(&self, value: u8) {
        let sleep_type = (value & SLEEP_TYPE) >> SLEEP_TYPE_SHIFT;
        let mut state = lock(&self.state);
        state.sleep_type = sleep_type;
        if value & SLEEP_ENABLE == 0 {
            return;
        }
        if sleep_type == ACPI_S5_SLEEP_TYPE {
            self.outcome.set(Outcome::PowerOff);
            return;
        }
        // The tables offer only S5. The guest now polls WAK_STS: report that it woke up at once.
        state.woken = true;
        drop(state);
        warn!("the guest asked for sleep type {sleep_type}, which does not exist: ignored");
    }
}

impl PowerButton for AcpiPm {
    /// A guest with a driver powers off soon. Others never do.
    fn press(&self) -> io::Result<()> {
        lock(&self.state).events |= GED_POWER_BUTTON;
        self.irq.raise()
    }

    /// Raises the interrupt again if the guest has not read its events. The line is edge-triggered, so an interrupt
    /// before the guest's driver is ready is lost.
    fn remind(&self) -> io::Result<()> {
        if lock(&self.state).events == 0 {
            return Ok(());
        }
        self.irq.raise()
    }
}

impl Generation for AcpiPm {
    fn announce(&self) -> u32 {
        lock(&self.state).events |= GED_GENERATION;
        GED_GSI
    }
}

impl PlugEvents for AcpiPm {
    fn tell(&self) -> io::Result<()> {
        lock(&self.state).events |= GED_PCI_HOTPLUG;
        self.irq.raise()
    }
}

impl BusDevice for AcpiPm {
    fn read(&self, place: Place, data: &mut [u8]) -> Next {
        read_byte(data, || {
            let mut state = lock(&self.state);
            match place.offset {
                CONTROL => Some(state.sleep_type << SLEEP_TYPE_SHIFT),
                STATUS => Some(if state.woken { WAKE_STATUS } else { 0 }),
                EVENTS => Some(std::mem::take(&mut state.events)),
                _ => None,
            }
        })
    }

    fn write(&self, place: Place, data: &[u8]) -> Next {
        write_byte(data, |value| match place.offset {
            CONTROL => self.sleep_control(value),
            STATUS if value & WAKE_STATUS != 0 => lock(&self.state).woken = false,
            RESET if value == ACPI_RESET_VALUE => {
                self.outcome.set(Outcome::Reset);
            }
            _ => {}
        })
    }
}

impl Device for AcpiPm {
    fn save(&self, _: Instant) -> Result<Option<Saved>, SuspendError> {
        Saved::new(ID, VERSION, &*lock(&self.state))
    }

    fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: AcpiPmState = saved.read(ID, VERSION)?;
        let AcpiPmState {
            sleep_type,
            woken: _,
            events,
        } = state;
        for (field, value, bits) in [
            ("sleep_type", sleep_type, SLEEP_TYPE >> SLEEP_TYPE_SHIFT),
            ("events", events, EVENT_BITS),
        ] {
            if value & !bits != 0 {
                return Err(RestoreError::Field {
                    device: DEVICE,
                    field,
                    value: value.into(),
                });
            }
        }
        if events != 0 {
            // The interrupt may have been pending when the state was saved. If it was not, the guest reads no events.
            self.irq.raise().map_err(|source| RestoreError::Interrupt {
                device: DEVICE,
                source,
            })?;
        }
        *lock(&self.state) = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::device::tests::{check_suspend, refusal, state_of};
    use super::super::port::tests::{check_odd_accesses, read, write};
    use super::*;

    fn acpi_pm() -> AcpiPm {
        AcpiPm::new(OutcomeLatch::new().unwrap(), IrqLine::unconnected())
    }

    #[test]
    fn a_state_whose_interrupt_fails_changes_nothing() {
        let pressed = acpi_pm();
        pressed.press().unwrap();
        let saved = state_of(&pressed).unwrap();
        let irq = IrqLine::new(|_| Err(io::Error::other("no descriptor left")));
        let pm = AcpiPm::new(OutcomeLatch::new().unwrap(), irq);
        let before = state_of(&pm);
        let error = pm.restore(&saved).unwrap_err();
        assert!(matches!(error, RestoreError::Interrupt { .. }), "{error}");
        assert_eq!(state_of(&pm), before);
    }

    #[test]
    fn reminds_only_of_what_was_not_read() {
        let pm = AcpiPm::new(OutcomeLatch::new().unwrap(), IrqLine::unconnected());
        pm.remind().unwrap();
        assert!(
            pm.irq.event().unwrap().read().is_err(),
            "nothing to remind of"
        );
        pm.press().unwrap();
        pm.remind().unwrap();
        assert_eq!(pm.irq.event().unwrap().read().unwrap(), 2);
        assert_eq!(read(&pm, EVENTS), [GED_POWER_BUTTON]);
        pm.remind().unwrap();
        assert!(
            pm.irq.event().unwrap().read().is_err(),
            "the guest has read it"
        );
    }

    #[test]
    fn s5_needs_its_type_and_the_enable_bit() {
        for value in 0..=u8::MAX {
            let pm = acpi_pm();
            write(&pm, CONTROL, &[value]);
            let expected = (value & 0x3c == 0x34).then_some(Outcome::PowerOff);
            assert_eq!(pm.outcome.get(), expected, "value {value:#x}");
            assert_eq!(read(&pm, CONTROL), [value & 0x1c]);
        }
    }

    #[test]
    fn unknown_sleep_wakes_at_once() {
        let pm = acpi_pm();
        assert_eq!(read(&pm, STATUS), [0]);
        write(&pm, CONTROL, &[3 << 2 | 0x20]);
        assert_eq!(read(&pm, STATUS), [0x80]);
        write(&pm, STATUS, &[0x7f]);
        assert_eq!(read(&pm, STATUS), [0x80]);
        write(&pm, STATUS, &[0x80]);
        assert_eq!(read(&pm, STATUS), [0]);
        assert!(!pm.outcome.is_set());
    }

    #[test]
    fn only_the_reset_value_resets() {
        let pm = acpi_pm();
        for value in (0..=u8::MAX).filter(|v| *v != ACPI_RESET_VALUE) {
            write(&pm, RESET, &[value]);
        }
        assert_eq!(read(&pm, RESET), [0xff]);
        assert!(!pm.outcome.is_set());
        write(&pm, RESET, &[ACPI_RESET_VALUE]);
        assert_eq!(pm.outcome.get(), Some(Outcome::Reset));
    }

    #[test]
    fn power_button_is_one_interrupt_and_one_event() {
        let pm = acpi_pm();
        assert_eq!(read(&pm, EVENTS), [0]);
        pm.press().unwrap();
        assert_eq!(pm.irq.event().unwrap().read().unwrap(), 1);
        write(&pm, EVENTS, &[0xff]);
        assert_eq!(read(&pm, EVENTS), [GED_POWER_BUTTON]);
        assert_eq!(read(&pm, EVENTS), [0]);
    }

    #[test]
    fn a_new_generation_is_an_event_beside_the_button() {
        let pm = acpi_pm();
        assert_eq!(pm.announce(), GED_GSI);
        assert_eq!(pm.announce(), GED_GSI);
        assert_eq!(read(&pm, EVENTS), [GED_GENERATION]);
        pm.press().unwrap();
        pm.announce();
        let fresh = acpi_pm();
        fresh.restore(&state_of(&pm).unwrap()).unwrap();
        assert_eq!(read(&fresh, EVENTS), [GED_GENERATION | GED_POWER_BUTTON]);
    }

    #[test]
    fn news_of_slots_is_an_interrupt_and_an_event_that_is_saved() {
        let pm = acpi_pm();
        PlugEvents::tell(&pm).unwrap();
        assert_eq!(pm.irq.event().unwrap().read().unwrap(), 1);
        let fresh = acpi_pm();
        fresh.restore(&state_of(&pm).unwrap()).unwrap();
        assert_eq!(fresh.irq.event().unwrap().read().unwrap(), 1);
        assert_eq!(read(&fresh, EVENTS), [GED_PCI_HOTPLUG]);
    }

    #[test]
    fn odd_accesses_are_harmless() {
        let pm = acpi_pm();
        pm.press().unwrap();
        check_odd_accesses(&pm, &[4]);
        write(&pm, CONTROL, &[0x34, 0x34]);
        assert!(!pm.outcome.is_set());
        assert_eq!(
            read(&pm, EVENTS),
            [GED_POWER_BUTTON],
            "a wide read clears nothing"
        );
    }

    #[test]
    fn suspends() {
        let (pm, fresh) = (acpi_pm(), acpi_pm());
        pm.press().unwrap();
        write(&pm, CONTROL, &[3 << 2 | 0x20]);
        check_suspend(&pm, &fresh, || {
            read::<1>(&pm, EVENTS);
            write(&pm, STATUS, &[0x80]);
        });
        assert_eq!(
            fresh.irq.event().unwrap().read().unwrap(),
            1,
            "a pending event interrupts again"
        );
        for bad in [
            AcpiPmState {
                sleep_type: 8,
                ..AcpiPmState::default()
            },
            AcpiPmState {
                events: 8,
                ..AcpiPmState::default()
            },
        ] {
            refusal(&pm, &bad);
        }
    }
}
