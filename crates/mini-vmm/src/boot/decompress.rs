// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Decompresses a bzImage's payload on the host, in every format that Linux's build supports.
//!
//! The payload ends with its decompressed size. The output buffer is allocated once, with that size, and never grows.
//! The formats are those of the kernel's `scripts/Makefile.lib`.

mod lzop;

use std::cell::Cell;
use std::fmt;
use std::io::{self, BufRead, Read};

use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

use super::watch::{Guard, Watch, Work};
use crate::memory::Size;
pub use crate::sys::zeroed::Zeroed;

/// The limit for the decoders' own memory (xz and lzma dictionaries), in KiB.
const MAX_DICTIONARY_KIB: u32 = 256 << 10;
/// The watcher is asked after each piece of this many bytes. A slow host takes 20 ms for one.
const PIECE: usize = 64 << 10;
/// The payload's last four bytes are the size of the decompressed kernel, little-endian.
const TRAILER: usize = 4;

/// A format of the compressed kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// `CONFIG_KERNEL_GZIP`
    Gzip,
    /// `CONFIG_KERNEL_BZIP2`
    Bzip2,
    /// `CONFIG_KERNEL_LZMA`
    Lzma,
    /// `CONFIG_KERNEL_XZ`
    Xz,
    /// `CONFIG_KERNEL_LZO`
    Lzo,
    /// `CONFIG_KERNEL_LZ4`, in its legacy frame format
    Lz4,
    /// `CONFIG_KERNEL_ZSTD`
    Zstd,
}

impl Compression {
    /// Detects the format by the first bytes of a payload.
    pub fn of(payload: &[u8]) -> Option<Self> {
        let magics: [(&[u8], Compression); 7] = [
            (b"\x1f\x8b", Compression::Gzip),
            (b"BZh", Compression::Bzip2),
            (b"\x5d\0\0", Compression::Lzma),
            (b"\xfd7zXZ\0", Compression::Xz),
            (lzop::MAGIC, Compression::Lzo),
            (LZ4_LEGACY_MAGIC, Compression::Lz4),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
        ];
        magics
            .into_iter()
            .find_map(|(magic, format)| payload.starts_with(magic).then_some(format))
    }
}

impl Compression {
    /// Whether the guest decompresses this format about as fast as the host. The host also copies the result into
    /// place.
    pub const fn is_quick(self) -> bool {
        matches!(self, Compression::Lz4 | Compression::Lzo)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compression::Gzip => "gzip",
            Compression::Bzip2 => "bzip2",
            Compression::Lzma => "lzma",
            Compression::Xz => "xz",
            Compression::Lzo => "lzo",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        })
    }
}

/// Why the host does not decompress a kernel; the guest's own decompressor still may.
#[derive(Debug, thiserror::Error)]
pub enum NotDecompressed {
    /// `--decompress guest` was given.
    #[error("--decompress guest was asked for")]
    Asked,
    /// The guest is about as fast, and can then choose its own address.
    #[error("that is as quick for {0}")]
    GuestIsQuick(Compression),
    /// The setup header does not say where the compressed kernel is.
    #[error("its setup header names no payload")]
    NoPayload,
    /// The payload is in no known format.
    #[error("its payload is in a compression format that is not known here")]
    Unknown,
    /// The payload's stated size is larger than the machine could use.
    #[error("its {format} payload claims to hold {}, more than the {} that this machine could use", Size(*size), Size(*limit))]
    TooLarge {
        /// The payload's format.
        format: Compression,
        /// The stated size, in bytes.
        size: u64,
        /// The largest size that is accepted, in bytes.
        limit: u64,
    },
    /// The payload is damaged.
    #[error("its {format} payload can't be decompressed ({reason})")]
    Damaged {
        /// The payload's format.
        format: Compression,
        /// What is wrong.
        reason: io::Error,
    },
    /// The host has no memory for it.
    #[error("the host has no {size} bytes of memory for it")]
    NoMemory {
        /// Bytes that were asked for.
        size: u64,
    },
    /// The watcher stopped it.
    #[error("it was stopped")]
    Stopped,
    /// The payload is not a kernel that can be started.
    #[error("its payload is no usable vmlinux")]
    NoVmlinux,
}

/// Decompresses `payload`, whose last four bytes are its decompressed size. `watch` sees the progress and may stop it.
///
/// # Errors
/// [`NotDecompressed`] when it fails, or needs more than `limit` bytes of output.
pub fn decompress(
    payload: &[u8],
    limit: u64,
    watch: &dyn Watch,
) -> Result<(Compression, Zeroed), NotDecompressed> {
    decompress_guarded(payload, limit, &Guard::new(watch))
}

pub(super) fn decompress_guarded(
    payload: &[u8],
    limit: u64,
    guard: &Guard<'_>,
) -> Result<(Compression, Zeroed), NotDecompressed> {
    let format = Compression::of(payload).ok_or(NotDecompressed::Unknown)?;
    let (body, size) = payload
        .split_last_chunk::<TRAILER>()
        .ok_or(NotDecompressed::Unknown)?;
    let size = u64::from(u32::from_le_bytes(*size));
    if size > limit {
        return Err(NotDecompressed::TooLarge {
            format,
            size,
            limit,
        });
    }
    let mut out = zeroed(size)?;
    let job = Job {
        format,
        size,
        done: Cell::new(0),
        guard,
    };
    let done = match format {
        // gzip's own trailer is the size.
        Compression::Gzip => {
            let decoder = flate2::bufread::GzDecoder::new(job.input(payload));
            job.fill(decoder, &mut out)
        }
        Compression::Bzip2 => {
            let decoder = bzip2::bufread::BzDecoder::new(job.input(body));
            job.fill(decoder, &mut out)
        }
        Compression::Lzma => job.lzma(body, &mut out),
        Compression::Xz => {
            let input = job.input(body);
            let decoder = lzma_rust2::XzReader::new_mem_limit(input, false, MAX_DICTIONARY_KIB);
            job.fill(decoder, &mut out)
        }
        Compression::Lzo => job.lzo(body, &mut out),
        Compression::Lz4 => job.lz4(body, &mut out),
        Compression::Zstd => job.zstd(body, &mut out),
    };
    match done {
        Ok(()) => Ok((format, out)),
        Err(_) if guard.is_stopped() => Err(NotDecompressed::Stopped),
        Err(reason) => Err(NotDecompressed::Damaged { format, reason }),
    }
}

/// Allocates a buffer of the size that an image states. Fails instead of aborting when the host lacks the memory.
pub(super) fn zeroed(size: u64) -> Result<Zeroed, NotDecompressed> {
    let len = usize::try_from(size).ok();
    len.and_then(Zeroed::new)
        .ok_or(NotDecompressed::NoMemory { size })
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// One payload that is being decompressed, with its watcher.
struct Job<'a> {
    format: Compression,
    /// The decompressed size, in bytes.
    size: u64,
    /// Output bytes at the last call of `ask`.
    done: Cell<usize>,
    guard: &'a Guard<'a>,
}

impl Job<'_> {
    /// Asks whether to go on, with `done` bytes of output written.
    fn ask(&self, done: usize) -> io::Result<()> {
        self.done.set(done);
        let work = Work::Decompress(self.format);
        self.guard.ask(work, done as u64, Some(self.size))
    }

    /// Wraps `bytes` for a decoder that may read much before it outputs anything.
    fn input<'b>(&'b self, bytes: &'b [u8]) -> Input<'b> {
        Input {
            job: self,
            rest: bytes,
            until_asked: PIECE,
        }
    }

    /// Fills `out` exactly. The read past its end makes the decoder verify its checksums.
    fn fill(&self, mut decoder: impl Read, out: &mut [u8]) -> io::Result<()> {
        for (index, piece) in out.chunks_mut(PIECE).enumerate() {
            self.ask(index * PIECE)?;
            decoder.read_exact(piece)?;
        }
        match decoder.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(damaged("there is more in it than its size says")),
        }
    }

    fn lzma(&self, body: &[u8], out: &mut [u8]) -> io::Result<()> {
        let input = self.input(body);
        let decoder = lzma_rust2::LzmaReader::new_mem_limit(input, MAX_DICTIONARY_KIB, None)?;
        self.fill(decoder, out)
    }

    /// Decodes in pieces of the size that the decoder asks for. It writes straight to the output buffer.
    fn zstd(&self, body: &[u8], out: &mut [u8]) -> io::Result<()> {
        let failed = |code| damaged(zstd_safe::get_error_name(code));
        let mut decoder = DCtx::try_create().ok_or(io::ErrorKind::OutOfMemory)?;
        // With a stable output buffer the decoder allocates no window, so a frame's window size doesn't matter.
        for parameter in [
            DParameter::StableOutBuffer(true),
            DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX),
        ] {
            decoder.set_parameter(parameter).map_err(failed)?;
        }
        let mut output = OutBuffer::around(out);
        let (mut input, mut wanted) = (body, 0);
        while !input.is_empty() {
            self.ask(output.pos())?;
            // The decoder wants nothing more at the end of a frame. Another frame may follow.
            let len = if wanted == 0 {
                ZSTD_FRAME_START
            } else {
                wanted
            };
            let mut piece = InBuffer::around(&input[..len.min(input.len())]);
            let next = decoder.decompress_stream(&mut output, &mut piece);
            wanted = next.map_err(failed)?;
            input = &input[piece.pos()..];
        }
        if wanted != 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        complete(output.pos(), out)
    }
}

/// `ZSTD_WINDOWLOG_MAX_64`.
const ZSTD_WINDOW_LOG_MAX: u32 = 31;
/// `ZSTD_FRAMEHEADERSIZE_MIN`: the least input to begin a frame with, its magic and the header's first byte.
const ZSTD_FRAME_START: usize = 5;

/// A decoder's input. It can also stop a decoder that reads much and outputs nothing.
struct Input<'a> {
    job: &'a Job<'a>,
    rest: &'a [u8],
    /// Bytes until `ask` is called next.
    until_asked: usize,
}

impl BufRead for Input<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.until_asked == 0 {
            self.until_asked = PIECE;
            self.job.ask(self.job.done.get())?;
        }
        Ok(&self.rest[..self.rest.len().min(self.until_asked)])
    }

    fn consume(&mut self, count: usize) {
        self.rest = &self.rest[count..];
        self.until_asked -= count;
    }
}

impl Read for Input<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buf)?;
        self.consume(count);
        Ok(count)
    }
}

/// Splits `N` bytes off the front of `input`.
fn take<const N: usize>(input: &mut &[u8]) -> io::Result<[u8; N]> {
    let (head, rest) = input
        .split_first_chunk::<N>()
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    *input = rest;
    Ok(*head)
}

/// Splits `len` bytes off the front of `input`.
fn take_slice<'a>(input: &mut &'a [u8], len: u32) -> io::Result<&'a [u8]> {
    let (head, rest) = input
        .split_at_checked(len as usize)
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    *input = rest;
    Ok(head)
}

const LZ4_LEGACY_MAGIC: &[u8] = b"\x02\x21\x4c\x18";

/// The largest decompressed size of a block.
const LZ4_BLOCK: usize = 8 << 20;

impl Job<'_> {
    /// The legacy frame (lz4's `doc/lz4_Frame_format.md`): blocks, each preceded by its compressed size.
    fn lz4(&self, body: &[u8], out: &mut [u8]) -> io::Result<()> {
        let mut input = body;
        take::<4>(&mut input)?;
        let mut filled = 0;
        while !input.is_empty() {
            self.ask(filled)?;
            let len = u32::from_le_bytes(take(&mut input)?);
            let block = take_slice(&mut input, len)?;
            let room = (out.len() - filled).min(LZ4_BLOCK);
            filled += lz4_flex::block::decompress_into(block, &mut out[filled..][..room])
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        }
        complete(filled, out)
    }
}

fn complete(filled: usize, out: &[u8]) -> io::Result<()> {
    if filled == out.len() {
        Ok(())
    } else {
        Err(damaged("there is less in it than its size says"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_can_not_be_had_is_a_reason() {
        let size = u64::MAX / 2;
        let refused = zeroed(size).unwrap_err();
        assert!(matches!(refused, NotDecompressed::NoMemory { size: asked } if asked == size));
        assert_eq!(*zeroed(5).unwrap(), [0; 5]);
    }
}
