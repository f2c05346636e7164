// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A function: configuration space, BARs, MSI-X, and the device behind them.

mod builder;
mod device;
mod state;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::bar::BARS;
use crate::config::ConfigSpace;
use crate::msix::Msix;
use crate::sync::lock;
use crate::window::{Span, Windows};

pub use builder::{FunctionBuilder, FunctionError};
pub use device::{NoDevice, PciDevice, Reply};
pub use state::{FunctionState, FunctionStateError};

/// The position of a function's MSI-X table and pending bits, each as (BAR, offset in it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MsixPlace {
    /// The table.
    pub table: (u8, u64),
    /// The pending bits.
    pub pba: (u8, u64),
}

/// The vectors and their position.
struct Vectors {
    msix: Arc<Msix>,
    place: MsixPlace,
    /// The register with Message Control's upper byte, whose value is in the vectors.
    control: u16,
}

/// Bytes of configuration space that the device handles.
struct Live {
    /// The capability's number, as [`PciDevice`] knows it.
    number: usize,
    /// Its first offset.
    start: usize,
    /// The offset after its end.
    end: usize,
}

/// A BAR that is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decoded {
    pub bar: u8,
    pub first: u64,
    pub last: u64,
}

/// The target of an access to a BAR.
enum Target<'a> {
    Table(&'a Msix, u64),
    Pba(&'a Msix, u64),
    Device,
    /// The access spans two of them.
    Nobody,
}

/// A function of a device.
///
/// Its lock is held only for register arithmetic, never during calls of the device, the vectors or a sink.
pub struct Function {
    config: Mutex<ConfigSpace>,
    vectors: Option<Vectors>,
    live: Vec<Live>,
    device: Arc<dyn PciDevice>,
    windows: Windows,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function")
            .field("config", &*lock(&self.config))
            .finish_non_exhaustive()
    }
}

impl Function {
    /// The guest-physical address at which a BAR is currently decoded. `None` if the guest has disabled the BARs or
    /// moved this one out of the root's windows, or if there is no such BAR.
    pub fn decoded(&self, bar: u8) -> Option<u64> {
        let config = lock(&self.config);
        self.decode(&config, bar).map(|decoded| decoded.first)
    }

    fn decode(&self, config: &ConfigSpace, bar: u8) -> Option<Decoded> {
        let size = config.bar(bar)?.size();
        let first = config.bar_address(bar)?;
        // A BAR's address is a multiple of its size, so its end doesn't wrap around.
        let last = first | (size - 1);
        let answers = config.decodes_memory() && self.windows.have_bar(first, last);
        answers.then_some(Decoded { bar, first, last })
    }

    /// Visits the decoded BARs in ascending order of their numbers.
    pub(crate) fn for_each_decoded(&self, mut visit: impl FnMut(Decoded)) {
        let config = lock(&self.config);
        for (bar, _) in config.bars() {
            if let Some(decoded) = self.decode(&config, bar) {
                visit(decoded);
            }
        }
    }

    /// Configuration space, to change it before the guest runs.
    pub(crate) fn config_mut(&mut self) -> &mut ConfigSpace {
        self.config
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the windows in which BARs are decoded.
    pub(crate) fn set_windows(&mut self, windows: Windows) {
        self.windows = windows;
    }

    /// The device behind the BARs.
    pub(crate) fn device(&self) -> &dyn PciDevice {
        &*self.device
    }

    /// The guest reads configuration space, with any width.
    pub fn read_config(&self, register: u16, data: &mut [u8]) {
        lock(&self.config).read(register, data);
        if let Some(vectors) = &self.vectors
            && let Some(at) = vectors.control.checked_sub(register)
            && let Some(place) = data.get_mut(usize::from(at))
        {
            *place |= vectors.msix.control();
        }
        for live in &self.live {
            if let Some((at, offset, len)) = live.part(register, data.len()) {
                self.device
                    .read_capability(live.number, offset, &mut data[at..at + len]);
            }
        }
    }

    /// The guest writes configuration space, at any width. Returns whether BARs are now decoded at other addresses. Then the
    /// caller updates its table of BARs and calls [`PciDevice::moved`], as [`PciRoot`](crate::PciRoot) does.
    #[must_use]
    pub fn write_config(&self, register: u16, data: &[u8]) -> bool {
        let ((), moved) = self.change(|config| config.write(register, data));
        if let Some(vectors) = &self.vectors
            && let Some(at) = vectors.control.checked_sub(register)
            && let Some(value) = data.get(usize::from(at))
        {
            vectors.msix.write_control(*value);
        }
        for live in &self.live {
            if let Some((at, offset, len)) = live.part(register, data.len()) {
                self.device
                    .write_capability(live.number, offset, &data[at..at + len]);
            }
        }
        moved
    }

    /// Changes configuration space. Returns the result of `change`, and whether BARs are now decoded at other addresses.
    fn change<T>(&self, change: impl FnOnce(&mut ConfigSpace) -> T) -> (T, bool) {
        let all = |config: &ConfigSpace| -> [_; BARS as usize] {
            std::array::from_fn(|bar| self.decode(config, bar as u8))
        };
        let mut config = lock(&self.config);
        let before = all(&config);
        let result = change(&mut config);
        (result, before != all(&config))
    }

    /// The guest reads from a BAR, with any width. The access must be entirely in the BAR.
    pub fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) -> Reply {
        match self.target(bar, offset, data.len()) {
            Target::Table(msix, offset) => msix.read_table(offset, data),
            Target::Pba(msix, offset) => msix.read_pba(offset, data),
            Target::Device => return self.device.read_bar(bar, offset, data),
            Target::Nobody => return Reply::Unclaimed,
        }
        Reply::Done
    }

    /// The guest writes to a BAR, with any width. The access must be entirely in the BAR.
    pub fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) -> Reply {
        match self.target(bar, offset, data.len()) {
            Target::Table(msix, offset) => msix.write_table(offset, data),
            // Read-only.
            Target::Pba(..) => {}
            Target::Device => return self.device.write_bar(bar, offset, data),
            Target::Nobody => return Reply::Unclaimed,
        }
        Reply::Done
    }

    fn target(&self, bar: u8, offset: u64, len: usize) -> Target<'_> {
        let Some(Vectors { msix, place, .. }) = &self.vectors else {
            return Target::Device;
        };
        let last = offset.saturating_add((len as u64).saturating_sub(1));
        let table = Span::new(place.table.1, msix.table_size());
        let pba = Span::new(place.pba.1, msix.pba_size());
        let in_table = bar == place.table.0 && table.overlaps(offset, last);
        let in_pba = bar == place.pba.0 && pba.overlaps(offset, last);
        match (in_table, in_pba) {
            (false, false) => Target::Device,
            (true, false) if table.contains(offset, last) => {
                Target::Table(msix, offset - table.base)
            }
            (false, true) if pba.contains(offset, last) => Target::Pba(msix, offset - pba.base),
            _ => Target::Nobody,
        }
    }
}

impl Live {
    /// The part of an access of `len` bytes at `register` that hits it: offset in the access, offset in the capability,
    /// number of bytes.
    fn part(&self, register: u16, len: usize) -> Option<(usize, u8, usize)> {
        let first = usize::from(register);
        // ID and next pointer are read-only.
        let start = first.max(self.start + 2);
        let end = self.end.min(first + len);
        (start < end).then(|| (start - first, (start - self.start) as u8, end - start))
    }
}

#[cfg(test)]
mod tests;
