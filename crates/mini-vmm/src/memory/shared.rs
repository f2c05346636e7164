// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that the guest shares with processes of the host: a file that both map. It is no RAM, and in no snapshot.
//!
//! Only the guest touches the mapping. So a file that becomes shorter ends in an error of the vCPU that needs it, not in a
//! signal: KVM can't have the page.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use libc::{MAP_NORESERVE, MAP_SHARED, PROT_READ, PROT_WRITE};
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};

use super::{Error, LEAST_PHYSICAL_BITS, physical_bits};
use crate::config::{SharedMemorySpec, SharedSizeError, check_shared_size};
use crate::layout;

/// Why a file can't be shared memory.
#[derive(Debug, thiserror::Error)]
pub enum SharedMemoryError {
    /// The host refuses to open it.
    #[error(
        "{path:?}: the shared memory can't be opened ({reason}); name a file that this process may write"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// The host's error.
        reason: io::Error,
    },
    /// It is a device, a pipe or the like.
    #[error(
        "{0:?} is no regular file, so it is no shared memory; name a file, such as one in /dev/shm"
    )]
    NotAFile(PathBuf),
    /// It is shorter than what was asked for.
    #[error(
        "{path:?} has {has} bytes, but the shared memory needs {wants}; make the file larger (truncate -s {wants})"
    )]
    Short {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        has: u64,
        /// The bytes that it needs.
        wants: u64,
    },
    /// Its size is none that memory can have.
    #[error("{path:?}: no shared memory: {reason}")]
    Size {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: SharedSizeError,
    },
}

/// A file that the guest has as memory. Clones are the same file.
#[derive(Clone, Debug)]
pub struct SharedMemory {
    file: Arc<File>,
    size: u64,
}

impl SharedMemory {
    /// Opens the file of `spec`. Waits for nothing.
    ///
    /// # Errors
    /// [`SharedMemoryError`] says what is wrong with it.
    pub fn open(spec: &SharedMemorySpec) -> Result<Self, SharedMemoryError> {
        let path = || spec.path.clone();
        let refused = |reason| SharedMemoryError::Open {
            path: path(),
            reason,
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options.custom_flags(libc::O_NONBLOCK);
        let file = options.open(&spec.path).map_err(refused)?;
        let about = file.metadata().map_err(refused)?;
        if !about.is_file() {
            return Err(SharedMemoryError::NotAFile(path()));
        }
        let (has, size) = (about.len(), spec.size.unwrap_or(about.len()));
        check_shared_size(size).map_err(|reason| SharedMemoryError::Size {
            path: path(),
            reason,
        })?;
        match has < size {
            true => Err(SharedMemoryError::Short {
                path: path(),
                has,
                wants: size,
            }),
            false => Ok(SharedMemory {
                file: Arc::new(file),
                size,
            }),
        }
    }

    /// Its size in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Where a machine with `ram` bytes of RAM has it, as (start, bytes).
    pub const fn range(&self, ram: u64) -> (u64, u64) {
        (layout::shared_memory(ram), self.size)
    }

    /// Maps it for a machine with `ram` bytes of RAM.
    ///
    /// # Errors
    /// The host refuses that, or its processor has too few address bits.
    pub fn map(&self, ram: u64) -> Result<GuestRegionMmap, Error> {
        let (start, size) = self.range(ram);
        let end = start + size;
        // The processor is asked only if the answer matters.
        if end > 1 << LEAST_PHYSICAL_BITS && end > 1 << physical_bits().min(63) {
            return Err(Error::SharedTooHigh { end });
        }
        let file = FileOffset::from_arc(Arc::clone(&self.file), 0);
        let (access, flags) = (PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE);
        let refused = |reason| Error::Shared { size, reason };
        let memory =
            MmapRegion::build(Some(file), size as usize, access, flags).map_err(refused)?;
        // Its end was checked.
        GuestRegionMmap::new(memory, GuestAddress(start)).ok_or(Error::SharedTooHigh { end })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::layout::{GIB, MIB};

    fn open(path: impl Into<PathBuf>, size: Option<u64>) -> Result<SharedMemory, String> {
        let spec = SharedMemorySpec {
            size,
            ..SharedMemorySpec::new(path)
        };
        SharedMemory::open(&spec).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_is_shared_from_its_first_byte_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, vec![7; 3 * 4096]).unwrap();
        for (size, has) in [(None, 3 * 4096), (Some(4096), 4096)] {
            let shared = open(&path, size).unwrap();
            assert_eq!(shared.size(), has);
            let mapped = shared.map(64 * MIB).unwrap();
            assert_eq!(vm_memory::GuestMemoryRegion::len(&mapped), has);
        }
        let mapped = open(&path, None).unwrap().map(64 * MIB).unwrap();
        let address = vm_memory::MemoryRegionAddress(4095);
        vm_memory::Bytes::write_obj(&mapped, 9u8, address).unwrap();
        assert_eq!(fs::read(&path).unwrap()[4094..4097], [7, 9, 7]);
    }

    #[test]
    fn files_that_are_none_or_too_short_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let refused = |size, why: &str| {
            let error = open(&path, size).unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        refused(Some(4096), "can't be opened");
        fs::write(&path, "").unwrap();
        refused(None, "0 bytes are no multiple of 4096");
        fs::write(&path, vec![0; 4097]).unwrap();
        refused(None, "4097 bytes are no multiple of 4096");
        refused(
            Some(8192),
            "has 4097 bytes, but the shared memory needs 8192",
        );
        let error = open(dir.path(), Some(4096)).unwrap_err();
        assert!(error.contains("can't be opened"), "{error}");
        let error = open("/dev/null", Some(4096)).unwrap_err();
        assert!(error.contains("is no regular file"), "{error}");
    }

    #[test]
    fn it_is_above_ram_and_devices() {
        for (ram, start) in [(64 * MIB, 5 * GIB), (3 * GIB, 5 * GIB), (4 * GIB, 6 * GIB)] {
            assert_eq!(layout::shared_memory(ram), start);
            assert!(layout::shared_memory(ram) >= layout::pci_high(ram) + layout::PCI_HIGH_SIZE);
        }
    }
}
