// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The container of the `lzop` program.

use std::io;

use super::{Job, complete, damaged, take, take_slice};

/// The first bytes of a file.
pub(super) const MAGIC: &[u8] = b"\x89LZO\0\r\n\x1a\n";
/// lzop's header flags: checksums of each block, and optional parts of the header.
const ADLER32_D: u32 = 0x1;
const ADLER32_C: u32 = 0x2;
const EXTRA_FIELD: u32 = 0x40;
const CRC32_D: u32 = 0x100;
const CRC32_C: u32 = 0x200;
const FILTER: u32 = 0x800;
/// The largest decompressed size of a block: `LZO_BLOCK_SIZE` of Linux's lib/decompress_unlzo.c.
const BLOCK: u32 = 256 << 10;

impl Job<'_> {
    /// The container of the `lzop` program, since version 0x0940: a header, then blocks, each preceded by its two
    /// sizes.
    pub(super) fn lzo(&self, body: &[u8], out: &mut [u8]) -> io::Result<()> {
        let mut input = body.get(MAGIC.len()..).unwrap_or_default();
        let flags = header(&mut input)?;
        let sums = |mask: u32| (flags & mask).count_ones() * 4;
        let mut filled = 0;
        loop {
            self.ask(filled)?;
            let len = u32::from_be_bytes(take(&mut input)?);
            if len == 0 {
                return complete(filled, out);
            }
            let packed_len = u32::from_be_bytes(take(&mut input)?);
            if packed_len > len {
                return Err(damaged("a block is larger than what it holds"));
            }
            if len > BLOCK {
                return Err(damaged(
                    "a block holds more than the kernel's own decompressor takes",
                ));
            }
            take_slice(&mut input, sums(ADLER32_D | CRC32_D))?;
            // An incompressible block is stored as it is, without checksums of a compressed form.
            if packed_len < len {
                take_slice(&mut input, sums(ADLER32_C | CRC32_C))?;
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
}

/// Skips the header and returns its flags.
fn header(input: &mut &[u8]) -> io::Result<u32> {
    let version = u16::from_be_bytes(take(input)?);
    if version < 0x0940 {
        return Err(damaged("it was made by an lzop that is too old"));
    }
    take::<6>(input)?; // the library's version, the version needed, method, level
    let flags = u32::from_be_bytes(take(input)?);
    if flags & FILTER != 0 {
        take::<4>(input)?;
    }
    take::<12>(input)?; // mode and time
    let [name_len] = take(input)?;
    take_slice(input, name_len.into())?;
    take::<4>(input)?; // the header's checksum
    if flags & EXTRA_FIELD != 0 {
        let len = u32::from_be_bytes(take(input)?);
        take_slice(input, len)?;
        take::<4>(input)?;
    }
    Ok(flags)
}
