// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Firecracker's boot timer: a guest that has booted writes a byte to it, and the log tells the time that it took.

use std::sync::Arc;

use log::info;
use vcpu_loop::Next;
use vcpu_loop::bus::{BusDevice, Place};

use super::{Device, Slot, Window};
use crate::config::VmSpec;
use crate::irq::{NoPin, Pins};
use crate::layout::BOOT_TIMER;
use crate::start_time::Moment;

const ID: &str = "boot-timer";
/// The byte that says so.
const BOOTED: u8 = 123;

/// One byte of memory, if the description has it.
pub(super) fn plan(spec: &VmSpec, _: &mut Pins) -> Result<Option<Slot>, NoPin> {
    let Some(start) = spec.boot_timer else {
        return Ok(None);
    };
    let windows = [Window::memory(BOOT_TIMER, 1)];
    Ok(Some(Slot::new(ID, &windows, move |_| {
        Ok(Arc::new(BootTimer(start)))
    })))
}

/// Knows when the start was ordered.
#[derive(Debug)]
struct BootTimer(Moment);

impl BusDevice for BootTimer {
    fn read(&self, _: Place, _: &mut [u8]) -> Next {
        Next::Unclaimed
    }

    fn write(&self, _: Place, data: &[u8]) -> Next {
        if data == [BOOTED] {
            let (wall, cpu) = self.0.elapsed();
            // Firecracker's words, which tools look for.
            info!(
                "Guest-boot-time = {:>6} us {} ms, {:>6} CPU us {} CPU ms",
                wall.as_micros(),
                wall.as_millis(),
                cpu.as_micros(),
                cpu.as_millis()
            );
        }
        Next::Continue
    }
}

impl Device for BootTimer {}
