// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's file: an ELF image with a PVH entry, which all VMMs except kvmtool can boot.

use super::guest::{self, End, Work};
use crate::elf;

/// Xen, `XEN_ELFNOTE_PHYS32_ENTRY`: the 32-bit entry point of PVH.
const PHYS32_ENTRY: u32 = 18;

/// The image of a guest.
pub fn elf(work: Work, end: End) -> Vec<u8> {
    of(&guest::code(work, end))
}

/// The image of code that starts at [`guest::ENTRY`].
pub fn of(code: &[u8]) -> Vec<u8> {
    let note = elf::note(b"Xen\0", PHYS32_ENTRY, guest::ENTRY);
    elf::executable(guest::ENTRY.into(), code, &note)
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
