// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All port devices of a machine together: made once, put on the bus, saved and restored as one.

use std::io::{self, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_device::DevicePio;

use super::{
    AcpiPm, AcpiPmState, Cf9, Cf9State, DebugExit, I8042, IrqLine, PortRange, Pvpanic,
    RestoreError, SerialDevice, SerialState, Suspend,
};
use crate::layout::{GED_GSI, SERIAL_GSI};
use crate::outcome::OutcomeLatch;
use crate::spec::OnPanic;

/// A device as a bus takes it.
pub type PortDevice = Arc<dyn DevicePio + Send + Sync>;

/// Which devices a machine has, beyond those that every machine has.
#[derive(Clone, Debug)]
pub struct PlatformConfig<W> {
    /// Where COM1 writes to; without it there is no COM1.
    pub serial: Option<W>,
    /// What a guest panic does.
    pub on_panic: OnPanic,
    /// The debug-exit port, if there is one.
    pub debug_exit: Option<u16>,
}

/// The port devices of one machine.
#[derive(Debug)]
pub struct Platform<W: Write> {
    /// COM1, if the machine has it.
    pub serial: Option<Arc<SerialDevice<W>>>,
    /// Sleep, reset and power button.
    pub acpi_pm: Arc<AcpiPm>,
    i8042: Arc<I8042>,
    cf9: Arc<Cf9>,
    pvpanic: Arc<Pvpanic>,
    debug_exit: Option<Arc<DebugExit>>,
}

/// The saved state of a [`Platform`]; devices without state are not in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlatformState {
    /// COM1, if the machine has it.
    pub serial: Option<SerialState>,
    /// Sleep, reset and power button.
    pub acpi_pm: AcpiPmState,
    /// The reset control register.
    pub cf9: Cf9State,
}

impl<W: Write + Clone + Send + 'static> Platform<W> {
    /// Makes the devices; all report to `outcome`. `irq` gives the line of each interrupt that they raise, by its
    /// number.
    ///
    /// # Errors
    /// When the process has no file descriptor left for their eventfds.
    pub fn new(
        config: PlatformConfig<W>,
        outcome: &OutcomeLatch,
        irq: impl Fn(u32) -> IrqLine,
    ) -> io::Result<Self> {
        let serial = config
            .serial
            .map(|output| SerialDevice::new(output, irq(SERIAL_GSI)))
            .transpose()?;
        Ok(Platform {
            serial: serial.map(Arc::new),
            acpi_pm: Arc::new(AcpiPm::new(outcome.clone(), irq(GED_GSI))),
            i8042: Arc::new(I8042::new(outcome.clone())),
            cf9: Arc::new(Cf9::new(outcome.clone())),
            pvpanic: Arc::new(Pvpanic::new(config.on_panic, outcome.clone())),
            debug_exit: config
                .debug_exit
                .map(|port| Arc::new(DebugExit::new(port, outcome.clone()))),
        })
    }

    /// Every range with its device, for the bus. A range may overlap another one only through the
    /// user's choice of the debug-exit port; the bus refuses that.
    pub fn ports(&self) -> Vec<(PortRange, PortDevice)> {
        fn add<D: DevicePio + Send + Sync + 'static>(
            all: &mut Vec<(PortRange, PortDevice)>,
            device: &Arc<D>,
            ranges: &[PortRange],
        ) {
            all.extend(
                ranges
                    .iter()
                    .map(|range| (*range, Arc::clone(device) as PortDevice)),
            );
        }
        let mut all = Vec::new();
        if let Some(serial) = &self.serial {
            add(&mut all, serial, &serial.ports());
        }
        add(&mut all, &self.acpi_pm, &self.acpi_pm.ports());
        add(&mut all, &self.i8042, &self.i8042.ports());
        add(&mut all, &self.cf9, &self.cf9.ports());
        add(&mut all, &self.pvpanic, &self.pvpanic.ports());
        if let Some(debug_exit) = &self.debug_exit {
            add(&mut all, debug_exit, &debug_exit.ports());
        }
        all
    }
}

impl<W: Write + Clone> Suspend for Platform<W> {
    type State = PlatformState;

    fn pause(&self) {
        if let Some(serial) = &self.serial {
            serial.pause();
        }
        self.acpi_pm.pause();
        self.cf9.pause();
    }

    fn resume(&self) {
        if let Some(serial) = &self.serial {
            serial.resume();
        }
        self.acpi_pm.resume();
        self.cf9.resume();
    }

    fn save(&self) -> PlatformState {
        PlatformState {
            serial: self.serial.as_ref().map(|serial| serial.save()),
            acpi_pm: self.acpi_pm.save(),
            cf9: self.cf9.save(),
        }
    }

    fn restore(&self, state: &PlatformState) -> Result<(), RestoreError> {
        let before = self.save();
        self.restore_all(state).inspect_err(|_| {
            // A state that was just saved restores; if not even that, the first error says more.
            let _ = self.restore_all(&before);
        })
    }
}

impl<W: Write + Clone> Platform<W> {
    fn restore_all(&self, state: &PlatformState) -> Result<(), RestoreError> {
        let PlatformState {
            serial,
            acpi_pm,
            cf9,
        } = state;
        match (&self.serial, serial) {
            (Some(device), Some(state)) => device.restore(state)?,
            (None, None) => {}
            (device, _) => {
                return Err(RestoreError::Missing {
                    device: "COM1",
                    in_machine: device.is_some(),
                });
            }
        }
        self.acpi_pm.restore(acpi_pm)?;
        self.cf9.restore(cf9)
    }
}

#[cfg(test)]
mod tests {
    use super::super::port::tests::write;
    use super::super::suspend::tests::check_suspend;
    use super::*;
    use crate::layout;

    fn platform(serial: bool, debug_exit: Option<u16>) -> Platform<Vec<u8>> {
        let config = PlatformConfig {
            serial: serial.then(Vec::new),
            on_panic: OnPanic::Exit,
            debug_exit,
        };
        let outcome = OutcomeLatch::new().unwrap();
        Platform::new(config, &outcome, |_| IrqLine::unconnected()).unwrap()
    }

    #[test]
    fn ranges_are_apart() {
        let platform = platform(true, Some(layout::DEBUG_EXIT));
        let mut ranges: Vec<_> = platform.ports().iter().map(|(range, _)| *range).collect();
        ranges.sort_by_key(|range| range.base);
        assert_eq!(ranges.len(), 10);
        for pair in ranges.windows(2) {
            assert!(pair[0].base + pair[0].size <= pair[1].base, "{pair:?}");
        }
    }

    #[test]
    fn serial_is_optional_and_its_state_too() {
        let (with, without) = (platform(true, None), platform(false, None));
        assert_eq!(with.ports().len(), without.ports().len() + 1);
        let error = with.restore(&without.save()).unwrap_err();
        assert!(error.to_string().contains("COM1"));
        without.restore(&with.save()).unwrap_err();
    }

    #[test]
    fn a_bad_part_leaves_all_as_it_was() {
        let platform = platform(true, None);
        let before = platform.save();
        let mut bad = before.clone();
        bad.acpi_pm.sleep_type = 3;
        bad.cf9.kind = 0xff;
        platform.restore(&bad).unwrap_err();
        assert_eq!(platform.save(), before);
    }

    #[test]
    fn suspends() {
        check_suspend(&platform(true, None), &platform(true, None), |platform| {
            write(&*platform.cf9, layout::CF9_RESET, &[2]);
            write(
                &**platform.serial.as_ref().unwrap(),
                layout::SERIAL + 7,
                &[1],
            );
            platform.acpi_pm.press_power_button().unwrap();
        });
    }
}
