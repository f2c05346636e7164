// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sets which host pages back guest memory.
#![allow(unsafe_code)]

use std::ops::Range;

use libc::{MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_RANDOM};
use vm_memory::MmapRegion;

/// x86's huge page in bytes.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// A page size of the host.
#[derive(Clone, Copy, Debug)]
pub enum Pages {
    /// Only the smallest.
    Small,
    /// Huge ones if possible.
    Huge,
}

/// Makes the host back the bytes `range` of `memory` with `pages`. The range should start on a page, else the host
/// ignores it; its end is rounded up. A host without huge pages refuses, and uses small ones.
pub fn advise(memory: &MmapRegion, range: Range<usize>, pages: Pages) {
    if range.is_empty() || range.end > memory.size() {
        return;
    }
    let advice = match pages {
        Pages::Small => MADV_NOHUGEPAGE,
        Pages::Huge => MADV_HUGEPAGE,
    };
    // SAFETY: the range lies in the live mapping, which was checked, and the advice changes no content.
    unsafe {
        libc::madvise(
            memory.as_ptr().add(range.start).cast(),
            range.end - range.start,
            advice,
        )
    };
}

/// Makes the host read only those pages of `memory`'s file that are touched, without their neighbours.
pub fn read_singly(memory: &MmapRegion) {
    // SAFETY: the range is the live mapping, and the advice changes no content.
    unsafe { libc::madvise(memory.as_ptr().cast(), memory.size(), MADV_RANDOM) };
}
