// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The start info of the PVH boot protocol (Xen `docs/misc/pvh.pandoc`, `public/arch-x86/hvm/start_info.h`).

use linux_loader::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::BootData;
use crate::layout::{CMDLINE, PVH_MEMMAP, PVH_MODLIST, PVH_START_INFO};
use crate::memory::memory_map;

/// Version 1 has the memory map.
const VERSION: u32 = 1;

/// Writes the start info, its module list and its memory map.
pub(super) fn write_start_info<M: GuestMemoryBackend>(
    mem: &M,
    data: &BootData<'_>,
) -> Result<(), GuestMemoryError> {
    let map: Vec<u8> = memory_map(mem, data.reserved)
        .iter()
        .flat_map(|entry| {
            let entry = hvm_memmap_table_entry {
                addr: entry.start,
                size: entry.size,
                type_: entry.kind as u32,
                reserved: 0,
            };
            entry.as_slice().to_vec()
        })
        .collect();
    mem.write_slice(&map, GuestAddress(PVH_MEMMAP))?;
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        cmdline_paddr: CMDLINE,
        rsdp_paddr: data.rsdp.map_or(0, |rsdp| rsdp.0),
        memmap_paddr: PVH_MEMMAP,
        memmap_entries: (map.len() / size_of::<hvm_memmap_table_entry>()) as u32,
        ..Default::default()
    };
    if let Some((start, size)) = data.initrd {
        let module = hvm_modlist_entry {
            paddr: start.0,
            size,
            ..Default::default()
        };
        mem.write_obj(module, GuestAddress(PVH_MODLIST))?;
        info.nr_modules = 1;
        info.modlist_paddr = PVH_MODLIST;
    }
    mem.write_obj(info, GuestAddress(PVH_START_INFO))
}
