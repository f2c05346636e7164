// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which pages of the host serve guest memory.
#![allow(unsafe_code)]

use std::ops::Range;

use libc::{MADV_HUGEPAGE, MADV_NOHUGEPAGE};
use vm_memory::MmapRegion;

/// x86's huge page in bytes.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// A choice of the host's pages.
#[derive(Clone, Copy, Debug)]
pub enum Pages {
    /// The smallest only.
    Small,
    /// Huge ones where it can.
    Huge,
}

/// Has the host serve the bytes `range` of `memory` with `pages`, from the page where it starts (the host ignores a
/// range that starts within one) to the end of the page where it ends. A host without huge pages refuses, and serves
/// them with small ones.
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
