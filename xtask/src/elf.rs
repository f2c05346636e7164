// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A writer of small x86-64 ELF files with code at one address and an optional note (System V ABI, "Object files").

/// The code's offset in the file.
const OFFSET: u64 = 0x1000;
/// The note's offset in the file, after the header and two program headers.
const NOTE: u64 = 64 + 2 * 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// An executable whose code is loaded and starts at `entry`, with all permissions, and a note, which may be empty.
pub fn executable(entry: u64, code: &[u8], note: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]); // ET_EXEC, EM_X86_64, version 1
    for word in [entry, 64, 0] {
        file.extend(word.to_le_bytes()); // entry, program headers, section headers
    }
    // Flags; the sizes of the header and of a program header, how many of those; sections: none.
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    segment(&mut file, (PT_LOAD, 7), (OFFSET, code.len()), entry, OFFSET);
    segment(&mut file, (PT_NOTE, 4), (NOTE, note.len()), 0, 4);
    file.extend(note);
    file.resize(OFFSET as usize, 0);
    file.extend(code);
    file
}

/// A program header: type and flags, offset and size in the file, address, alignment.
fn segment(
    file: &mut Vec<u8>,
    (kind, flags): (u32, u32),
    (offset, size): (u64, usize),
    at: u64,
    alignment: u64,
) {
    file.extend(kind.to_le_bytes());
    file.extend(flags.to_le_bytes());
    for word in [offset, at, at, size as u64, size as u64, alignment] {
        file.extend(word.to_le_bytes());
    }
}

/// A note with its owner, type and contents.
pub fn note(name: &[u8; 4], kind: u32, value: u32) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4, 4, kind] {
        note.extend(u32::to_le_bytes(word)); // sizes of name and value, type
    }
    note.extend(name);
    note.extend(value.to_le_bytes());
    note
}

/// A Linux program that writes one byte to a port: Debian's kernels have no /dev/port.
pub fn port_writer((port, value): (u16, u8)) -> Vec<u8> {
    let port = port.to_le_bytes();
    let mut code = Vec::new();
    code.extend([0xb8, 173, 0, 0, 0]); // mov eax, SYS_ioperm
    code.extend([0xbf, port[0], port[1], 0, 0]); // mov edi, port
    code.extend([0xbe, 1, 0, 0, 0]); // mov esi, 1 (how many)
    code.extend([0xba, 1, 0, 0, 0]); // mov edx, 1 (allow)
    code.extend([0x0f, 0x05]); // syscall
    code.extend([0xba, port[0], port[1], 0, 0]); // mov edx, port
    code.extend([0xb0, value, 0xee]); // mov al, value; out dx, al
    code.extend([0xb8, 60, 0, 0, 0]); // mov eax, SYS_exit
    code.extend([0xbf, 1, 0, 0, 0]); // mov edi, 1
    code.extend([0x0f, 0x05]); // syscall
    executable(0x40_0000, &code, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_writer_is_an_elf_program() {
        let scratch = std::env::temp_dir().join(format!("port-writer-{}", std::process::id()));
        std::fs::write(&scratch, port_writer((0xf4, 3))).unwrap();
        let mut permissions = std::fs::metadata(&scratch).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
        std::fs::set_permissions(&scratch, permissions).unwrap();
        // If ports are refused (no root, or a sandbox), the kernel kills it with SIGSEGV. An invalid program could not
        // even start.
        let status = std::process::Command::new(&scratch).status();
        std::fs::remove_file(&scratch).unwrap();
        assert!(status.is_ok());
    }
}
