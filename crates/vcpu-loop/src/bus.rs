// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device bus that is built once and then only read: no lock and no allocation to find a device.
//!
//! It takes `vm-device`'s [`DevicePio`] and [`DeviceMmio`], so a `Mutex<T>` around a `MutDevicePio` plugs in
//! and brings the device's own, only lock. (That lock is poisoned by a device that panics: every vCPU
//! that touches the device afterwards fails, with a report.)
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use vcpu_loop::Next;
//! use vcpu_loop::bus::BusBuilder;
//! use vm_device::MutDevicePio;
//! use vm_device::bus::{PioAddress, PioAddressOffset};
//!
//! struct Scratch(u8);
//! impl MutDevicePio for Scratch {
//!     fn pio_read(&mut self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
//!         data.fill(self.0);
//!     }
//!     fn pio_write(&mut self, _: PioAddress, _: PioAddressOffset, data: &[u8]) {
//!         self.0 = data.first().copied().unwrap_or(0);
//!     }
//! }
//!
//! let mut builder = BusBuilder::new();
//! builder.insert_pio(0x3ff, 1, Arc::new(Mutex::new(Scratch(0))))?;
//! let bus = builder.build();
//! assert_eq!(bus.pio_write(0x3ff, &[7]), Next::Continue);
//! let mut data = [0];
//! assert_eq!((bus.pio_read(0x3ff, &mut data), data), (Next::Continue, [7]));
//! assert_eq!((bus.pio_read(0x400, &mut data), data), (Next::Unclaimed, [0xff]));
//! # Ok::<(), vcpu_loop::bus::Error>(())
//! ```

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::{DeviceMmio, DevicePio};

use crate::vcpu::Next;

/// A range of ports or addresses: first and last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub first: u64,
    /// Last address.
    pub last: u64,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.first, self.last)
    }
}

/// Which bus a range is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Port I/O.
    Pio,
    /// Memory-mapped I/O.
    Mmio,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Space::Pio => "port",
            Space::Mmio => "MMIO",
        })
    }
}

/// Why a device was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It would share addresses with another device.
    #[error("{space} range {new} overlaps {existing}, move one of the two devices")]
    Overlap {
        /// Which bus.
        space: Space,
        /// The refused range.
        new: Range,
        /// The range that is there already.
        existing: Range,
    },
    /// It is empty, or ends beyond the last address.
    #[error(
        "{space} range of {size:#x} from {base:#x} is empty or too large, give it a size that fits"
    )]
    Invalid {
        /// Which bus.
        space: Space,
        /// First address.
        base: u64,
        /// Size.
        size: u64,
    },
}

/// Devices of one address space, sorted by address, without overlap.
struct Map<D: ?Sized> {
    entries: Vec<(Range, Arc<D>)>,
    /// The last address of each entry: what is searched, without what isn't.
    lasts: Vec<u64>,
}

impl<D: ?Sized> Map<D> {
    const fn new() -> Self {
        Map {
            entries: Vec::new(),
            lasts: Vec::new(),
        }
    }

    fn insert(
        &mut self,
        space: Space,
        base: u64,
        size: u64,
        max: u64,
        device: Arc<D>,
    ) -> Result<(), Error> {
        let last = size
            .checked_sub(1)
            .and_then(|n| base.checked_add(n))
            .filter(|last| *last <= max);
        let Some(last) = last else {
            return Err(Error::Invalid { space, base, size });
        };
        let new = Range { first: base, last };
        // The first range that doesn't lie wholly before the new one.
        let at = self.lasts.partition_point(|last| *last < new.first);
        match self.entries.get(at) {
            Some((existing, _)) if existing.first <= new.last => Err(Error::Overlap {
                space,
                new,
                existing: *existing,
            }),
            _ => {
                self.entries.insert(at, (new, device));
                self.lasts.insert(at, last);
                Ok(())
            }
        }
    }

    /// The device that owns all `len` bytes from `addr`.
    fn find(&self, addr: u64, len: usize) -> Option<(Range, &D)> {
        let last = addr.checked_add((len as u64).checked_sub(1)?)?;
        let at = self.lasts.partition_point(|last| *last < addr);
        let (range, device) = self.entries.get(at)?;
        (range.first <= addr && last <= range.last).then_some((*range, device.as_ref()))
    }
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

    /// Gives `size` ports from `base` to a device.
    ///
    /// # Errors
    /// The range is invalid, or overlaps another.
    pub fn insert_pio(
        &mut self,
        base: u16,
        size: u32,
        device: Arc<dyn DevicePio + Send + Sync>,
    ) -> Result<&mut Self, Error> {
        let max = u64::from(u16::MAX);
        self.bus
            .pio
            .insert(Space::Pio, u64::from(base), u64::from(size), max, device)?;
        Ok(self)
    }

    /// Gives `size` bytes of guest-physical addresses from `base` to a device.
    ///
    /// # Errors
    /// The range is invalid, or overlaps another.
    pub fn insert_mmio(
        &mut self,
        base: u64,
        size: u64,
        device: Arc<dyn DeviceMmio + Send + Sync>,
    ) -> Result<&mut Self, Error> {
        self.bus
            .mmio
            .insert(Space::Mmio, base, size, u64::MAX, device)?;
        Ok(self)
    }

    /// Freezes the bus.
    pub fn build(self) -> Arc<Bus> {
        Arc::new(self.bus)
    }
}

/// A frozen bus. Its methods have the shape of [`VcpuIo`](crate::VcpuIo)'s, to be called from there.
///
/// An access belongs to a device if all of its bytes do. Otherwise nobody claims it: a read gives all
/// ones, a write is dropped, and it is counted.
pub struct Bus {
    pio: Map<dyn DevicePio + Send + Sync>,
    mmio: Map<dyn DeviceMmio + Send + Sync>,
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
            .field("pio", &self.ranges(Space::Pio).collect::<Vec<_>>())
            .field("mmio", &self.ranges(Space::Mmio).collect::<Vec<_>>())
            .field("unclaimed", &self.unclaimed)
            .finish()
    }
}

impl Bus {
    /// A port read.
    pub fn pio_read(&self, port: u16, data: &mut [u8]) -> Next {
        let Some((range, device)) = self.pio.find(u64::from(port), data.len()) else {
            data.fill(0xff);
            return self.nobody();
        };
        let base = range.first as u16;
        device.pio_read(PioAddress(base), port - base, data);
        Next::Continue
    }

    /// A port write.
    pub fn pio_write(&self, port: u16, data: &[u8]) -> Next {
        let Some((range, device)) = self.pio.find(u64::from(port), data.len()) else {
            return self.nobody();
        };
        let base = range.first as u16;
        device.pio_write(PioAddress(base), port - base, data);
        Next::Continue
    }

    /// A memory read.
    pub fn mmio_read(&self, addr: u64, data: &mut [u8]) -> Next {
        let Some((range, device)) = self.mmio.find(addr, data.len()) else {
            data.fill(0xff);
            return self.nobody();
        };
        device.mmio_read(MmioAddress(range.first), addr - range.first, data);
        Next::Continue
    }

    /// A memory write.
    pub fn mmio_write(&self, addr: u64, data: &[u8]) -> Next {
        let Some((range, device)) = self.mmio.find(addr, data.len()) else {
            return self.nobody();
        };
        device.mmio_write(MmioAddress(range.first), addr - range.first, data);
        Next::Continue
    }

    /// How many accesses nobody claimed.
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed.load(Ordering::Relaxed)
    }

    /// The ranges of all devices in one space, in ascending order.
    pub fn ranges(&self, space: Space) -> impl Iterator<Item = Range> + '_ {
        let (pio, mmio) = match space {
            Space::Pio => (self.pio.entries.as_slice(), &[][..]),
            Space::Mmio => (&[][..], self.mmio.entries.as_slice()),
        };
        pio.iter()
            .map(|(range, _)| *range)
            .chain(mmio.iter().map(|(range, _)| *range))
    }

    fn nobody(&self) -> Next {
        self.unclaimed.fetch_add(1, Ordering::Relaxed);
        Next::Unclaimed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Mutex;
    use vm_device::bus::{MmioAddressOffset, PioAddressOffset};

    /// Remembers where it was touched, answers with its tag.
    struct Probe(u8, Mutex<Vec<(u64, u64, usize)>>);

    impl Probe {
        fn new(tag: u8) -> Arc<Self> {
            Arc::new(Probe(tag, Mutex::default()))
        }
    }

    impl DevicePio for Probe {
        fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
            self.1
                .lock()
                .unwrap()
                .push((base.0.into(), offset.into(), data.len()));
            data.fill(self.0);
        }
        fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
            self.1
                .lock()
                .unwrap()
                .push((base.0.into(), offset.into(), data.len()));
        }
    }

    impl DeviceMmio for Probe {
        fn mmio_read(&self, base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
            self.1.lock().unwrap().push((base.0, offset, data.len()));
            data.fill(self.0);
        }
        fn mmio_write(&self, base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
            self.1.lock().unwrap().push((base.0, offset, data.len()));
        }
    }

    #[test]
    fn accesses_reach_their_device_with_base_and_offset() {
        let (a, b) = (Probe::new(1), Probe::new(2));
        let mut builder = BusBuilder::new();
        builder
            .insert_pio(0x3f8, 8, b.clone())
            .unwrap()
            .insert_pio(0x60, 1, a.clone())
            .unwrap();
        builder
            .insert_mmio(u64::MAX - 0xfff, 0x1000, a.clone())
            .unwrap();
        let bus = builder.build();
        let mut data = [0; 4];
        assert_eq!(bus.pio_read(0x3fc, &mut data), Next::Continue);
        assert_eq!(data, [2; 4]);
        assert_eq!(bus.pio_write(0x60, &[0]), Next::Continue);
        assert_eq!(bus.mmio_read(u64::MAX - 1, &mut data[..2]), Next::Continue);
        assert_eq!(bus.mmio_write(u64::MAX, &[0]), Next::Continue);
        assert_eq!(*b.1.lock().unwrap(), [(0x3f8, 4, 4)]);
        let top = u64::MAX - 0xfff;
        assert_eq!(
            *a.1.lock().unwrap(),
            [(0x60, 0, 1), (top, 0xffe, 2), (top, 0xfff, 1)]
        );
        assert_eq!(bus.unclaimed(), 0);
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

    proptest! {
        /// Against the obvious model: a list that is searched from the start.
        #[test]
        fn lookup_agrees_with_a_linear_search(
            ranges in prop::collection::vec((0u64..300, 1u64..40), 1..20),
            accesses in prop::collection::vec((0u64..350, 0usize..9), 1..50),
        ) {
            let mut map: Map<u64> = Map::new();
            let mut model: Vec<Range> = Vec::new();
            for (base, size) in ranges {
                let new = Range { first: base, last: base + size - 1 };
                let free = model.iter().all(|r| r.last < new.first || new.last < r.first);
                let inserted = map.insert(Space::Mmio, base, size, u64::MAX, Arc::new(base));
                prop_assert_eq!(inserted.is_ok(), free);
                if free { model.push(new); }
            }
            for (addr, len) in accesses {
                let expected = model.iter().find(|r| {
                    len > 0 && r.first <= addr && addr + len as u64 - 1 <= r.last
                });
                let found = map.find(addr, len);
                prop_assert_eq!(found.map(|(range, _)| range), expected.copied());
                prop_assert_eq!(found.map(|(_, base)| *base), expected.map(|r| r.first));
            }
        }
    }
}
