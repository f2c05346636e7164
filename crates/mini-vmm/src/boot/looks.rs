// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a file that is no kernel looks like, for the error message.

use std::fmt;

/// What a file looks like by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looks {
    /// Compressed, with the format of this program.
    Compressed(&'static str),
    /// An archive, disk image or other known format.
    Known(&'static str),
    /// Only zeros.
    Zeros,
    /// Text.
    Text,
    /// None of these.
    Unknown,
}

/// Magic numbers: offset, bytes, what has them.
const MAGICS: [(usize, &[u8], Looks); 20] = [
    (0, b"\x1f\x8b", Looks::Compressed("gzip")),
    (0, b"BZh", Looks::Compressed("bzip2")),
    (0, b"\xfd7zXZ\0", Looks::Compressed("xz")),
    (0, b"\x28\xb5\x2f\xfd", Looks::Compressed("zstd")),
    (0, b"\x04\x22\x4d\x18", Looks::Compressed("lz4")),
    (0, b"\x02\x21\x4c\x18", Looks::Compressed("lz4")),
    (0, b"\x89LZO\0\r\n\x1a\n", Looks::Compressed("lzop")),
    (0, b"\x5d\0\0", Looks::Compressed("lzma")),
    (257, b"ustar", Looks::Known("a tar archive")),
    (0, b"070701", Looks::Known("a cpio archive (an initrd?)")),
    (
        0,
        b"!<arch>\n",
        Looks::Known("an ar archive or Debian package"),
    ),
    (0, b"PK\x03\x04", Looks::Known("a zip archive")),
    (0, b"hsqs", Looks::Known("a squashfs image")),
    (0, b"QFI\xfb", Looks::Known("a qcow2 disk image")),
    (0, b"\x27\x05\x19\x56", Looks::Known("a U-Boot image")),
    (
        0,
        b"\xd0\x0d\xfe\xed",
        Looks::Known("a device tree or FIT image"),
    ),
    (0, b"%PDF", Looks::Known("a PDF document")),
    (0, b"#!", Looks::Known("a script")),
    (0, b"MZ", Looks::Known("a PE (Windows or EFI) program")),
    (510, b"\x55\xaa", Looks::Known("a bootable disk image")),
];

impl Looks {
    /// Guesses from the first bytes of a file. 1 KiB suffices, except for [`Looks::Zeros`], which needs all of it.
    pub fn of(head: &[u8]) -> Self {
        let magic = MAGICS
            .iter()
            .find(|(offset, magic, _)| head.get(*offset..).is_some_and(|h| h.starts_with(magic)));
        if let Some((_, _, looks)) = magic {
            return *looks;
        }
        let is_text =
            |&b: &u8| b >= 0x80 || matches!(b, b' '..=b'~' | b'\t' | b'\n' | b'\r' | 0x1b);
        if head.iter().all(|&b| b == 0) {
            Looks::Zeros
        } else if head.iter().all(is_text) && is_utf8_prefix(head) {
            Looks::Text
        } else {
            Looks::Unknown
        }
    }

    /// What the user should do instead.
    pub fn advice(self) -> &'static str {
        match self {
            Looks::Compressed(_) => {
                "decompress it first if a vmlinux is inside, else pass a vmlinux or bzImage"
            }
            _ => "pass an x86-64 vmlinux (ELF) or bzImage, such as /boot/vmlinuz-*",
        }
    }
}

/// Whether `bytes` are UTF-8, apart from a character cut off at the end.
fn is_utf8_prefix(bytes: &[u8]) -> bool {
    match std::str::from_utf8(bytes) {
        Ok(_) => true,
        Err(e) => e.error_len().is_none(),
    }
}

impl fmt::Display for Looks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Looks::Compressed(format) => write!(f, "{format}-compressed data"),
            Looks::Known(what) => f.write_str(what),
            Looks::Zeros => f.write_str("nothing but zeros"),
            Looks::Text => f.write_str("text"),
            Looks::Unknown => f.write_str("data of an unknown kind"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell() {
        let mut tar = vec![b'a'; 512];
        tar[257..262].copy_from_slice(b"ustar");
        let mut disk = vec![1; 512];
        disk[510..].copy_from_slice(&[0x55, 0xaa]);
        let cases: [(&[u8], Looks); 9] = [
            (b"\x1f\x8b\x08\0", Looks::Compressed("gzip")),
            (b"MZ\x90\0", Looks::Known("a PE (Windows or EFI) program")),
            (&tar, Looks::Known("a tar archive")),
            (&disk, Looks::Known("a bootable disk image")),
            (b"hello\n", Looks::Text),
            ("grüße".as_bytes(), Looks::Text),
            (&"grüße".as_bytes()[..3], Looks::Text),
            (&[0; 100], Looks::Zeros),
            (&[1, 2, 3], Looks::Unknown),
        ];
        for (head, looks) in cases {
            assert_eq!(Looks::of(head), looks, "{head:?}");
        }
    }
}
