// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Large zeroed buffers.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::slice;

use vm_memory::MmapRegion;

use super::huge_pages::{HUGE_PAGE, Pages, advise};

/// A zeroed buffer in its own mapping. Its pages are cleared only once, by the host, are huge from 2 MiB on if
/// possible, and are returned to the host on drop.
pub struct Zeroed {
    /// `None` for an empty buffer.
    region: Option<MmapRegion>,
}

impl Zeroed {
    /// A buffer of `size` bytes, or `None` if the address space has no space for it. The host allocates the memory on
    /// the first write; if it has none left then, it kills a process.
    pub fn new(size: usize) -> Option<Self> {
        if size == 0 {
            return Some(Zeroed { region: None });
        }
        let region = MmapRegion::new(size).ok()?;
        if size >= HUGE_PAGE {
            advise(&region, 0..size, Pages::Huge);
        }
        Some(Zeroed {
            region: Some(region),
        })
    }
}

impl Deref for Zeroed {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.region {
            // SAFETY: the region is a live mapping of `region.size()` initialized bytes. Only this buffer has a view of
            // it, and lends it by the rules of references.
            Some(region) => unsafe { slice::from_raw_parts(region.as_ptr(), region.size()) },
            None => &[],
        }
    }
}

impl DerefMut for Zeroed {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &self.region {
            // SAFETY: as in `deref`; `&mut self` excludes all other references.
            Some(region) => unsafe { slice::from_raw_parts_mut(region.as_ptr(), region.size()) },
            None => &mut [],
        }
    }
}

impl fmt::Debug for Zeroed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Zeroed({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zero_and_ours() {
        for size in [0, 1, 4096, (2 << 20) + 1] {
            let mut buffer = Zeroed::new(size).unwrap();
            assert_eq!(buffer.len(), size);
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer.fill(7);
            assert!(buffer.iter().all(|byte| *byte == 7));
        }
        assert!(Zeroed::new(usize::MAX / 2).is_none());
    }
}
