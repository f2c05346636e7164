// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device bus that is built once and then only read. Finding a device takes no lock and no allocation.
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU8, Ordering};
//! use vcpu_loop::Next;
//! use vcpu_loop::bus::{BusBuilder, BusDevice, Place};
//!
//! /// A scratch register that ends the run when 0xff is written to it.
//! struct Scratch(AtomicU8);
//! impl BusDevice for Scratch {
//!     fn read(&self, _: Place, data: &mut [u8]) -> Next {
//!         data.fill(self.0.load(Ordering::Relaxed));
//!         Next::Continue
//!     }
//!     fn write(&self, _: Place, data: &[u8]) -> Next {
//!         match data {
//!             [0xff] => Next::Pause,
//!             [byte] => {
//!                 self.0.store(*byte, Ordering::Relaxed);
//!                 Next::Continue
//!             }
//!             _ => Next::Unclaimed,
//!         }
//!     }
//! }
//!
//! let mut builder = BusBuilder::new();
//! builder.insert_pio(0x3ff, 1, Arc::new(Scratch(AtomicU8::new(0))))?;
//! let bus = builder.build();
//! assert_eq!(bus.pio_write(0x3ff, &[7]), Next::Continue);
//! assert_eq!(bus.pio_write(0x3ff, &[0xff]), Next::Pause);
//! let mut data = [0];
//! assert_eq!((bus.pio_read(0x3ff, &mut data), data), (Next::Continue, [7]));
//! assert_eq!((bus.pio_read(0x400, &mut data), data), (Next::Unclaimed, [0xff]));
//! # Ok::<(), vcpu_loop::bus::Error>(())
//! ```
//!
//! With feature `vm-device`, the bus also takes devices of that crate's traits: see `BusBuilder::insert_device_pio`.

mod map;
#[cfg(feature = "vm-device")]
mod vm_device;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use map::{Error, Range, Space};

use crate::vcpu::Next;
use map::Map;

/// Where in a device an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number of the device's window, as passed to the builder; 0 for a device with one window.
    pub window: usize,
    /// The offset in that window, in bytes. The whole access is in the window.
    pub offset: u64,
}

/// A device with registers.
///
/// It is called on the threads of all vCPUs, so it needs its own lock if it has mutable state. It must not wait for
/// another thread for long: a vCPU that waits in a device can't be paused.
pub trait BusDevice: Send + Sync {
    /// Reads a register into `data`, which is not empty and preset to zeros. On [`Next::Unclaimed`] the guest
    /// reads all ones, whatever `data` contains.
    fn read(&self, place: Place, data: &mut [u8]) -> Next;

    /// Writes a register. `data` is not empty.
    fn write(&self, place: Place, data: &[u8]) -> Next;
}

/// A window of a device.
struct Window {
    device: Arc<dyn BusDevice>,
    number: usize,
}

/// A bus under construction.
#[derive(Default)]
pub struct BusBuilder {
    bus: Bus,
}

impl fmt::Debug for BusBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bus.fmt(f)
    }
}

impl BusBuilder {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Maps `size` ports or bytes from `base` to a device, as its window number `window`.
    ///
    /// # Errors
    /// The range is empty, ends beyond the space, or overlaps another.
    pub fn insert(
        &mut self,
        space: Space,
        base: u64,
        size: u64,
        window: usize,
        device: Arc<dyn BusDevice>,
    ) -> Result<&mut Self, Error> {
        let map = match space {
            Space::Pio => &mut self.bus.pio,
            Space::Mmio => &mut self.bus.mmio,
        };
        let number = window;
        map.insert(space, base, size, space.last(), Window { device, number })?;
        Ok(self)
    }

    /// Maps `size` ports from `base` to a device, as its window 0.
    ///
    /// # Errors
    /// As [`insert`](Self::insert).
    pub fn insert_pio(
        &mut self,
        base: u16,
        size: u32,
        device: Arc<dyn BusDevice>,
    ) -> Result<&mut Self, Error> {
        self.insert(Space::Pio, base.into(), size.into(), 0, device)
    }

    /// Maps `size` bytes of guest-physical addresses from `base` to a device, as its window 0.
    ///
    /// # Errors
    /// As [`insert`](Self::insert).
    pub fn insert_mmio(
        &mut self,
        base: u64,
        size: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<&mut Self, Error> {
        self.insert(Space::Mmio, base, size, 0, device)
    }

    /// Freezes the bus.
    pub fn build(self) -> Arc<Bus> {
        Arc::new(self.bus)
    }
}

/// A frozen bus. Its methods have the signatures of [`VcpuIo`](crate::VcpuIo)'s, which call them.
///
/// An access goes to a device if all of its bytes are in one window. Otherwise, or if the device answers
/// [`Next::Unclaimed`], it is unclaimed: a read returns all ones, a write is dropped, and the access is counted.
pub struct Bus {
    pio: Map<Window>,
    mmio: Map<Window>,
    unclaimed: AtomicU64,
}

impl Default for Bus {
    fn default() -> Self {
        Bus {
            pio: Map::new(),
            mmio: Map::new(),
            unclaimed: AtomicU64::new(0),
        }
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus")
            .field("pio", &self.pio.ranges().collect::<Vec<_>>())
            .field("mmio", &self.mmio.ranges().collect::<Vec<_>>())
            .field("unclaimed", &self.unclaimed)
            .finish()
    }
}

impl Bus {
    /// A port read.
    pub fn pio_read(&self, port: u16, data: &mut [u8]) -> Next {
        self.read(&self.pio, port.into(), data)
    }

    /// A port write.
    pub fn pio_write(&self, port: u16, data: &[u8]) -> Next {
        self.write(&self.pio, port.into(), data)
    }

    /// A memory read.
    pub fn mmio_read(&self, addr: u64, data: &mut [u8]) -> Next {
        self.read(&self.mmio, addr, data)
    }

    /// A memory write.
    pub fn mmio_write(&self, addr: u64, data: &[u8]) -> Next {
        self.write(&self.mmio, addr, data)
    }

    /// The number of unclaimed accesses.
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed.load(Ordering::Relaxed)
    }

    /// The ranges of all devices in one space, in ascending order.
    pub fn ranges(&self, space: Space) -> impl Iterator<Item = Range> + '_ {
        match space {
            Space::Pio => self.pio.ranges(),
            Space::Mmio => self.mmio.ranges(),
        }
    }

    fn read(&self, map: &Map<Window>, addr: u64, data: &mut [u8]) -> Next {
        let next = match map.find(addr, data.len()) {
            Some((offset, window)) => {
                data.fill(0);
                window.device.read(window.place(offset), data)
            }
            None => Next::Unclaimed,
        };
        if next == Next::Unclaimed {
            data.fill(0xff);
        }
        self.count(next)
    }

    fn write(&self, map: &Map<Window>, addr: u64, data: &[u8]) -> Next {
        self.count(match map.find(addr, data.len()) {
            Some((offset, window)) => window.device.write(window.place(offset), data),
            None => Next::Unclaimed,
        })
    }

    fn count(&self, next: Next) -> Next {
        if next == Next::Unclaimed {
            self.unclaimed.fetch_add(1, Ordering::Relaxed);
        }
        next
    }
}

impl Window {
    fn place(&self, offset: u64) -> Place {
        Place {
            window: self.number,
            offset,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Records accesses, and reads as its tag.
    struct Probe(u8, Mutex<Vec<(usize, u64, usize)>>);

    impl Probe {
        fn new(tag: u8) -> Arc<Self> {
            Arc::new(Probe(tag, Mutex::default()))
        }

        fn note(&self, place: Place, len: usize) {
            self.1
                .lock()
                .unwrap()
                .push((place.window, place.offset, len));
        }
    }

    impl BusDevice for Probe {
        fn read(&self, place: Place, data: &mut [u8]) -> Next {
            self.note(place, data.len());
            data.fill(self.0);
            Next::Continue
        }
        fn write(&self, place: Place, data: &[u8]) -> Next {
            self.note(place, data.len());
            Next::Continue
        }
    }

    /// Gives the same answer to every access.
    struct Always(Next);

    impl BusDevice for Always {
        fn read(&self, _: Place, data: &mut [u8]) -> Next {
            assert!(data.iter().all(|byte| *byte == 0));
            data.fill(0x5a);
            self.0
        }
        fn write(&self, _: Place, _: &[u8]) -> Next {
            self.0
        }
    }

    #[test]
    fn accesses_reach_their_device_with_window_and_offset() {
        let (a, b) = (Probe::new(1), Probe::new(2));
        let mut builder = BusBuilder::new();
        builder
            .insert_pio(0x3f8, 8, b.clone())
            .unwrap()
            .insert_pio(0x60, 1, a.clone())
            .unwrap();
        builder
            .insert(Space::Mmio, u64::MAX - 0xfff, 0x1000, 3, a.clone())
            .unwrap();
        let bus = builder.build();
        let mut data = [0; 4];
        assert_eq!(bus.pio_read(0x3fc, &mut data), Next::Continue);
        assert_eq!(data, [2; 4]);
        assert_eq!(bus.pio_write(0x60, &[0]), Next::Continue);
        assert_eq!(bus.mmio_read(u64::MAX - 1, &mut data[..2]), Next::Continue);
        assert_eq!(bus.mmio_write(u64::MAX, &[0]), Next::Continue);
        assert_eq!(*b.1.lock().unwrap(), [(0, 4, 4)]);
        assert_eq!(
            *a.1.lock().unwrap(),
            [(0, 0, 1), (3, 0xffe, 2), (3, 0xfff, 1)]
        );
        assert_eq!(bus.unclaimed(), 0);
    }

    #[test]
    fn a_device_decides_what_comes_next() {
        for next in [Next::Continue, Next::Pause, Next::Unclaimed] {
            let mut builder = BusBuilder::new();
            builder.insert_pio(0x10, 2, Arc::new(Always(next))).unwrap();
            builder
                .insert_mmio(0x10, 2, Arc::new(Always(next)))
                .unwrap();
            let bus = builder.build();
            let byte = if next == Next::Unclaimed { 0xff } else { 0x5a };
            let mut data = [7; 2];
            assert_eq!((bus.pio_read(0x10, &mut data), data), (next, [byte; 2]));
            data = [7; 2];
            assert_eq!((bus.mmio_read(0x10, &mut data), data), (next, [byte; 2]));
            assert_eq!(bus.pio_write(0x11, &[1]), next);
            assert_eq!(bus.mmio_write(0x11, &[1]), next);
            let counted = if next == Next::Unclaimed { 4 } else { 0 };
            assert_eq!(bus.unclaimed(), counted);
        }
    }

    #[test]
    fn straddling_and_unclaimed_accesses_read_all_ones_and_are_counted() {
        let probe = Probe::new(1);
        let mut builder = BusBuilder::new();
        builder
            .insert_pio(0x10, 2, probe.clone())
            .unwrap()
            .insert_pio(0x12, 2, probe.clone())
            .unwrap();
        builder.insert_mmio(0x1000, 4, probe.clone()).unwrap();
        let bus = builder.build();
        let mut data = [0; 4];
        assert_eq!(
            (bus.pio_read(0x10, &mut data), data),
            (Next::Unclaimed, [0xff; 4])
        );
        assert_eq!(bus.pio_write(0x11, &[0, 0]), Next::Unclaimed);
        assert_eq!(bus.pio_write(0xffff, &[0, 0]), Next::Unclaimed);
        data = [0; 4];
        assert_eq!(
            (bus.mmio_read(0x1002, &mut data), data),
            (Next::Unclaimed, [0xff; 4])
        );
        assert_eq!(bus.mmio_write(u64::MAX, &[0, 0]), Next::Unclaimed);
        assert_eq!(bus.mmio_write(0x1000, &[]), Next::Unclaimed);
        assert_eq!(bus.unclaimed(), 6);
        assert!(probe.1.lock().unwrap().is_empty());
    }

    #[test]
    fn overlap_names_both_ranges() {
        let mut builder = BusBuilder::new();
        builder.insert_pio(0x3f8, 8, Probe::new(1)).unwrap();
        let error = builder.insert_pio(0x3f0, 9, Probe::new(2)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "port range 0x3f0-0x3f8 overlaps 0x3f8-0x3ff, move one of the two devices"
        );
        assert!(builder.insert_pio(0, 0, Probe::new(2)).is_err());
        assert!(builder.insert_pio(1, 0x1_0000, Probe::new(2)).is_err());
        assert!(builder.insert_mmio(u64::MAX, 2, Probe::new(2)).is_err());
        builder.insert_pio(0x3f0, 8, Probe::new(2)).unwrap();
        BusBuilder::new()
            .insert_pio(0, 0x1_0000, Probe::new(2))
            .unwrap();
    }
}
