// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The debug-exit port, for test kernels: the guest chooses the exit code (QEMU's `isa-debug-exit`).

use std::sync::Arc;

use vcpu_loop::Next;
use vcpu_loop::bus::{BusDevice, Place};

use super::{Device, Slot, Window};
use crate::config::VmSpec;
use crate::irq::{NoPin, Pins};
use crate::layout::DEBUG_EXIT_SIZE;
use crate::outcome::{Outcome, OutcomeLatch};

const ID: &str = "debug-exit";

/// Four ports, or fewer at the end of the port space, if the description has it.
pub(super) fn plan(spec: &VmSpec, _: &mut Pins) -> Result<Option<Slot>, NoPin> {
    let Some(port) = spec.debug_exit else {
        return Ok(None);
    };
    let room = (u16::MAX - port).saturating_add(1);
    let windows = [Window::ports(port, room.min(DEBUG_EXIT_SIZE))];
    Ok(Some(Slot::new(ID, &windows, |parts| {
        Ok(Arc::new(DebugExit::new(parts.outcome.clone())))
    })))
}

/// A write-only port: the low byte of a write is an [`Outcome::DebugExit`].
#[derive(Debug)]
pub struct DebugExit {
    outcome: OutcomeLatch,
}

impl DebugExit {
    /// A debug exit that reports to `outcome`.
    pub fn new(outcome: OutcomeLatch) -> Self {
        DebugExit { outcome }
    }
}

impl BusDevice for DebugExit {
    fn read(&self, _: Place, _: &mut [u8]) -> Next {
        Next::Unclaimed
    }

    fn write(&self, place: Place, data: &[u8]) -> Next {
        if let (0, Some(value)) = (place.offset, data.first()) {
            self.outcome.set(Outcome::DebugExit(*value));
        }
        Next::Continue
    }
}

impl Device for DebugExit {}

#[cfg(test)]
mod tests {
    use super::super::device::tests::state_of;
    use super::super::port::tests::{read, write};
    use super::*;

    #[test]
    fn low_byte_of_any_width_is_the_value() {
        for data in [&[7][..], &[7, 1], &[7, 1, 2, 3]] {
            let outcome = OutcomeLatch::new().unwrap();
            write(&DebugExit::new(outcome.clone()), 0, data);
            assert_eq!(outcome.get(), Some(Outcome::DebugExit(7)));
        }
    }

    #[test]
    fn odd_accesses_are_harmless() {
        let outcome = OutcomeLatch::new().unwrap();
        let device = DebugExit::new(outcome.clone());
        assert_eq!(read(&device, 0), [0xff; 4]);
        write(&device, 1, &[1]);
        write(&device, 0, &[]);
        assert!(!outcome.is_set());
        assert_eq!(state_of(&device), None);
    }

    #[test]
    fn range_ends_with_the_port_space() {
        let size = |port| {
            let mut spec = VmSpec::new("vmlinux");
            spec.debug_exit = port;
            plan(&spec, &mut Pins::new())
                .unwrap()
                .map(|slot| slot.windows[0].size)
        };
        assert_eq!(size(None), None);
        let sizes = [0xf4, 0xfffc, 0xfffd, 0xffff].map(|port| size(Some(port)));
        assert_eq!(sizes, [Some(4), Some(4), Some(3), Some(1)]);
    }
}
