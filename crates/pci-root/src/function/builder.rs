// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A function under construction.

use std::sync::{Arc, Mutex};

use super::{Function, Live, MsixPlace, PciDevice, Vectors};
use crate::bar::{Bar, BarError};
use crate::config::{Capability, CapabilityError, ConfigSpace, Ids};
use crate::msix::Msix;
use crate::window::Windows;

/// MSI-X's capability id.
const MSIX: u8 = 0x11;

/// Why a function can't be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FunctionError {
    /// The vendor ID means that there is no function.
    #[error("vendor id 0xffff means that there is no function: use another")]
    Vendor,
    /// A BAR is invalid.
    #[error(transparent)]
    Bar(#[from] BarError),
    /// A capability doesn't fit.
    #[error(transparent)]
    Capability(#[from] CapabilityError),
    /// The MSI-X table or its pending bits don't fit.
    #[error(
        "{size:#x} bytes for MSI-X don't fit at {offset:#x} in BAR {bar}: use a multiple of 8, in a BAR that was added \
         before, and keep table and pending bits apart"
    )]
    MsixPlace {
        /// The BAR.
        bar: u8,
        /// The offset.
        offset: u64,
        /// The size in bytes.
        size: u64,
    },
    /// A second MSI-X capability.
    #[error("a function has MSI-X once: give it all vectors at once")]
    MsixTwice,
}

/// Builds a [`Function`].
///
/// # Example
/// A function with one BAR. Its first page has the MSI-X table, the second the pending bits, and registers follow:
/// ```
/// use std::sync::Arc;
/// use pci_root::{Bar, Capability, Class, FunctionBuilder, Ids, Message, MsiSink, Msix, MsixPlace, PciDevice, Reply};
///
/// struct NoSink;
/// impl MsiSink for NoSink {
///     fn send(&self, _: Message) {}
/// }
///
/// struct Registers;
/// impl PciDevice for Registers {
///     fn read_bar(&self, _: u8, offset: u64, data: &mut [u8]) -> Reply {
///         data.fill(offset as u8);
///         Reply::Done
///     }
///     fn write_bar(&self, _: u8, _: u64, _: &[u8]) -> Reply {
///         Reply::Unclaimed
///     }
/// }
///
/// let msix = Arc::new(Msix::new(4, Arc::new(NoSink))?);
/// let function = FunctionBuilder::new(Ids::new(0x1af4, 0x1044, Class::OTHER))?
///     .bar(0, Bar::memory64(0x4000))?
///     .msix(msix, MsixPlace { table: (0, 0), pba: (0, 0x1000) })?
///     .capability(&Capability::fixed(9, [4, 0]))?
///     .build(Arc::new(Registers));
/// let mut data = [0; 2];
/// assert_eq!(function.read_bar(0, 0x2007, &mut data), Reply::Done);
/// assert_eq!(data, [7, 7]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FunctionBuilder {
    config: ConfigSpace,
    vectors: Option<Vectors>,
    live: Vec<Live>,
    /// The number of capabilities added, without MSI-X.
    capabilities: usize,
}

impl std::fmt::Debug for FunctionBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.config.fmt(f)
    }
}

impl FunctionBuilder {
    /// A function with these IDs, without BARs and capabilities.
    ///
    /// # Errors
    /// The vendor is 0xffff.
    pub fn new(ids: Ids) -> Result<Self, FunctionError> {
        if ids.vendor == u16::MAX {
            return Err(FunctionError::Vendor);
        }
        Ok(FunctionBuilder {
            config: ConfigSpace::new(&ids),
            vectors: None,
            live: Vec::new(),
            capabilities: 0,
        })
    }

    /// Adds a BAR in register `number`, and in the next one if it is 64 bits wide. The root assigns its address.
    ///
    /// # Errors
    /// The size or the registers are invalid, or another BAR has one of the registers.
    pub fn bar(mut self, number: u8, bar: Bar) -> Result<Self, FunctionError> {
        self.config.add_bar(number, bar)?;
        Ok(self)
    }

    /// Adds the MSI-X capability. Add the BARs of the table and the pending bits before.
    ///
    /// # Errors
    /// Table or pending bits don't fit their BAR, there is no space for the capability, or there is already one.
    pub fn msix(mut self, msix: Arc<Msix>, place: MsixPlace) -> Result<Self, FunctionError> {
        if self.vectors.is_some() {
            return Err(FunctionError::MsixTwice);
        }
        let (table_size, pba_size) = (msix.table_size(), msix.pba_size());
        let table = self.msix_register(place.table, table_size)?;
        let pba = self.msix_register(place.pba, pba_size)?;
        let (table_at, pba_at) = (place.table.1, place.pba.1);
        if place.table.0 == place.pba.0
            && table_at < pba_at + pba_size
            && pba_at < table_at + table_size
        {
            let (bar, offset) = place.pba;
            let size = pba_size;
            return Err(FunctionError::MsixPlace { bar, offset, size });
        }
        let [table, pba] = [table, pba].map(u32::to_le_bytes);
        // Message Control has the number of vectors minus one.
        let body = [&(msix.vectors() - 1).to_le_bytes()[..], &table, &pba].concat();
        let start = self.config.add_capability(&Capability::fixed(MSIX, body))?;
        let control = u16::from(start) + 3;
        self.vectors = Some(Vectors {
            msix,
            place,
            control,
        });
        Ok(self)
    }

    /// The capability's register for `size` bytes at a BAR's offset: the offset, with the BAR in its lowest bits.
    fn msix_register(&self, (bar, offset): (u8, u64), size: u64) -> Result<u32, FunctionError> {
        let room = self.config.bar(bar).map_or(0, Bar::size);
        let fits = offset % 8 == 0 && offset.checked_add(size).is_some_and(|end| end <= room);
        match u32::try_from(offset) {
            Ok(offset) if fits => Ok(offset | u32::from(bar)),
            _ => Err(FunctionError::MsixPlace { bar, offset, size }),
        }
    }

    /// Adds a capability after the existing ones.
    ///
    /// # Errors
    /// There is no space for it.
    pub fn capability(mut self, capability: &Capability) -> Result<Self, FunctionError> {
        let start = self.config.add_capability(capability)?;
        if capability.is_live() {
            self.live.push(Live {
                number: self.capabilities,
                start: usize::from(start),
                end: usize::from(start) + capability.len(),
            });
        }
        self.capabilities += 1;
        Ok(self)
    }

    /// Builds the function, with this device behind its BARs. Add it to a root to make it accessible.
    pub fn build(self, device: Arc<dyn PciDevice>) -> Function {
        Function {
            config: Mutex::new(self.config),
            vectors: self.vectors,
            live: self.live,
            device,
            windows: Windows::NONE,
        }
    }
}
