// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a machine has written to disks with overlays.

use std::fs::File;
use std::io;

use super::format::OverlayPart;
use crate::devices::copy_overlay;
use crate::machine::Machine;

/// The overlay of a machine whose devices are saved, so all that the guest wrote is in it.
#[derive(Debug)]
pub struct Overlay {
    disk: usize,
    file: File,
    size: u64,
}

/// The overlays of a machine, in the order of its disks.
///
/// # Errors
/// The host's.
pub fn open(machine: &Machine) -> io::Result<Vec<Overlay>> {
    let disks = machine.devices.offers().disks.iter().enumerate();
    let overlays = disks.filter_map(|(disk, control)| {
        let open = |file: File| {
            let size = file.metadata()?.len();
            Ok(Overlay { disk, file, size })
        };
        let file = control.overlay().transpose()?;
        Some(file.and_then(open))
    });
    overlays.collect()
}

impl Overlay {
    /// The number of its disk.
    pub const fn disk(&self) -> usize {
        self.disk
    }

    /// What the manifest says about it, but for the checksum, which [`copy_to`](Self::copy_to) finds.
    pub const fn part(&self) -> OverlayPart {
        OverlayPart {
            disk: self.disk,
            version: 1,
            size: self.size,
            crc32: 0,
        }
    }

    /// Writes a copy to an empty file. Returns its checksum. `goes_on` is asked every few milliseconds.
    ///
    /// # Errors
    /// The host's, or that `goes_on` said no.
    pub fn copy_to(&self, to: &File, goes_on: &dyn Fn() -> bool) -> io::Result<u32> {
        copy_overlay(&self.file, to, self.size, goes_on)
    }
}
