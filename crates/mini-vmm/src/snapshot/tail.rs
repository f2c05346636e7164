// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What follows the guest's bytes in a memory file: pages that say to which snapshots it belongs, and a Diff's list of
//! changed pages.
//!
//! A Full snapshot has its page first. A Diff has its page at the place of its depth, and holes before it. So a tool that
//! copies the data of Diffs over a Full file, as Firecracker's does, leaves a chain of pages that can be checked.
//!
//! The list has a bit for each page of the guest. It has one size and one meaning, whatever its bytes are.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::format::{FORMAT, Id, MAX_DEPTH};
use super::load::{Error, open};
use super::memory::PAGE;
use super::pages::Pages;
use super::spans::{Spans, push};
use crate::config::check_memory;
use crate::layout::PAGE_SIZE;

/// What a Full snapshot's page begins with, so that other files are told apart.
const FULL: &str = "mini-vmm memory";
/// What a Diff's page begins with.
const DIFF: &str = "mini-vmm changes";

/// Bytes of the list that are used at once, so that a list of many ranges takes little memory.
const CHUNK: usize = 64 << 10;

/// The bytes of guest memory that [`CHUNK`] bytes of the list describe.
pub const WINDOW: u64 = CHUNK as u64 * 8 * PAGE_SIZE;

/// What a page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// The snapshot.
    pub id: Id,
    /// The guest's bytes.
    pub size: u64,
    /// The snapshot that a Diff continues.
    pub parent: Option<Id>,
}

impl Tail {
    /// Its text. It is written last, so a file without it is not complete.
    pub fn text(&self) -> String {
        let Tail { id, size, parent } = self;
        match parent {
            None => format!("{FULL} {FORMAT} {id} {size}\n"),
            Some(parent) => format!("{DIFF} {FORMAT} {id} {size} {parent}\n"),
        }
    }

    /// Reads a page.
    fn parse(page: &[u8]) -> Option<Self> {
        let end = page.iter().rposition(|byte| *byte != 0)? + 1;
        let text = str::from_utf8(&page[..end]).ok()?.strip_suffix('\n')?;
        let words: Vec<_> = text.split(' ').collect();
        let (kind, format, id, size, parent) = match words[..] {
            [a, b, format, id, size] => ([a, b].join(" ") == FULL, format, id, size, None),
            [a, b, format, id, size, parent] => {
                let parent = Some(Id::parse(parent)?);
                ([a, b].join(" ") == DIFF, format, id, size, parent)
            }
            _ => return None,
        };
        (kind && format == FORMAT.to_string()).then_some(())?;
        Some(Tail {
            id: Id::parse(id)?,
            size: size.parse().ok()?,
            parent,
        })
    }
}

/// Where the page of a snapshot of this depth is.
pub const fn page_at(ram: u64, depth: u32) -> u64 {
    ram + depth as u64 * PAGE_SIZE
}

/// Where a Diff's list is.
const fn list_at(ram: u64) -> u64 {
    page_at(ram, MAX_DEPTH + 1)
}

/// The guest's bytes of a Diff's file of this size.
fn ram_of_diff(size: u64) -> Option<u64> {
    let bytes = size.checked_sub(list_at(0))?;
    // A page has its bytes and one bit.
    let pages = bytes.checked_mul(8)? / (8 * PAGE_SIZE + 1);
    let ram = pages * PAGE_SIZE;
    (check_memory(ram).is_ok() && bytes == ram + list_size(ram)).then_some(ram)
}

/// The bytes of a Diff's list.
const fn list_size(ram: u64) -> u64 {
    (ram / PAGE_SIZE).div_ceil(8)
}

/// A memory file that is read.
#[derive(Debug)]
pub struct MemoryFile {
    /// It.
    pub file: File,
    path: PathBuf,
    /// The guest's bytes.
    ram: u64,
}

impl MemoryFile {
    /// Opens the file at `path`, which should have `ram` bytes of a guest.
    ///
    /// # Errors
    /// The host can't open it, or it is too short.
    pub fn open(path: &Path, ram: u64) -> Result<Self, Error> {
        let (file, size) = open(path)?;
        match size > ram {
            true => Ok(MemoryFile {
                file,
                path: path.to_owned(),
                ram,
            }),
            false => Err(Error::Tail),
        }
    }

    /// Opens a Diff's file, whose size says how many bytes the guest has. Returns also its depth and its page.
    ///
    /// # Errors
    /// The host can't open or read it, or it is no complete Diff.
    pub fn open_diff(path: &Path) -> Result<(Self, u32, Tail), Error> {
        let (file, size) = open(path)?;
        let path = path.to_owned();
        let mut memory = MemoryFile { file, path, ram: 0 };
        let Some(ram) = ram_of_diff(size) else {
            return Err(memory.without_list(size));
        };
        memory.ram = ram;
        for depth in 1..=MAX_DEPTH {
            match memory.page(depth)? {
                Some(tail) if tail.parent.is_some() => return Ok((memory, depth, tail)),
                Some(_) => break,
                None => {}
            }
        }
        Err(Error::Tail)
    }

    /// Why a file of this size is no Diff. A whole one ends with a page.
    fn without_list(&self, size: u64) -> Error {
        let mut page = [0; PAGE_SIZE as usize];
        let last = size.saturating_sub(1) / PAGE_SIZE * PAGE_SIZE;
        match self.read_up_to(&mut page, last) {
            Ok(count) if Tail::parse(&page[..count]).is_some() => Error::WHOLE,
            Ok(_) => Error::Tail,
            Err(error) => error,
        }
    }

    /// Reads as many bytes as there are.
    fn read_up_to(&self, bytes: &mut [u8], at: u64) -> Result<usize, Error> {
        let mut count = 0;
        while count < bytes.len() {
            match self.file.read_at(&mut bytes[count..], at + count as u64) {
                Ok(0) => break,
                Ok(more) => count += more,
                Err(reason) if reason.kind() == io::ErrorKind::Interrupted => {}
                Err(reason) => {
                    let path = self.path.clone();
                    return Err(Error::Read { path, reason });
                }
            }
        }
        Ok(count)
    }

    /// Reads the page of a snapshot of this depth. `None` is a page that is empty or not there.
    fn page(&self, depth: u32) -> Result<Option<Tail>, Error> {
        let mut page = [0; PAGE_SIZE as usize];
        let count = self.read_up_to(&mut page, page_at(self.ram, depth))?;
        if page[..count].iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let tail = Tail::parse(&page[..count]).ok_or(Error::Tail)?;
        match tail.size == self.ram {
            true => Ok(Some(tail)),
            false => Err(Error::Lie("its sizes of memory differ")),
        }
    }

    /// The pages of a file with all of a guest's memory: that of a Full snapshot, and those of Diffs in the order in which
    /// they were merged onto it. There is at least one.
    ///
    /// # Errors
    /// The host can't read, the file is not complete, or a Diff is missing between two others.
    pub fn chain(&self) -> Result<Vec<Tail>, Error> {
        let mut tails: Vec<Tail> = Vec::new();
        for depth in 0..=MAX_DEPTH {
            let Some(tail) = self.page(depth)? else {
                break;
            };
            match (tail.parent, tails.last().map(|before| before.id)) {
                (None, None) => {}
                (Some(parent), Some(base)) if parent == base => {}
                (Some(parent), Some(base)) => return Err(Error::Stranger { parent, base }),
                _ => return Err(Error::Tail),
            }
            tails.push(tail);
        }
        if tails.is_empty() {
            return Err(self.without_base());
        }
        Ok(tails)
    }

    /// Why a file has no Full snapshot's page.
    fn without_base(&self) -> Error {
        for depth in 1..=MAX_DEPTH {
            if let Ok(Some(Tail {
                parent: Some(parent),
                ..
            })) = self.page(depth)
            {
                return Error::Changes { parent };
            }
        }
        Error::Tail
    }

    /// The page of a Diff of this depth.
    ///
    /// # Errors
    /// The host can't read, or the file is no complete Diff of this depth.
    pub fn diff(&self, depth: u32) -> Result<Tail, Error> {
        let tail = self.page(depth)?;
        tail.filter(|tail| tail.parent.is_some()).ok_or(Error::Tail)
    }

    /// The changed pages in the window of guest memory that starts at `start`, a multiple of [`WINDOW`].
    ///
    /// # Errors
    /// The host can't read, the list is too short, or it names a page that the guest doesn't have.
    pub fn changed(&self, start: u64) -> Result<Spans, Error> {
        let mut bytes = vec![0; CHUNK];
        let size = list_size(self.ram.saturating_sub(start));
        let bytes = &mut bytes[..size.min(CHUNK as u64) as usize];
        let at = list_at(self.ram) + start / PAGE_SIZE / 8;
        if self.read_up_to(bytes, at)? < bytes.len() {
            return Err(Error::Tail);
        }
        let mut spans = Spans::new();
        for (first, byte) in (0u64..).step_by(8).zip(&*bytes) {
            for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
                let page = start + (first + bit) * PAGE_SIZE;
                push(&mut spans, page..page + PAGE_SIZE);
            }
        }
        match spans.last() {
            Some(last) if last.end > self.ram => {
                Err(Error::Lie("it lists pages that the guest lacks"))
            }
            _ => Ok(spans),
        }
    }

    /// Checks a Diff's list.
    ///
    /// # Errors
    /// As [`changed`](Self::changed).
    pub fn check_list(&self) -> Result<(), Error> {
        let mut windows = (0..self.ram).step_by(WINDOW as usize);
        windows.try_for_each(|start| self.changed(start).map(drop))
    }
}

/// Writes the list of a Diff. What is zero stays a hole.
///
/// # Errors
/// The host can't write.
pub fn write_list(file: &File, ram: u64, changed: &[Range<u64>]) -> io::Result<()> {
    let size = list_size(ram);
    // Its last byte may be a hole.
    file.set_len(list_at(ram) + size)?;
    let Pages(words) = Pages::new(changed, ram);
    for (at, words) in (0..).step_by(PAGE).zip(words.chunks(PAGE / 8)) {
        if words.iter().any(|word| *word != 0) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let left = (size - at).min(bytes.len() as u64) as usize;
            file.write_all_at(&bytes[..left], list_at(ram) + at)?;
        }
    }
    Ok(())
}
