// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What port devices share: their ranges, one-byte registers, rate-limited log lines.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::Level;
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

/// Lines that a guest can cause, without a flood: 10 in 10 seconds, then a count of what was left out.
#[derive(Debug)]
pub struct LogLimit(Mutex<Window>);

#[derive(Debug)]
struct Window {
    start: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl LogLimit {
    const WINDOW: Duration = Duration::from_secs(10);
    const LINES: u32 = 10;

    /// A limit that has seen no line.
    pub const fn new() -> Self {
        LogLimit(Mutex::new(Window {
            start: None,
            lines: 0,
            left_out: 0,
        }))
    }

    /// Logs `line` as a warning, or counts it.
    pub fn warn(&self, line: fmt::Arguments<'_>) {
        self.log(Level::Warn, line);
    }

    /// Logs `line` as information, or counts it.
    pub fn info(&self, line: fmt::Arguments<'_>) {
        self.log(Level::Info, line);
    }

    fn log(&self, level: Level, line: fmt::Arguments<'_>) {
        match self.admit(Instant::now()) {
            None => {}
            Some(0) => log::log!(level, "{line}"),
            Some(left_out) => {
                log::log!(level, "{line} ({left_out} lines like this were left out)");
            }
        }
    }

    /// Whether a line may pass at `now`, and how many were left out before it.
    fn admit(&self, now: Instant) -> Option<u64> {
        let mut window = lock(&self.0);
        let expired = window
            .start
            .is_none_or(|start| now.saturating_duration_since(start) >= Self::WINDOW);
        if expired {
            window.start = Some(now);
            window.lines = 0;
        }
        if window.lines == Self::LINES {
            window.left_out = window.left_out.saturating_add(1);
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.left_out))
    }
}

impl Default for LogLimit {
    fn default() -> Self {
        LogLimit::new()
    }
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

    #[test]
    fn lines_over_the_limit_are_counted_not_logged() {
        let limit = LogLimit::new();
        let start = Instant::now();
        for _ in 0..LogLimit::LINES {
            assert_eq!(limit.admit(start), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(limit.admit(start + Duration::from_secs(9)), None);
        }
        assert_eq!(limit.admit(start + LogLimit::WINDOW), Some(1000));
        assert_eq!(limit.admit(start + LogLimit::WINDOW), Some(0));
    }
}
