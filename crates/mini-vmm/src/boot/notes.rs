// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! ELF notes (gABI, "Note Section"): the one that names the PVH entry point.

use linux_loader::elf::Elf64_Nhdr;
use vm_memory::ByteValued;

/// Xen's note with the 32-bit physical entry point (xen/include/public/elfnote.h).
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// The PVH entry point in the notes of a segment with this `p_align`.
///
/// Notes are padded to 8 bytes if the segment's alignment is 8, else to 4, as in `readelf -n`. Linkers that merge
/// sections of both kinds state 8 for all. So the other padding is tried if the stated one finds no entry.
pub(super) fn pvh_entry(notes: &[u8], p_align: u64) -> Option<u64> {
    let paddings = if p_align == 8 { [8, 4] } else { [4, 8] };
    paddings
        .into_iter()
        .find_map(|padding| walk(notes, padding))
}

/// Walks notes: header and name, then the descriptor, which starts and ends at a multiple of `padding`.
fn walk(mut notes: &[u8], padding: usize) -> Option<u64> {
    const HEADER: usize = size_of::<Elf64_Nhdr>();
    let padded = |len: usize| len.checked_next_multiple_of(padding);
    loop {
        let mut note = Elf64_Nhdr::default();
        note.as_mut_slice().copy_from_slice(notes.get(..HEADER)?);
        let desc_start = padded(HEADER.checked_add(usize::try_from(note.n_namesz).ok()?)?)?;
        let desc_end = desc_start.checked_add(usize::try_from(note.n_descsz).ok()?)?;
        let name = notes.get(HEADER..desc_start)?;
        // The last descriptor may lack its padding.
        let desc = notes.get(desc_start..desc_end)?;
        if note.n_type == XEN_ELFNOTE_PHYS32_ENTRY && name.starts_with(b"Xen\0") {
            match *desc {
                [a, b, c, d] => return Some(u32::from_le_bytes([a, b, c, d]).into()),
                [a, b, c, d, e, f, g, h] => {
                    return Some(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
                }
                _ => {}
            }
        }
        notes = notes.get(padded(desc_end)?..)?;
    }
}
