// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Decompression of a bzImage's payload on the host, in every format that Linux's build knows.
//!
//! The payload ends with the size of what it holds, so the output buffer is made once, of that size, and nothing can
//! make it grow. The formats are those of the kernel's `scripts/Makefile.lib`.

use std::fmt;
use std::io::{self, Read};

use crate::memory::Size;
pub use crate::sys::zeroed::Zeroed;

/// The decoders' own memory (xz and lzma dictionaries) stays below this, in KiB.
const MAX_DICTIONARY_KIB: u32 = 256 << 10;
/// The size of the decompressed kernel, little-endian, is the payload's last four bytes.
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
    /// Judges by the first bytes of a payload.
    pub fn of(payload: &[u8]) -> Option<Self> {
        let magics: [(&[u8], Compression); 7] = [
            (b"\x1f\x8b", Compression::Gzip),
            (b"BZh", Compression::Bzip2),
            (b"\x5d\0\0", Compression::Lzma),
            (b"\xfd7zXZ\0", Compression::Xz),
            (LZOP_MAGIC, Compression::Lzo),
            (LZ4_LEGACY_MAGIC, Compression::Lz4),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
        ];
        magics
            .into_iter()
            .find_map(|(magic, format)| payload.starts_with(magic).then_some(format))
    }
}

impl Compression {
    /// Whether a kernel of this format decompresses itself about as fast as the host could, which would handle
    /// everything once more, when it places it.
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
    /// It was asked for.
    #[error("--decompress guest was asked for")]
    Asked,
    /// The guest does it as fast, and keeps the choice of its address.
    #[error("that is as quick for {0}")]
    GuestIsQuick(Compression),
    /// The setup header does not say where the compressed kernel is.
    #[error("its setup header names no payload")]
    NoPayload,
    /// The payload is in no known format.
    #[error("its payload is in a compression format that is not known here")]
    Unknown,
    /// The payload claims to hold more than the machine could.
    #[error("its {format} payload claims to hold {}, more than the {} that this machine could use", Size(*size), Size(*limit))]
    TooLarge {
        /// The payload's format.
        format: Compression,
        /// What it claims, in bytes.
        size: u64,
        /// What would do, in bytes.
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
    /// What it holds is not a kernel that can be started.
    #[error("its payload is no usable vmlinux")]
    NoVmlinux,
}

/// Decompresses `payload`, whose last four bytes are the size of what it holds.
///
/// # Errors
/// [`NotDecompressed`] when it can't be done in `limit` bytes of output.
pub fn decompress(payload: &[u8], limit: u64) -> Result<(Compression, Zeroed), NotDecompressed> {
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
    let done = match format {
        // gzip's own trailer is the size.
        Compression::Gzip => fill(flate2::bufread::GzDecoder::new(payload), &mut out),
        Compression::Bzip2 => fill(bzip2::bufread::BzDecoder::new(body), &mut out),
        Compression::Lzma => lzma(body, &mut out),
        Compression::Xz => {
            let decoder = lzma_rust2::XzReader::new_mem_limit(body, false, MAX_DICTIONARY_KIB);
            fill(decoder, &mut out)
        }
        Compression::Lzo => lzo(body, &mut out),
        Compression::Lz4 => lz4(body, &mut out),
        Compression::Zstd => zstd(body, &mut out),
    };
    match done {
        Ok(()) => Ok((format, out)),
        Err(reason) => Err(NotDecompressed::Damaged { format, reason }),
    }
}

/// A buffer as large as an image says; that the host has no memory for it is no reason to abort.
pub(super) fn zeroed(size: u64) -> Result<Zeroed, NotDecompressed> {
    let len = usize::try_from(size).ok();
    len.and_then(Zeroed::new)
        .ok_or(NotDecompressed::NoMemory { size })
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads exactly `out`; reading on then makes the decoder check its sums.
fn fill(mut decoder: impl Read, out: &mut [u8]) -> io::Result<()> {
    decoder.read_exact(out)?;
    match decoder.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(damaged("there is more in it than its size says")),
    }
}

fn lzma(body: &[u8], out: &mut [u8]) -> io::Result<()> {
    let decoder = lzma_rust2::LzmaReader::new_mem_limit(body, MAX_DICTIONARY_KIB, None)?;
    fill(decoder, out)
}

fn zstd(body: &[u8], out: &mut [u8]) -> io::Result<()> {
    let len = out.len();
    match zstd_safe::decompress(out, body) {
        Ok(n) if n == len => Ok(()),
        Ok(_) => Err(damaged("there is less in it than its size says")),
        Err(code) => Err(damaged(zstd_safe::get_error_name(code))),
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

/// The legacy frame (lz4's `doc/lz4_Frame_format.md`): blocks of up to 8 MiB, each with its compressed size before it.
fn lz4(body: &[u8], out: &mut [u8]) -> io::Result<()> {
    let mut input = body;
    take::<4>(&mut input)?;
    let mut filled = 0;
    while !input.is_empty() {
        let len = u32::from_le_bytes(take(&mut input)?);
        let block = take_slice(&mut input, len)?;
        filled += lz4_flex::block::decompress_into(block, &mut out[filled..])
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    }
    complete(filled, out)
}

fn complete(filled: usize, out: &[u8]) -> io::Result<()> {
    if filled == out.len() {
        Ok(())
    } else {
        Err(damaged("there is less in it than its size says"))
    }
}

const LZOP_MAGIC: &[u8] = b"\x89LZO\0\r\n\x1a\n";
/// lzop's header flags: checksums of each block, and optional parts of the header.
const LZOP_ADLER32_D: u32 = 0x1;
const LZOP_ADLER32_C: u32 = 0x2;
const LZOP_EXTRA_FIELD: u32 = 0x40;
const LZOP_CRC32_D: u32 = 0x100;
const LZOP_CRC32_C: u32 = 0x200;
const LZOP_FILTER: u32 = 0x800;

/// The container of the `lzop` program, versions from 0x0940 on: a header, then blocks with both sizes before them.
fn lzo(body: &[u8], out: &mut [u8]) -> io::Result<()> {
    let mut input = body.get(LZOP_MAGIC.len()..).unwrap_or_default();
    let flags = lzop_header(&mut input)?;
    let sums = |mask: u32| (flags & mask).count_ones() * 4;
    let mut filled = 0;
    loop {
        let len = u32::from_be_bytes(take(&mut input)?);
        if len == 0 {
            return complete(filled, out);
        }
        let packed_len = u32::from_be_bytes(take(&mut input)?);
        if packed_len > len {
            return Err(damaged("a block is larger than what it holds"));
        }
        take_slice(&mut input, sums(LZOP_ADLER32_D | LZOP_CRC32_D))?;
        // A block that does not shrink is stored, without the sums of its compressed form.
        if packed_len < len {
            take_slice(&mut input, sums(LZOP_ADLER32_C | LZOP_CRC32_C))?;
        }
        let packed = take_slice(&mut input, packed_len)?;
        let block = out[filled..]
            .get_mut(..len as usize)
            .ok_or_else(|| damaged("there is more in it than its size says"))?;
        if packed_len < len {
            let n = lzokay::decompress::decompress(packed, block)
                .map_err(|_| damaged("a block is no LZO data"))?;
            complete(n, block)?;
        } else {
            block.copy_from_slice(packed);
        }
        filled += block.len();
    }
}

/// Goes past the header and returns its flags.
fn lzop_header(input: &mut &[u8]) -> io::Result<u32> {
    let version = u16::from_be_bytes(take(input)?);
    if version < 0x0940 {
        return Err(damaged("it was made by an lzop that is too old"));
    }
    take::<6>(input)?; // the library's version, the version needed, method, level
    let flags = u32::from_be_bytes(take(input)?);
    if flags & LZOP_FILTER != 0 {
        take::<4>(input)?;
    }
    take::<12>(input)?; // mode and time
    let [name_len] = take(input)?;
    take_slice(input, name_len.into())?;
    take::<4>(input)?; // the header's checksum
    if flags & LZOP_EXTRA_FIELD != 0 {
        let len = u32::from_be_bytes(take(input)?);
        take_slice(input, len)?;
        take::<4>(input)?;
    }
    Ok(flags)
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
