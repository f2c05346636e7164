// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files to boot from, read piece by piece and never as a whole.

use std::fmt;
use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::error::FileError;
use crate::layout::PAGE_SIZE;

const PAGE: usize = PAGE_SIZE as usize;
static ZEROS: [u8; PAGE] = [0; PAGE];
/// Files are copied in pieces of this size, whole pages.
const COPY_SIZE: usize = 64 * PAGE;

/// A kernel or initrd: its content, and the path that messages name.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    content: Content,
}

#[derive(Debug)]
enum Content {
    File { file: File, len: u64 },
    Bytes(Vec<u8>),
}

impl Image {
    /// Opens the file at `path`. A FIFO or device is refused without waiting for it.
    ///
    /// # Errors
    /// [`FileError`] when it can't be opened, is no regular file or is empty.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(FileError::Open)?;
        Self::from_file(file, path)
    }

    /// Takes an open file; `path` is for messages.
    ///
    /// # Errors
    /// [`FileError`] when it is no regular file or is empty.
    pub fn from_file(file: File, path: &Path) -> Result<Self, FileError> {
        let metadata = file.metadata().map_err(FileError::Read)?;
        if !metadata.is_file() {
            return Err(FileError::Kind(FileKind(metadata.file_type())));
        }
        let len = metadata.len();
        if len == 0 {
            return Err(FileError::Empty);
        }
        Ok(Image {
            path: path.to_owned(),
            content: Content::File { file, len },
        })
    }

    /// Takes content that is in memory already; `path` is for messages.
    ///
    /// # Errors
    /// [`FileError::Empty`] when there is none.
    pub fn from_bytes(bytes: Vec<u8>, path: &Path) -> Result<Self, FileError> {
        if bytes.is_empty() {
            return Err(FileError::Empty);
        }
        Ok(Image {
            path: path.to_owned(),
            content: Content::Bytes(bytes),
        })
    }

    /// The path that messages name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes; of a file, as it was when it was opened.
    pub fn size(&self) -> u64 {
        self.source().len()
    }

    pub(super) fn source(&self) -> Source<'_> {
        match &self.content {
            Content::File { file, len } => Source::File(file, *len),
            Content::Bytes(bytes) => Source::Bytes(bytes),
        }
    }
}

/// What a path leads to, if not to a regular file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileKind(FileType);

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.0;
        f.write_str(match () {
            () if kind.is_dir() => "a directory",
            () if kind.is_fifo() => "a FIFO",
            () if kind.is_socket() => "a socket",
            () if kind.is_block_device() => "a block device",
            () if kind.is_char_device() => "a character device",
            () => "a special file",
        })
    }
}

/// Content that can be read at any offset, and placed into guest memory without ever being held as a whole.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    File(&'a File, u64),
    Bytes(&'a [u8]),
}

impl Source<'_> {
    pub(super) fn len(&self) -> u64 {
        match self {
            Source::File(_, len) => *len,
            Source::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Fills `buf` from `offset` on.
    pub(super) fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match self {
            Source::File(file, _) => file.read_exact_at(buf, offset),
            Source::Bytes(bytes) => {
                buf.copy_from_slice(slice(bytes, offset, buf.len())?);
                Ok(())
            }
        }
    }

    /// At most `len` bytes from `offset` on, fewer where the content ends.
    pub(super) fn read_up_to(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let left = self.len().saturating_sub(offset).min(len as u64);
        let mut buf = vec![0; left as usize];
        self.read_at(offset, &mut buf)?;
        Ok(buf)
    }

    /// Writes `len` bytes from `offset` on to guest memory at `start`, which is zero there.
    pub(super) fn place<M: GuestMemoryBackend>(
        &self,
        mem: &M,
        offset: u64,
        start: GuestAddress,
        len: usize,
    ) -> Result<(), GuestMemoryError> {
        match self {
            Source::File(file, _) => place_file(mem, file, offset, start, len),
            Source::Bytes(bytes) => {
                let bytes = slice(bytes, offset, len).map_err(GuestMemoryError::IOError)?;
                place_bytes(mem, bytes, start)
            }
        }
    }
}

fn slice(bytes: &[u8], offset: u64, len: usize) -> io::Result<&[u8]> {
    if len == 0 {
        return Ok(&[]);
    }
    usize::try_from(offset)
        .ok()
        .and_then(|offset| bytes.get(offset..offset.checked_add(len)?))
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Reads and copies piece by piece: one buffer stays in the cache, and pages of zeros are left alone (see
/// [`place_bytes`]), which is a third of a stock vmlinux. Reading straight into guest memory would touch them all.
fn place_file<M: GuestMemoryBackend>(
    mem: &M,
    file: &File,
    offset: u64,
    start: GuestAddress,
    len: usize,
) -> Result<(), GuestMemoryError> {
    let mut buf = vec![0; len.min(COPY_SIZE)];
    let mut done = 0;
    while done < len {
        let piece = &mut buf[..(len - done).min(COPY_SIZE)];
        file.read_exact_at(piece, offset + done as u64)
            .map_err(GuestMemoryError::IOError)?;
        place_bytes(mem, piece, GuestAddress(start.0 + done as u64))?;
        done += piece.len();
    }
    Ok(())
}

/// Copies page by page and leaves pages of zeros alone: a kernel's .bss, often stored in full, then takes no host
/// memory before the guest uses it.
fn place_bytes<M: GuestMemoryBackend>(
    mem: &M,
    bytes: &[u8],
    start: GuestAddress,
) -> Result<(), GuestMemoryError> {
    for (at, page) in (start.0..).step_by(PAGE).zip(bytes.chunks(PAGE)) {
        if *page != ZEROS[..page.len()] {
            mem.write_slice(page, GuestAddress(at))?;
        }
    }
    Ok(())
}
