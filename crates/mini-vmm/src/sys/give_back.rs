// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Gives pages of guest memory back to the host. They read as zeros then, and stay mapped.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;

use libc::{
    MADV_DONTNEED, MADV_REMOVE, MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE,
    PROT_READ, PROT_WRITE,
};
use vm_memory::MmapRegion;

const PAGE: usize = 4096;

/// Gives back the bytes `range` of anonymous `memory`, or of memory that was [`replace`]d.
///
/// # Errors
/// The host's error, or the range is not of whole pages inside of the memory.
pub(crate) fn discard(memory: &MmapRegion, range: Range<usize>) -> io::Result<()> {
    advise(memory, range, MADV_DONTNEED)
}

/// Gives back the bytes `range` of `memory` that is a shared mapping: they become a hole in its file.
///
/// # Errors
/// As [`discard`].
pub(crate) fn punch(memory: &MmapRegion, range: Range<usize>) -> io::Result<()> {
    advise(memory, range, MADV_REMOVE)
}

/// Maps anonymous memory in place of the bytes `range` of `memory`, which is a private mapping of a file. Otherwise the
/// file's bytes would come back.
///
/// # Errors
/// As [`discard`]. The old mapping is still there then. If it isn't, the process ends.
pub(crate) fn replace(memory: &MmapRegion, range: Range<usize>) -> io::Result<()> {
    let (start, len) = check(memory, &range)?;
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    // SAFETY: the range lies in the live mapping, which was checked. It holds guest memory and nothing else, which is
    // accessed as volatile only, by this process and by KVM. So nobody relies on its contents, and at no time is nothing
    // mapped there: the host exchanges the mappings under its lock. Whoever unmaps the whole range unmaps this, too.
    let at = unsafe { libc::mmap(start, len, PROT_READ | PROT_WRITE, flags, -1, 0) };
    if at != MAP_FAILED {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if !is_mapped(start, len) {
        // The host took the old mapping and had nothing for the new one. Other threads would touch what is not there.
        std::process::abort();
    }
    Err(error)
}

/// Whether all of the range is mapped.
fn is_mapped(start: *mut libc::c_void, len: usize) -> bool {
    let mut resident = vec![0; len.div_ceil(PAGE)];
    // SAFETY: the call reads no memory of the range, and writes a byte for each page of it.
    unsafe { libc::mincore(start, len, resident.as_mut_ptr()) == 0 }
}

fn advise(memory: &MmapRegion, range: Range<usize>, advice: libc::c_int) -> io::Result<()> {
    let (start, len) = check(memory, &range)?;
    // SAFETY: the range lies in the live mapping, which was checked. It holds guest memory and nothing else, which is
    // accessed as volatile only, so nobody relies on its contents. It stays mapped.
    match unsafe { libc::madvise(start, len, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The address and the length of whole pages inside of `memory`.
fn check(memory: &MmapRegion, range: &Range<usize>) -> io::Result<(*mut libc::c_void, usize)> {
    let is_whole = range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE);
    if !is_whole || range.start >= range.end || range.end > memory.size() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let start = memory.as_ptr().wrapping_add(range.start);
    Ok((start.cast(), range.end - range.start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pages_of_the_memory_are_given_back() {
        let memory = MmapRegion::<()>::new(4 * 4096).unwrap();
        for give in [discard, punch, replace] {
            for range in [0..0, 1..4096, 0..4095, 0..5 * 4096, 4 * 4096..5 * 4096] {
                let error = give(&memory, range).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            }
        }
        discard(&memory, 0..4096).unwrap();
        replace(&memory, 3 * 4096..4 * 4096).unwrap();
        assert!(is_mapped(memory.as_ptr().cast(), 4 * PAGE));
        assert!(!is_mapped(std::ptr::null_mut(), PAGE));
    }
}
