// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! bzImage: the setup header and what follows it (Linux `Documentation/arch/x86/boot.rst`).

use std::ops::Range;

use linux_loader::bootparam::setup_header;
use vm_memory::ByteValued;

use super::elf::{read, within};
use super::error::KernelError;
use super::image::Source;
use crate::layout::{HIGH_RAM, HOLE_START};

/// Offset of the setup header in the image and in the zero page.
pub(super) const SETUP_HEADER: u64 = 0x1f1;
/// Offset of the "HdrS" magic. The jump instruction just before it ends here, too.
const MAGIC_OFFSET: usize = 0x202;
const MAGIC: &[u8] = b"HdrS";
const BOOT_FLAG_OFFSET: usize = 0x1fe;
const BOOT_FLAG: &[u8] = b"\x55\xaa";

const SECTOR: u64 = 512;
/// Protocol 2.12 added `xloadflags`, which tells whether there is a 64-bit entry point.
const OLDEST_PROTOCOL: u16 = 0x020c;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry point is this far after the start of the protected-mode code.
const ENTRY_64: u64 = 0x200;

/// Bytes read of the version string, enough to identify the kernel.
const VERSION_SIZE: usize = 64;

/// A bzImage that can be booted by its 64-bit entry point.
#[derive(Clone, Debug)]
pub(super) struct BzImage {
    /// Its setup header. Fields that its protocol version lacks are zero.
    pub(super) header: setup_header,
    /// The protected-mode code in the file.
    pub(super) code: Range<u64>,
    /// The compressed kernel in the file, if the header says where it is.
    pub(super) payload: Option<Range<u64>>,
    /// The end of the memory that the kernel uses before it reads the memory map, with its code loaded at [`HIGH_RAM`].
    pub(super) runtime_end: u64,
}

/// Whether the first KiB of a file looks like a bzImage.
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    let has =
        |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|h| h.starts_with(magic));
    has(BOOT_FLAG_OFFSET, BOOT_FLAG) && has(MAGIC_OFFSET, MAGIC)
}

impl BzImage {
    pub(super) fn parse(source: Source<'_>) -> Result<Self, KernelError> {
        let header = read_header(source)?;
        let version = header.version;
        if version < OLDEST_PROTOCOL {
            return Err(KernelError::ProtocolTooOld(version));
        }
        if header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(KernelError::Only32Bit);
        }
        if header.loadflags & LOADED_HIGH == 0 {
            return Err(bad("loadflags", header.loadflags));
        }
        let code = code(source, &header)?;
        Ok(BzImage {
            payload: payload(&header, &code),
            runtime_end: runtime_end(&header, code.end - code.start)?,
            header,
            code,
        })
    }

    /// The 64-bit entry point, with the code loaded at [`HIGH_RAM`].
    pub(super) fn entry(&self) -> u64 {
        HIGH_RAM + ENTRY_64
    }
}

/// The kernel's version string (`kernel_version`), at most its first [`VERSION_SIZE`] bytes. `None` if the image has
/// none.
pub(super) fn version(source: Source<'_>, header: &setup_header) -> Option<String> {
    let offset = u64::from(header.kernel_version);
    if offset == 0 {
        return None;
    }
    let bytes = source.read_up_to(offset + SECTOR, VERSION_SIZE).ok()?;
    let text = bytes.split(|&byte| byte == 0).next()?;
    (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
}

fn bad(field: &'static str, value: impl Into<u64>) -> KernelError {
    KernelError::SetupHeader {
        field,
        value: value.into(),
    }
}

/// Reads as much of the setup header as the image has.
fn read_header(source: Source<'_>) -> Result<setup_header, KernelError> {
    let mut header = setup_header::default();
    let known = size_of::<setup_header>() as u64;
    // The magic follows a jump over the rest of the header. Its second byte is the distance, which gives the header's
    // end.
    let mut jump = [0];
    let jump_offset = MAGIC_OFFSET as u64 - 1;
    within(source, "setup header", jump_offset, 1)?;
    read(source, jump_offset, &mut jump)?;
    let end = MAGIC_OFFSET as u64 + u64::from(jump[0]);
    let len = end.saturating_sub(SETUP_HEADER).min(known);
    within(source, "setup header", SETUP_HEADER, len)?;
    read(
        source,
        SETUP_HEADER,
        &mut header.as_mut_slice()[..len as usize],
    )?;
    Ok(header)
}

/// Where the protected-mode code is. A signature may follow it in the file.
fn code(source: Source<'_>, header: &setup_header) -> Result<Range<u64>, KernelError> {
    let sectors = match header.setup_sects {
        0 => 4,
        n => u64::from(n),
    };
    let start = (sectors + 1) * SECTOR;
    let syssize = header.syssize;
    let len = u64::from(syssize) * 16;
    if len <= ENTRY_64 {
        return Err(bad("syssize", syssize));
    }
    // The size counts 16-byte paragraphs; the last one may be incomplete.
    within(source, "protected-mode code", start, len - 15)?;
    Ok(start..(start + len).min(source.len()))
}

/// Where the compressed kernel is. `None` unless the header's fields are plausible.
fn payload(header: &setup_header, code: &Range<u64>) -> Option<Range<u64>> {
    let start = code.start + u64::from(header.payload_offset);
    let end = start + u64::from(header.payload_length);
    (header.payload_length > 0 && end <= code.end).then_some(start..end)
}

/// The end of the memory that the kernel uses before it reads the memory map: `init_size` bytes from where it runs. It
/// runs at its preferred address, or, if it is relocatable and loaded higher, at its load address.
fn runtime_end(header: &setup_header, code_len: u64) -> Result<u64, KernelError> {
    let pref = header.pref_address;
    let align = u64::from(header.kernel_alignment);
    if header.relocatable_kernel != 0 && !align.is_power_of_two() {
        return Err(bad("kernel_alignment", align));
    }
    let start = match header.relocatable_kernel {
        0 => pref,
        _ => HIGH_RAM.next_multiple_of(align).max(pref),
    };
    let end = start
        .checked_add(u64::from(header.init_size))
        .filter(|end| *end <= HOLE_START)
        .ok_or_else(|| bad("pref_address", pref))?;
    Ok(end.max(HIGH_RAM + code_len))
}
