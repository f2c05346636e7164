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
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::{Ioctl, c_int};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

// From linux/userfaultfd.h.
const UFFD_USER_MODE_ONLY: c_int = 1;
const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
const UFFDIO_API: Ioctl = 0xc018_aa3f;
const UFFDIO_REGISTER: Ioctl = 0xc020_aa00;

// From linux/fs.h.
const PAGEMAP_SCAN: Ioctl = 0xc060_6610;
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

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
    _uffd: OwnedFd,
}

impl Written {
    /// Lets the host watch `memory`. Until the first look that removes the marks, all private pages count as written.
    ///
    /// # Errors
    /// The host can't, or something else watches the memory already.
    pub fn new(memory: &GuestMemoryMmap) -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | UFFD_USER_MODE_ONLY;
        // SAFETY: the call takes flags only, and returns a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, so nobody else owns it. It fits, as descriptors are ints.
        let uffd = unsafe { OwnedFd::from_raw_fd(fd as c_int) };
        let mut api = Api {
            api: UFFD_API,
            features: UFFD_FEATURE_WP_ASYNC,
            ioctls: 0,
        };
        // SAFETY: the argument is the structure that the call takes, and it lives through the call.
        check(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_API, &raw mut api) })?;
        for region in memory.iter() {
            let mut register = Register {
                start: region.as_ptr() as u64,
                len: region.len(),
                mode: UFFDIO_REGISTER_MODE_WP,
                ioctls: 0,
            };
            // SAFETY: as above. The range is a live mapping. Its contents don't change, and writes to it still succeed,
            // since the host lifts the protection itself.
            check(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) })?;
        }
        Ok(Written { _uffd: uffd })
    }

    /// Tells `found` the private pages of `region` that were written, as ranges of bytes from its start, in order.
    /// `pagemap` is this process's `/proc/self/pagemap`.
    ///
    /// # Errors
    /// The host can't tell. Some marks may be gone.
    pub fn look(
        &self,
        pagemap: &File,
        region: &GuestRegionMmap,
        marks: Marks,
        found: &mut dyn FnMut(Range<u64>),
    ) -> io::Result<()> {
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
        while scan.start < scan.end {
            // SAFETY: the argument is the structure that the call takes. Its vector is `ranges`, which has room for as
            // many as it says, and both live through the call.
            let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
            let count = check(count)? as usize;
            for range in ranges.iter().take(count) {
                found(range.start - base..range.end - base);
            }
            if scan.walk_end <= scan.start {
                return Err(io::Error::other(
                    "the host's look at memory does not proceed",
                ));
            }
            scan.start = scan.walk_end;
        }
        Ok(())
    }
}

/// The result of a system call.
fn check(result: c_int) -> io::Result<c_int> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
