// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files to boot from. They are read in pieces, except for pipes, which can be read only once.

use std::fmt;
use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::error::FileError;
use super::pipe;
use super::watch::{Guard, Work};
use crate::layout::PAGE_SIZE;

const PAGE: usize = PAGE_SIZE as usize;
static ZEROS: [u8; PAGE] = [0; PAGE];
/// Images are copied in pieces of this size, a multiple of the page size.
const COPY_SIZE: usize = 64 * PAGE;

/// A kernel or initrd: its content, and the path for messages.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    content: Content,
}

#[derive(Debug)]
enum Content {
    File {
        file: File,
        len: u64,
    },
    /// The content is kept, since a reset boots from it again.
    Pipe {
        file: File,
        bytes: OnceLock<Vec<u8>>,
    },
    Bytes(Vec<u8>),
}

impl Image {
    /// Opens the file at `path` without blocking. A pipe is not read before the image is [received](super::receive) or
    /// loaded. A device is refused.
    ///
    /// # Errors
    /// [`FileError`] when it can't be opened, is neither a regular file nor a pipe, or is empty.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(FileError::Open)?;
        Self::from_file(file, path)
    }

    /// Takes an open file; `path` is for messages. A pipe should be non-blocking (`O_NONBLOCK`).
    ///
    /// # Errors
    /// [`FileError`] when it is neither a regular file nor a pipe, or is empty.
    pub fn from_file(file: File, path: &Path) -> Result<Self, FileError> {
        let metadata = file.metadata().map_err(FileError::Read)?;
        if metadata.file_type().is_fifo() {
            let bytes = OnceLock::new();
            return Ok(Image {
                path: path.to_owned(),
                content: Content::Pipe { file, bytes },
            });
        }
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

    /// Takes content from memory; `path` is for messages.
    ///
    /// # Errors
    /// [`FileError::Empty`] when `bytes` is empty.
    pub fn from_bytes(bytes: Vec<u8>, path: &Path) -> Result<Self, FileError> {
        if bytes.is_empty() {
            return Err(FileError::Empty);
        }
        Ok(Image {
            path: path.to_owned(),
            content: Content::Bytes(bytes),
        })
    }

    /// The path for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes. For a file, its size when opened; for a pipe, 0 until it was read.
    pub fn size(&self) -> u64 {
        self.source().len()
    }

    pub(super) fn source(&self) -> Source<'_> {
        match &self.content {
            Content::File { file, len } => Source::File(file, *len),
            Content::Pipe { bytes, .. } => Source::Bytes(bytes.get().map_or(&[], Vec::as_slice)),
            Content::Bytes(bytes) => Source::Bytes(bytes),
        }
    }

    /// Reads a pipe, at most `max` bytes of it, unless it was read before.
    pub(super) fn receive(
        &self,
        max: u64,
        guard: &Guard<'_>,
        what: &'static str,
    ) -> Result<(), FileError> {
        match &self.content {
            Content::Pipe { file, bytes } if bytes.get().is_none() => {
                let ask = |done| guard.ask(Work::Read(what), done, None);
                let received = pipe::read(file, max, &ask)?;
                bytes.get_or_init(|| received);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// The type of a file that is not a regular file.
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

/// Content that can be read at any offset, and copied to guest memory in pieces.
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

    /// Reads `len` bytes from `offset` on, fewer at the end of the content.
    pub(super) fn read_up_to(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let left = self.len().saturating_sub(offset).min(len as u64);
        let mut buf = vec![0; left as usize];
        self.read_at(offset, &mut buf)?;
        Ok(buf)
    }

    /// Writes `len` bytes from `offset` on to guest memory at `start`, which must be zero there. Before each piece it
    /// [asks](Ask) whether to go on.
    pub(super) fn place<M: GuestMemoryBackend>(
        &self,
        mem: &M,
        offset: u64,
        start: GuestAddress,
        len: usize,
        ask: Ask<'_>,
    ) -> Result<(), GuestMemoryError> {
        let mut buf = match self {
            // One buffer stays in the cache. Reading straight into guest memory would also touch the pages of zeros.
            Source::File(..) => vec![0; len.min(COPY_SIZE)],
            Source::Bytes(_) => Vec::new(),
        };
        let mut done = 0;
        while done < len {
            ask(done as u64).map_err(GuestMemoryError::IOError)?;
            let size = (len - done).min(COPY_SIZE);
            let from = offset + done as u64;
            let piece = match self {
                Source::File(file, _) => file
                    .read_exact_at(&mut buf[..size], from)
                    .map(|()| &buf[..size]),
                Source::Bytes(bytes) => slice(bytes, from, size),
            };
            let piece = piece.map_err(GuestMemoryError::IOError)?;
            place_bytes(mem, piece, GuestAddress(start.0 + done as u64))?;
            done += size;
        }
        Ok(())
    }

    /// Fills `buf` from `offset` on. Before each piece it [asks](Ask) whether to go on.
    pub(super) fn read_asking(&self, offset: u64, buf: &mut [u8], ask: Ask<'_>) -> io::Result<()> {
        for (index, piece) in buf.chunks_mut(COPY_SIZE).enumerate() {
            let done = (index * COPY_SIZE) as u64;
            ask(done)?;
            self.read_at(offset + done, piece)?;
        }
        Ok(())
    }
}

/// Whether to go on, with this many bytes done. Returns an error to stop.
pub(super) type Ask<'a> = &'a dyn Fn(u64) -> io::Result<()>;

fn slice(bytes: &[u8], offset: u64, len: usize) -> io::Result<&[u8]> {
    if len == 0 {
        return Ok(&[]);
    }
    usize::try_from(offset)
        .ok()
        .and_then(|offset| bytes.get(offset..offset.checked_add(len)?))
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Copies page by page and skips pages of zeros, about a third of a stock vmlinux. The .bss is often stored in full;
/// this way it takes no host memory until the guest uses it.
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
