// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices of `vm-device`'s traits on the bus.

use std::sync::Arc;

use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::{DeviceMmio, DevicePio};

use super::{BusBuilder, BusDevice, Error, Place};
use crate::vcpu::Next;

/// A port I/O device, and the base address that its methods take.
struct Pio<D: ?Sized>(PioAddress, Arc<D>);

impl<D: DevicePio + Send + Sync + ?Sized> BusDevice for Pio<D> {
    fn read(&self, place: Place, data: &mut [u8]) -> Next {
        // The offset fits in 16 bits: the builder checked the range.
        self.1.pio_read(self.0, place.offset as u16, data);
        Next::Continue
    }

    fn write(&self, place: Place, data: &[u8]) -> Next {
        self.1.pio_write(self.0, place.offset as u16, data);
        Next::Continue
    }
}

/// An MMIO device, and the base address that its methods take.
struct Mmio<D: ?Sized>(MmioAddress, Arc<D>);

impl<D: DeviceMmio + Send + Sync + ?Sized> BusDevice for Mmio<D> {
    fn read(&self, place: Place, data: &mut [u8]) -> Next {
        self.1.mmio_read(self.0, place.offset, data);
        Next::Continue
    }

    fn write(&self, place: Place, data: &[u8]) -> Next {
        self.1.mmio_write(self.0, place.offset, data);
        Next::Continue
    }
}

impl BusBuilder {
    /// Maps `size` ports from `base` to a device of `vm-device`'s trait (feature `vm-device`), such as a `Mutex<T>`
    /// around a `MutDevicePio`. A device that panics poisons this lock, so every vCPU that accesses it afterwards fails
    /// with a report.
    ///
    /// # Errors
    /// As [`insert`](Self::insert).
    ///
    /// # Example
    /// ```
    /// use std::sync::{Arc, Mutex};
    /// use vcpu_loop::Next;
    /// use vcpu_loop::bus::BusBuilder;
    /// use vm_device::MutDevicePio;
    /// use vm_device::bus::{PioAddress, PioAddressOffset};
    ///
    /// struct Scratch(u8);
    /// impl MutDevicePio for Scratch {
    ///     fn pio_read(&mut self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
    ///         data.fill(self.0);
    ///     }
    ///     fn pio_write(&mut self, _: PioAddress, _: PioAddressOffset, data: &[u8]) {
    ///         self.0 = data.first().copied().unwrap_or(0);
    ///     }
    /// }
    ///
    /// let mut builder = BusBuilder::new();
    /// builder.insert_device_pio(0x3ff, 1, Arc::new(Mutex::new(Scratch(0))))?;
    /// let bus = builder.build();
    /// assert_eq!(bus.pio_write(0x3ff, &[7]), Next::Continue);
    /// let mut data = [0];
    /// assert_eq!((bus.pio_read(0x3ff, &mut data), data), (Next::Continue, [7]));
    /// # Ok::<(), vcpu_loop::bus::Error>(())
    /// ```
    pub fn insert_device_pio(
        &mut self,
        base: u16,
        size: u32,
        device: Arc<dyn DevicePio + Send + Sync>,
    ) -> Result<&mut Self, Error> {
        self.insert_pio(base, size, Arc::new(Pio(PioAddress(base), device)))
    }

    /// Maps `size` bytes of guest-physical addresses from `base` to a device of `vm-device`'s trait (feature
    /// `vm-device`).
    ///
    /// # Errors
    /// As [`insert`](Self::insert).
    pub fn insert_device_mmio(
        &mut self,
        base: u64,
        size: u64,
        device: Arc<dyn DeviceMmio + Send + Sync>,
    ) -> Result<&mut Self, Error> {
        self.insert_mmio(base, size, Arc::new(Mmio(MmioAddress(base), device)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use vm_device::bus::{MmioAddressOffset, PioAddressOffset};

    use super::*;

    /// Records accesses, and reads as 7.
    #[derive(Default)]
    struct Probe(Mutex<Vec<(u64, u64, usize)>>);

    impl Probe {
        fn note(&self, base: u64, offset: u64, len: usize) {
            self.0.lock().unwrap().push((base, offset, len));
        }
    }

    impl DevicePio for Probe {
        fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
            self.note(base.0.into(), offset.into(), data.len());
            data.fill(7);
        }
        fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
            self.note(base.0.into(), offset.into(), data.len());
        }
    }

    impl DeviceMmio for Probe {
        fn mmio_read(&self, base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
            self.note(base.0, offset, data.len());
            data.fill(7);
        }
        fn mmio_write(&self, base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
            self.note(base.0, offset, data.len());
        }
    }

    #[test]
    fn they_get_base_and_offset() {
        let probe = Arc::new(Probe::default());
        let mut builder = BusBuilder::new();
        builder
            .insert_device_pio(0xfff0, 16, probe.clone())
            .unwrap();
        builder
            .insert_device_mmio(0x1000, 16, probe.clone())
            .unwrap();
        let bus = builder.build();
        let mut data = [0; 2];
        assert_eq!(
            (bus.pio_read(0xfffe, &mut data), data),
            (Next::Continue, [7; 2])
        );
        assert_eq!(bus.pio_write(0xfff0, &[1]), Next::Continue);
        data = [0; 2];
        assert_eq!(
            (bus.mmio_read(0x100e, &mut data), data),
            (Next::Continue, [7; 2])
        );
        assert_eq!(bus.mmio_write(0x1000, &[1; 8]), Next::Continue);
        let seen = [
            (0xfff0, 14, 2),
            (0xfff0, 0, 1),
            (0x1000, 14, 2),
            (0x1000, 0, 8),
        ];
        assert_eq!(*probe.0.lock().unwrap(), seen);
    }
}
