// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The zero page of the 64-bit Linux boot protocol (Linux `Documentation/arch/x86/boot.rst`, `zero-page.rst`).

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::BootData;
use crate::layout::{CMDLINE, ZERO_PAGE};
use crate::memory::memory_map;

const BOOT_FLAG: u16 = 0xaa55;
const MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// "An unassigned boot loader", which VMMs use.
const LOADER_UNASSIGNED: u8 = 0xff;
/// The alignment of x86-64 kernels by default.
const KERNEL_ALIGNMENT: u32 = 0x20_0000;
const LOADED_HIGH: u8 = 1;

/// The setup header for an ELF file, which has none.
pub(super) fn elf_header() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: MAGIC,
        loadflags: LOADED_HIGH,
        kernel_alignment: KERNEL_ALIGNMENT,
        ..Default::default()
    }
}

/// Writes the zero page.
pub(super) fn write_zero_page<M: GuestMemoryBackend>(
    mem: &M,
    header: setup_header,
    data: &BootData<'_>,
) -> Result<(), GuestMemoryError> {
    let mut params = boot_params {
        hdr: header,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNASSIGNED;
    params.hdr.cmd_line_ptr = CMDLINE as u32;
    if params.hdr.cmdline_size == 0 {
        params.hdr.cmdline_size = data.cmdline.len() as u32;
    }
    if let Some((start, size)) = data.initrd {
        // Initrds lie below the hole, so below 4 GiB.
        params.hdr.ramdisk_image = start.0 as u32;
        params.hdr.ramdisk_size = size as u32;
    }
    if let Some(rsdp) = data.rsdp {
        params.acpi_rsdp_addr = rsdp.0;
    }
    let map = memory_map(mem, data.reserved);
    let mut table = params.e820_table;
    for (slot, entry) in table.iter_mut().zip(&map) {
        *slot = boot_e820_entry {
            addr: entry.start,
            size: entry.size,
            r#type: entry.kind as u32,
        };
    }
    params.e820_table = table;
    params.e820_entries = map.len() as u8;
    mem.write_obj(params, GuestAddress(ZERO_PAGE))
}
