// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Assigns the IOAPIC's pins to devices, as part of a machine's plan.

use crate::layout::{FIXED_GSIS, IOAPIC_PINS};

/// The IOAPIC's free pins. The GSI of a pin is the pin's number.
///
/// The pins of [`FIXED_GSIS`] are never free, whether or not the machine has those devices. So a device that takes a
/// free pin gets the same one with and without them.
///
/// # Example
/// ```
/// use mini_vmm::irq::Pins;
///
/// let mut pins = Pins::new();
/// assert_eq!(pins.take()?, 16);
/// assert_eq!(pins.take()?, 17);
/// # Ok::<(), mini_vmm::irq::NoPin>(())
/// ```
#[derive(Clone, Debug)]
pub struct Pins {
    /// In the order in which they are taken, from last to first.
    free: Vec<u32>,
}

impl Pins {
    /// All free pins of a machine: first 16 to 23, which are not ISA pins and not connected to the PIC, then the ISA
    /// pins.
    pub fn new() -> Self {
        let from_pci = IOAPIC_ISA_PINS..IOAPIC_PINS;
        let isa = (0..IOAPIC_ISA_PINS).filter(|pin| !FIXED_GSIS.contains(pin));
        let mut free: Vec<u32> = from_pci.chain(isa).collect();
        free.reverse();
        Pins { free }
    }

    /// Takes a free pin of ISA, which kernels know without ACPI, and returns its GSI.
    ///
    /// # Errors
    /// [`NoPin`] when all are taken.
    pub fn take_isa(&mut self) -> Result<u32, NoPin> {
        let is_isa = |gsi: &u32| *gsi < IOAPIC_ISA_PINS;
        let place = self.free.iter().rposition(is_isa).ok_or(NoPin)?;
        Ok(self.free.remove(place))
    }

    /// Takes a free pin, and returns its GSI.
    ///
    /// # Errors
    /// [`NoPin`] when all are taken.
    pub fn take(&mut self) -> Result<u32, NoPin> {
        self.free.pop().ok_or(NoPin)
    }
}

/// The number of ISA pins. They come first.
const IOAPIC_ISA_PINS: u32 = 16;

impl Default for Pins {
    fn default() -> Self {
        Pins::new()
    }
}

/// The machine's devices need more interrupt lines than there are pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the machine's {IOAPIC_PINS} interrupt lines do not suffice for its devices; use --virtio pci, where devices need none, or \
     give it fewer devices"
)]
pub struct NoPin;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pin_is_taken_once_and_the_fixed_ones_never() {
        let mut pins = Pins::new();
        let mut taken: Vec<u32> = std::iter::from_fn(|| pins.take().ok()).collect();
        assert_eq!(taken[..8], [16, 17, 18, 19, 20, 21, 22, 23]);
        assert_eq!(pins.take(), Err(NoPin));
        taken.extend(FIXED_GSIS);
        taken.sort_unstable();
        assert!(taken.into_iter().eq(0..IOAPIC_PINS));
    }

    #[test]
    fn pins_of_isa_are_taken_alone_and_once() {
        let mut pins = Pins::new();
        assert_eq!([pins.take_isa(), pins.take()], [Ok(1), Ok(16)]);
        let rest: Vec<u32> = std::iter::from_fn(|| pins.take_isa().ok()).collect();
        assert_eq!(rest, [3, 6, 7, 10, 11, 12, 13, 14, 15]);
        assert_eq!(pins.take_isa(), Err(NoPin));
        assert_eq!(pins.take(), Ok(17));
    }
}
