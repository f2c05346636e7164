// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What port devices share: their ranges and one-byte registers.

use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_device::bus::{PioAddress, PioAddressOffset};

/// Ports that a device claims: the first one and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The first port.
    pub base: u16,
    /// How many ports, at least 1.
    pub size: u16,
}

impl PortRange {
    /// `size` ports from `base` on.
    pub const fn new(base: u16, size: u16) -> Self {
        PortRange { base, size }
    }
}

/// The port that an access names; devices with several ranges tell their registers apart by it.
pub(super) fn port(base: PioAddress, offset: PioAddressOffset) -> u16 {
    base.0.wrapping_add(offset)
}

/// Answers a read: `register` where it is one byte wide and readable (`Some`), else all ones.
pub(super) fn read_byte(data: &mut [u8], register: impl FnOnce() -> Option<u8>) {
    match data {
        [byte] => *byte = register().unwrap_or(0xff),
        wide => wide.fill(0xff),
    }
}

/// The byte of a write that is one byte wide.
pub(super) fn written_byte(data: &[u8]) -> Option<u8> {
    match data {
        [byte] => Some(*byte),
        _ => None,
    }
}

/// Locks device state. A panic of another vCPU thread inside a device ends the run anyway; until then
/// the state of one-byte registers is as good as before.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use vm_device::DevicePio;

    /// Reads `N` bytes from a port, as a bus whose range starts at that port would.
    pub(crate) fn read<const N: usize>(device: &impl DevicePio, port: u16) -> [u8; N] {
        let mut data = [0xa5; N];
        device.pio_read(PioAddress(port), 0, &mut data);
        data
    }

    /// Writes `data` to a port.
    pub(crate) fn write(device: &impl DevicePio, port: u16, data: &[u8]) {
        device.pio_write(PioAddress(port), 0, data);
    }

    /// No width, port or value makes the device panic, and odd reads are all ones.
    pub(crate) fn check_odd_accesses(device: &impl DevicePio, range: PortRange) {
        for offset in 0..range.size {
            for len in [0, 2, 3, 4, 8, 4096] {
                let mut data = vec![0xa5; len];
                device.pio_read(PioAddress(range.base), offset, &mut data);
                assert!(
                    data.iter().all(|b| *b == 0xff),
                    "offset {offset}, {len} bytes"
                );
                device.pio_write(PioAddress(range.base), offset, &vec![0; len]);
            }
        }
        let mut byte = [0xa5];
        device.pio_read(PioAddress(0xffff), 0xffff, &mut byte);
        device.pio_write(PioAddress(0xffff), 0xffff, &byte);
        assert_eq!(byte, [0xff], "a port that is not the device's");
    }
}
