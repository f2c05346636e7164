// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Copies of overlays: of what guests wrote to disks whose images stay as they are.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// How much is copied at a time, in bytes. Zeros of this size become holes.
const PIECE: usize = 256 << 10;

/// An overlay in a snapshot. Its bytes are untrusted.
#[derive(Debug)]
pub struct SavedOverlay {
    /// The number of its disk.
    pub disk: usize,
    /// The copy, which is only read.
    pub file: File,
    /// Its size in bytes.
    pub size: u64,
    /// The CRC-32 (ISO-HDLC) of its bytes.
    pub crc32: u32,
}

impl SavedOverlay {
    /// Writes its bytes to an empty file, and checks them. `goes_on` is asked every few milliseconds, because a hostile
    /// file can have exabytes of holes.
    pub(crate) fn copy_to(&self, to: &File, goes_on: &dyn Fn() -> bool) -> io::Result<()> {
        match copy(&self.file, to, self.size, goes_on)? {
            crc32 if crc32 == self.crc32 => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "its checksum is not the manifest's",
            )),
        }
    }
}

/// Copies `size` bytes to the empty file `to`. Returns their CRC-32. `goes_on` is asked every few milliseconds.
///
/// # Errors
/// The host's, or that `goes_on` said no.
pub(crate) fn copy(
    from: &File,
    to: &File,
    size: u64,
    goes_on: &dyn Fn() -> bool,
) -> io::Result<u32> {
    let mut piece = vec![0; PIECE];
    let (mut at, mut crc) = (0, crc32fast::Hasher::new());
    while at < size {
        if !goes_on() {
            return Err(io::Error::other("the machine is about to end"));
        }
        let length = (size - at).min(PIECE as u64);
        let bytes = &mut piece[..length as usize];
        from.read_exact_at(bytes, at)?;
        crc.update(bytes);
        if bytes.iter().any(|byte| *byte != 0) {
            to.write_all_at(bytes, at)?;
        }
        at += length;
    }
    to.set_len(size)?;
    Ok(crc.finalize())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copy_has_all_bytes_and_holes_for_zeros() {
        let [from, to, again] = [(); 3].map(|()| tempfile::tempfile().unwrap());
        let size = 8 * PIECE as u64 + 100;
        from.write_all_at(b"first", 7).unwrap();
        from.write_all_at(b"last", size - 4).unwrap();
        let crc32 = copy(&from, &again, size, &|| true).unwrap();
        let saved = SavedOverlay {
            disk: 0,
            file: from,
            size,
            crc32,
        };
        saved.copy_to(&to, &|| true).unwrap();
        assert_eq!(copy(&to, &again, size, &|| true).unwrap(), crc32);
        let about = to.metadata().unwrap();
        assert_eq!(about.len(), size);
        assert!(about.blocks() * 512 <= 3 * PIECE as u64);
        let damaged = SavedOverlay {
            crc32: !crc32,
            ..saved
        };
        let error = damaged.copy_to(&to, &|| true).unwrap_err().to_string();
        assert!(error.contains("checksum"), "{error}");
        let short = SavedOverlay {
            size: size + 1,
            ..damaged
        };
        short.copy_to(&to, &|| true).unwrap_err();
    }

    #[test]
    fn a_copy_can_be_given_up() {
        let file = tempfile::tempfile().unwrap();
        let size = 1 << 40;
        file.set_len(size).unwrap();
        let saved = SavedOverlay {
            disk: 0,
            file,
            size,
            crc32: 0,
        };
        let asked = Cell::new(0);
        let goes_on = || asked.replace(asked.get() + 1) < 3;
        let error = saved.copy_to(&tempfile::tempfile().unwrap(), &goes_on);
        assert!(error.unwrap_err().to_string().contains("about to end"));
        assert_eq!(asked.get(), 4);
    }
}
