// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Helpers for devices with one-byte registers.

use vcpu_loop::Next;

/// Answers a one-byte read if `register` is readable (`Some`). Other reads are unclaimed.
pub(super) fn read_byte(data: &mut [u8], register: impl FnOnce() -> Option<u8>) -> Next {
    if let [byte] = data
        && let Some(value) = register()
    {
        *byte = value;
        return Next::Continue;
    }
    Next::Unclaimed
}

/// Passes on a one-byte write. Other writes are unclaimed.
pub(super) fn write_byte(data: &[u8], write: impl FnOnce(u8)) -> Next {
    match data {
        [byte] => {
            write(*byte);
            Next::Continue
        }
        _ => Next::Unclaimed,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use vcpu_loop::bus::{BusDevice, Place};

    /// Reads `N` bytes at an offset of a window, as the bus does: unclaimed reads return all ones.
    pub(crate) fn read_at<const N: usize>(device: &dyn BusDevice, place: Place) -> [u8; N] {
        let mut data = [0; N];
        match device.read(place, &mut data) {
            Next::Unclaimed => [0xff; N],
            _ => data,
        }
    }

    /// Reads `N` bytes at an offset of the first window.
    pub(crate) fn read<const N: usize>(device: &dyn BusDevice, offset: u64) -> [u8; N] {
        read_at(device, Place { window: 0, offset })
    }

    /// Writes `data` at an offset of the first window.
    pub(crate) fn write(device: &dyn BusDevice, offset: u64, data: &[u8]) {
        let _ = device.write(Place { window: 0, offset }, data);
    }

    /// Checks that only one-byte accesses are claimed, whatever is written.
    pub(crate) fn check_odd_accesses(device: &dyn BusDevice, windows: &[u64]) {
        for (window, size) in windows.iter().enumerate() {
            for offset in 0..*size {
                let place = Place { window, offset };
                for len in [2, 3, 4, 8, 4096] {
                    assert_eq!(device.read(place, &mut vec![0; len]), Next::Unclaimed);
                    assert_eq!(device.write(place, &vec![0; len]), Next::Unclaimed);
                }
            }
        }
        let place = Place {
            window: usize::MAX,
            offset: u64::MAX,
        };
        assert_eq!(
            read_at(device, place),
            [0xff],
            "a place that is not the device's"
        );
        let _ = device.write(place, &[0xff]);
    }
}
