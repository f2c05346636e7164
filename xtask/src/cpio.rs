// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A writer of initial RAM file systems: the "newc" cpio format, which needs no root and no program
//! (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;

/// An archive that grows entry by entry.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    /// Its entries, without the slash at their start.
    paths: BTreeSet<String>,
    inode: u32,
}

impl Archive {
    /// Adds the directory `path` (absolute, like every path here) and those above it.
    pub fn directory(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if path.is_empty() || self.has(path) {
            return;
        }
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above);
        }
        self.entry(path, DIRECTORY, &[]);
    }

    /// Whether it has the directory or file `path`.
    pub fn has(&self, path: &str) -> bool {
        self.paths.contains(path.trim_matches('/'))
    }

    /// Adds an executable file, and the directories above it.
    pub fn file(&mut self, path: &str, data: &[u8]) {
        let path = path.trim_matches('/');
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above);
        }
        self.entry(path, EXECUTABLE, data);
    }

    /// The finished archive. Linux also unpacks several concatenated archives.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, &[]);
        self.pad(512);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, data: &[u8]) {
        self.paths.insert(path.to_owned());
        // The inode identifies hard links, so every entry has its own.
        self.inode += 1;
        let (size, name_size) = (data.len(), path.len() + 1);
        let inode = self.inode;
        // magic, inode, mode, uid, gid, links, mtime, size, device, special device, name size, check
        self.bytes.extend_from_slice(
            format!(
                "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}",
                0, 1
            )
            .as_bytes(),
        );
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(data);
        self.pad(4);
    }

    fn pad(&mut self, alignment: usize) {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(alignment), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back: path, mode, data.
    fn entries(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            let field = |index: usize| {
                let text = std::str::from_utf8(&bytes[6 + index * 8..14 + index * 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            assert_eq!(&bytes[..6], b"070701");
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = std::str::from_utf8(&bytes[110..110 + name_size - 1]).unwrap();
            if name == "TRAILER!!!" {
                return entries;
            }
            let start = (110 + name_size).next_multiple_of(4);
            let data = bytes[start..start + size].to_vec();
            entries.push((name.to_owned(), mode, data));
            bytes = &bytes[(start + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn directories_come_once_and_before_their_files() {
        let mut archive = Archive::default();
        archive.file("/lib/m/kvm.ko", b"12345");
        archive.file("/lib/m/tun.ko", b"");
        archive.directory("/lib");
        archive.directory("/");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 512, 0);
        assert_eq!(
            entries(&bytes),
            [
                ("lib".to_owned(), DIRECTORY, vec![]),
                ("lib/m".to_owned(), DIRECTORY, vec![]),
                ("lib/m/kvm.ko".to_owned(), EXECUTABLE, b"12345".to_vec()),
                ("lib/m/tun.ko".to_owned(), EXECUTABLE, vec![]),
            ]
        );
    }
}
