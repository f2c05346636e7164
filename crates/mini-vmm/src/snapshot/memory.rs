// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory in a file. What is zero is a hole, and what the guest never touched costs no look at it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;
use vm_memory::{
    GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, VolatileSlice,
    WriteVolatile,
};

use super::spans::{Spans, intersection, push, rest, union};
use crate::layout::PAGE_SIZE;

/// A page as an index into buffers.
pub const PAGE: usize = PAGE_SIZE as usize;

/// An entry of pagemap (Documentation/admin-guide/mm/pagemap.rst of Linux).
#[derive(Clone, Copy, Debug)]
pub struct Entry(u64);

impl Entry {
    /// The page is in memory, or in swap.
    pub const fn is_in_use(self) -> bool {
        self.0 & (3 << 62) != 0
    }

    /// So it is, and no page of a file: this process wrote to it.
    pub const fn is_private(self) -> bool {
        self.is_in_use() && self.0 & (1 << 61) == 0
    }

    /// So it is, and it was written since the host last forgot that. Only some hosts know.
    pub const fn is_soft_dirty(self) -> bool {
        self.is_private() && self.0 & (1 << 55) != 0
    }
}

/// Bytes of pagemap that are read at once. They describe 32 MiB.
const MAP_CHUNK: usize = 64 << 10;
/// Bytes of guest memory between two questions whether to go on. They take milliseconds.
const PIECE: u64 = 4 << 20;

/// The regions of `memory` with the offset of each.
fn regions(memory: &GuestMemoryMmap) -> impl Iterator<Item = (u64, &GuestRegionMmap)> {
    let mut end = 0;
    memory.iter().map(move |region| {
        let start = end;
        end += region.len();
        (start, region)
    })
}

/// The ranges that may hold something other than zeros: pages that this process has in memory or swap, and data of a
/// file that is mapped. `replaced` are the ranges in which the file is not mapped any more.
///
/// # Errors
/// The host doesn't say it.
pub fn touched(memory: &GuestMemoryMmap, replaced: &[Range<u64>]) -> io::Result<Spans> {
    let in_use = wanted(memory, Entry::is_in_use)?;
    let of_file = in_all(memory, |region| match region.file_offset() {
        Some(file) => data(file.file(), file.start()..file.start() + region.len()),
        None => Ok(Spans::new()),
    })?;
    let end = of_file.last().map_or(0, |last| last.end);
    let mapped = intersection(
        &of_file,
        &rest(0..end.max(replaced_end(replaced)), replaced),
    );
    Ok(union(&in_use, &mapped))
}

fn replaced_end(replaced: &[Range<u64>]) -> u64 {
    replaced.last().map_or(0, |last| last.end)
}

/// What `look` finds in each region, as ranges from its start.
///
/// # Errors
/// Those of `look`.
pub fn in_all(
    memory: &GuestMemoryMmap,
    mut look: impl FnMut(&GuestRegionMmap) -> io::Result<Spans>,
) -> io::Result<Spans> {
    let mut all = Spans::new();
    for (offset, region) in regions(memory) {
        for span in look(region)? {
            push(&mut all, offset + span.start..offset + span.end);
        }
    }
    Ok(all)
}

/// The pages of the host that `is_wanted` wants.
///
/// # Errors
/// The host doesn't tell.
pub fn wanted(memory: &GuestMemoryMmap, is_wanted: fn(Entry) -> bool) -> io::Result<Spans> {
    let pagemap = pagemap()?;
    in_all(memory, |region| pages_of(&pagemap, region, is_wanted))
}

/// The wanted pages of a region.
///
/// # Errors
/// The host doesn't tell.
pub fn pages_of(
    pagemap: &File,
    region: &GuestRegionMmap,
    is_wanted: fn(Entry) -> bool,
) -> io::Result<Spans> {
    pages(pagemap, region.as_ptr() as u64, region.len(), is_wanted)
}

/// What the host tells about this process's pages.
///
/// # Errors
/// The host doesn't tell.
pub fn pagemap() -> io::Result<File> {
    File::open("/proc/self/pagemap")
}

/// The wanted ones of the `size` bytes at the address `from`.
///
/// # Errors
/// The host doesn't tell.
pub fn pages(
    pagemap: &File,
    from: u64,
    size: u64,
    is_wanted: fn(Entry) -> bool,
) -> io::Result<Spans> {
    let mut spans = Spans::new();
    let mut entries = vec![0; MAP_CHUNK];
    let (first, pages) = (from / PAGE_SIZE, size / PAGE_SIZE);
    let mut page = 0;
    while page < pages {
        let count = (pages - page).min(MAP_CHUNK as u64 / 8);
        let entries = &mut entries[..count as usize * 8];
        pagemap.read_exact_at(entries, (first + page) * 8)?;
        // Most chunks of a large guest are empty.
        if entries.iter().any(|byte| *byte != 0) {
            for (at, entry) in (page..).zip(entries.as_chunks().0) {
                if is_wanted(Entry(u64::from_ne_bytes(*entry))) {
                    push(&mut spans, at * PAGE_SIZE..(at + 1) * PAGE_SIZE);
                }
            }
        }
        page += count;
    }
    Ok(spans)
}

/// The ranges of a file that are no holes, counted from the start of `range` and rounded out to pages.
///
/// # Errors
/// The host doesn't say it.
pub fn data(file: &File, range: Range<u64>) -> io::Result<Spans> {
    let mut spans = Spans::new();
    let mut at = range.start;
    while at < range.end {
        let start = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
            Ok(start) if start < range.end => start,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start))?.min(range.end);
        let (first, last) = (start - range.start, end - range.start);
        push(
            &mut spans,
            first / PAGE_SIZE * PAGE_SIZE..last.next_multiple_of(PAGE_SIZE),
        );
        at = end.max(start + 1);
    }
    Ok(spans)
}

/// What becomes of pages that are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeros {
    /// They are holes.
    Holes,
    /// They are written, since a hole says that nothing changed.
    Written,
}

/// Writes the pages of `spans` to `file`, from guest memory directly. Returns how many bytes. `goes_on` is asked every few
/// milliseconds.
///
/// The file must read as zeros before. Its size is not changed if its end is a hole.
///
/// # Errors
/// The host can't write, or `goes_on` said no.
pub fn write(
    file: &File,
    memory: &GuestMemoryMmap,
    spans: &[Range<u64>],
    zeros: Zeros,
    goes_on: &dyn Fn() -> bool,
) -> io::Result<u64> {
    let (mut total, mut unasked) = (0, PIECE);
    for (offset, region) in regions(memory) {
        let all = region.as_volatile_slice().map_err(io::Error::other)?;
        for span in spans {
            let mut start = span.start.max(offset);
            let end = span.end.min(offset + region.len());
            while start < end {
                if unasked >= PIECE {
                    unasked = 0;
                    if !goes_on() {
                        return Err(io::Error::other("the machine is about to end"));
                    }
                }
                let size = (end - start).min(PIECE - unasked);
                let piece = all.subslice((start - offset) as usize, size as usize);
                total += write_piece(file, start, &piece.map_err(io::Error::other)?, zeros)?;
                start += size;
                unasked += size;
            }
        }
    }
    Ok(total)
}

/// Writes the pages of `piece` that are not zero, the first one to offset `start` of the file.
fn write_piece(
    mut file: &File,
    start: u64,
    piece: &VolatileSlice<'_>,
    zeros: Zeros,
) -> io::Result<u64> {
    let mut total = 0;
    for run in runs(piece, zeros) {
        let bytes = piece.subslice(run.start, run.len());
        file.seek(SeekFrom::Start(start + run.start as u64))?;
        let written = bytes.and_then(|bytes| file.write_all_volatile(&bytes));
        written.map_err(into_io)?;
        total += run.len() as u64;
    }
    Ok(total)
}

/// The host's error in one of vm-memory.
fn into_io(error: vm_memory::VolatileMemoryError) -> io::Error {
    match error {
        vm_memory::VolatileMemoryError::IOError(error) => error,
        other => io::Error::other(other),
    }
}

/// The longest ranges of pages that are no holes.
fn runs<'a>(slice: &'a VolatileSlice<'a>, zeros: Zeros) -> impl Iterator<Item = Range<usize>> + 'a {
    let is_hole = move |at| zeros == Zeros::Holes && is_zero(slice, at);
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < slice.len() && is_hole(at) {
            at += PAGE;
        }
        let start = at;
        while at < slice.len() && !is_hole(at) {
            at += PAGE;
        }
        (at > start).then(|| start..at.min(slice.len()))
    })
}

/// Whether the page at `at` is all zeros. It is copied to the stack, because guest memory may be accessed as volatile only.
fn is_zero(slice: &VolatileSlice<'_>, at: usize) -> bool {
    let mut page = [0u8; PAGE];
    let Ok(rest) = slice.offset(at) else {
        return true;
    };
    let count = rest.copy_to(&mut page[..]);
    page[..count] == [0; PAGE][..count]
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::layout::MIB;
    use crate::memory::allocate;

    const RAM: u64 = 32 * MIB;

    fn file() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(RAM).unwrap();
        file
    }

    /// A memory with these pages touched, the odd ones with zeros only.
    fn memory(pages: &[u64]) -> GuestMemoryMmap {
        let memory = allocate(RAM).unwrap();
        for page in pages {
            let value = if page % 2 == 0 { 1 + *page as u8 } else { 0 };
            memory
                .write_slice(&[value; PAGE], GuestAddress(page * PAGE_SIZE))
                .unwrap();
        }
        memory
    }

    fn read(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; RAM as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn only_what_was_touched_is_looked_at_and_only_what_is_not_zero_is_written() {
        let pages = [0, 1, 2, 700, 701, 8190, 8191];
        let memory = memory(&pages);
        let spans = touched(&memory, &[]).unwrap();
        for page in pages {
            let at = page * PAGE_SIZE;
            assert!(
                spans.iter().any(|span| span.contains(&at)),
                "{page}: {spans:?}"
            );
        }
        // The host may have used a huge page, but not for all.
        let size: u64 = spans.iter().map(|span| span.end - span.start).sum();
        assert!(size <= 4 * 2 * MIB, "{spans:?}");
        let file = file();
        assert_eq!(
            write(&file, &memory, &spans, Zeros::Holes, &|| true).unwrap(),
            4 * PAGE_SIZE
        );
        let bytes = read(&file);
        for page in 0..RAM / PAGE_SIZE {
            let value = match pages.contains(&page) && page % 2 == 0 {
                true => 1 + page as u8,
                false => 0,
            };
            let at = (page * PAGE_SIZE) as usize;
            assert!(bytes[at..at + PAGE].iter().all(|byte| *byte == value));
        }
    }

    #[test]
    fn a_private_mapping_of_a_file_has_its_data_and_what_was_changed() {
        let first = memory(&[0, 2, 6]);
        let base = file();
        write(
            &base,
            &first,
            &touched(&first, &[]).unwrap(),
            Zeros::Holes,
            &|| true,
        )
        .unwrap();
        let mapped = crate::memory::map(base, RAM).unwrap();
        // One page of the file becomes zero, one is changed, one is new, one stays.
        mapped.write_slice(&[0; PAGE], GuestAddress(0)).unwrap();
        mapped.write_obj(7u8, GuestAddress(2 * PAGE_SIZE)).unwrap();
        mapped
            .write_obj(9u8, GuestAddress(4000 * PAGE_SIZE))
            .unwrap();
        let second = file();
        write(
            &second,
            &mapped,
            &touched(&mapped, &[]).unwrap(),
            Zeros::Holes,
            &|| true,
        )
        .unwrap();
        let mut expected = vec![0; RAM as usize];
        mapped.read_slice(&mut expected, GuestAddress(0)).unwrap();
        assert!(read(&second) == expected);
        assert_eq!(expected[6 * PAGE], 7);
        assert_eq!(expected[2 * PAGE + 1], 3);
        let data = data(&second, 0..RAM).unwrap();
        assert!(data.iter().all(|span| !span.contains(&(100 * PAGE_SIZE))));
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let memory = memory(&[0]);
        let full = File::options().write(true).open("/dev/full").unwrap();
        let spans = touched(&memory, &[]).unwrap();
        let error = write(&full, &memory, &spans, Zeros::Holes, &|| true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
    /// Also where all is zero, and nothing is written.
    #[test]
    fn it_ends_at_the_first_no_and_asks_often() {
        let (memory, file) = (memory(&[0, 1]), file());
        let asked = Cell::new(0);
        let counted = |last| {
            asked.set(0);
            let goes_on = || asked.replace(asked.get() + 1) < last;
            let written = write(
                &file,
                &memory,
                &[0..RAM / 2, RAM / 2..RAM],
                Zeros::Holes,
                &goes_on,
            );
            (written.is_ok(), asked.get())
        };
        let pieces = RAM / PIECE;
        assert_eq!(counted(u64::MAX), (true, pieces));
        for last in 0..pieces {
            assert_eq!(counted(last), (false, last + 1));
        }
        // Many small ranges are no reason to ask more often.
        let pages: Vec<_> = (0..RAM / PAGE_SIZE / 2)
            .map(|pair| 2 * pair * PAGE_SIZE..(2 * pair + 1) * PAGE_SIZE)
            .collect();
        asked.set(0);
        let goes_on = || asked.replace(asked.get() + 1) < u64::MAX;
        write(&file, &memory, &pages, Zeros::Holes, &goes_on).unwrap();
        assert_eq!(asked.get(), pieces / 2);
    }
}
