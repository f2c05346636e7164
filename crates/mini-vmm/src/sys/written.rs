// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pages that were written since the last look (Linux 6.7: userfaultfd's `WP_ASYNC`, and `PAGEMAP_SCAN`).
//!
//! The host protects pages against writes, and lifts that at the first write without asking anybody. It sees the writes
//! of the guest, of KVM and of this process alike.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use libc::{Ioctl, c_int};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use super::uffd;

// From linux/fs.h.
const PAGEMAP_SCAN: Ioctl = 0xc060_6610;
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// How many ranges the host tells at once.
const RANGES: usize = 4096;

/// What a look does to the marks that it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// They stay.
    Stay,
    /// They are removed, so that the next look sees later writes only.
    Go,
}

/// Makes the host mark the pages of guest memory that are written. The host stops when this is dropped.
#[derive(Debug)]
pub struct Written {
    uffd: OwnedFd,
}

impl Written {
    /// Lets the host watch `memory`. Until the first look that removes the marks, all private pages count as written.
    ///
    /// # Errors
    /// The host can't, or something else watches the memory already.
    pub fn new(memory: &GuestMemoryMmap) -> io::Result<Self> {
        let uffd = uffd::create_for_writes()?;
        for region in memory.iter() {
            uffd::register_for_writes(&uffd, region)?;
        }
        Ok(Written { uffd })
    }

    /// The private pages of `region` that were written, as ranges of bytes from its start, in order.
    /// `pagemap` is this process's `/proc/self/pagemap`.
    ///
    /// # Errors
    /// The host can't tell. Some marks may be gone.
    pub fn look(
        &self,
        pagemap: &File,
        region: &GuestRegionMmap,
        marks: Marks,
    ) -> io::Result<Vec<Range<u64>>> {
        // Parts of the region may be mapped anew since the last time. Their private pages count as written.
        uffd::register_for_writes(&self.uffd, region)?;
        let base = region.as_ptr() as u64;
        let mut ranges = vec![PageRegion::default(); RANGES];
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            flags: match marks {
                Marks::Stay => PM_SCAN_CHECK_WPASYNC,
                Marks::Go => PM_SCAN_CHECK_WPASYNC | PM_SCAN_WP_MATCHING,
            },
            start: base,
            end: base + region.len(),
            vec: ranges.as_mut_ptr() as u64,
            vec_len: RANGES as u64,
            // Pages of a mapped file are as the file says.
            category_inverted: PAGE_IS_FILE,
            category_mask: PAGE_IS_WRITTEN | PAGE_IS_FILE,
            // Else the host would put marks at pages that nobody has touched, and they would look used.
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_WRITTEN,
            ..Scan::default()
        };
        let mut found = Vec::new();
        while scan.start < scan.end {
            // SAFETY: the argument is the structure that the call takes. Its vector is `ranges`, which has room for as
            // many as it says, and both live through the call.
            let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
            let count = check(count)? as usize;
            let ranges = ranges.iter().take(count);
            found.extend(ranges.map(|range| range.start - base..range.end - base));
            if scan.walk_end <= scan.start {
                return Err(io::Error::other(
                    "the host's look at memory does not proceed",
                ));
            }
            scan.start = scan.walk_end;
        }
        Ok(found)
    }
}

/// The result of a system call.
fn check(result: c_int) -> io::Result<c_int> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
