// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest as the file that VMMs boot: an ELF image with a PVH entry, which all but kvmtool take.

use super::guest::{self, End, Work};

/// Where the code is in the file.
const OFFSET: u32 = 0x1000;
/// Where the note is in the file: after the header and two program headers.
const NOTE: u32 = 64 + 2 * 56;
/// Xen, `XEN_ELFNOTE_PHYS32_ENTRY`: the 32-bit entry point of PVH.
const PHYS32_ENTRY: u32 = 18;

/// The image of a guest.
pub fn elf(work: Work, end: End) -> Vec<u8> {
    let code = guest::code(work, end);
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2, 0, 62, 0, 1, 0, 0, 0]); // ET_EXEC, EM_X86_64, version 1
    for word in [u64::from(guest::ENTRY), 64, 0] {
        image.extend(word.to_le_bytes()); // entry, program headers, section headers
    }
    image.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let note = note();
    let size = code.len() as u64;
    let entry = u64::from(guest::ENTRY);
    segment(&mut image, (1, 7), u64::from(OFFSET), entry, size);
    segment(&mut image, (4, 4), u64::from(NOTE), 0, note.len() as u64);
    image.extend(note);
    image.resize(OFFSET as usize, 0);
    image.extend(code);
    image
}

/// A program header; type and flags.
fn segment(image: &mut Vec<u8>, (kind, flags): (u32, u32), offset: u64, at: u64, size: u64) {
    image.extend(kind.to_le_bytes());
    image.extend(flags.to_le_bytes());
    let alignment = if kind == 1 { u64::from(OFFSET) } else { 4 };
    for word in [offset, at, at, size, size, alignment] {
        image.extend(word.to_le_bytes());
    }
}

fn note() -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4, 4, PHYS32_ENTRY] {
        note.extend(u32::to_le_bytes(word)); // sizes of name and value, type
    }
    note.extend(b"Xen\0");
    note.extend(guest::ENTRY.to_le_bytes());
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_point_to_note_and_code() {
        let image = elf(Work::Nothing, End::Acpi);
        let at = |offset: usize| u64::from_le_bytes(image[offset..offset + 8].try_into().unwrap());
        assert_eq!((at(24), at(32)), (u64::from(guest::ENTRY), 64));
        let code = guest::code(Work::Nothing, End::Acpi);
        assert_eq!(image[at(64 + 8) as usize..], code);
        let note_at = at(64 + 56 + 8) as usize;
        assert_eq!(&image[note_at + 12..note_at + 16], b"Xen\0");
        assert_eq!(
            image[note_at + 16..note_at + 20],
            guest::ENTRY.to_le_bytes()
        );
    }

    #[test]
    fn guests_end_the_way_their_vmm_wants() {
        let ends = |code: Vec<u8>, value: u8| code.windows(3).any(|w| w == [0xb0, value, 0xee]);
        assert!(ends(guest::code(Work::Nothing, End::Acpi), 0x34));
        assert!(ends(guest::code(Work::Port(9), End::Keyboard), 0xfe));
        // The loop goes back to its body: out; dec; jnz -4.
        let storm = guest::code(Work::Port(9), End::Acpi);
        assert!(storm.windows(4).any(|w| w == [0xee, 0x49, 0x75, 0xfc]));
        // call edi; dec ecx; jnz to the load of eax, ten bytes back.
        let calls = guest::code(Work::Hypercall(9), End::Acpi);
        assert!(
            calls
                .windows(5)
                .any(|w| w == [0xff, 0xd7, 0x49, 0x75, 0xf6])
        );
    }
}
