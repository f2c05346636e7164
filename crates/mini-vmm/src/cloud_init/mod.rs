// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The seed of cloud-init's NoCloud data source: a file system named `CIDATA` with the files of a directory, made in
//! memory (cloud-init, "NoCloud").

mod iso;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, Mode, OFlags};

use iso::Entry;

/// The most bytes that the files of a seed have in all.
pub const MAX_SIZE: usize = 4 << 20;

/// The names of the files that cloud-init reads, each after its name in ISO 9660's own form, in ascending order.
const FILES: [(&str, &str); 4] = [
    ("METADATA.;1", META_DATA),
    ("NETWORK.;1", "network-config"),
    ("USERDATA.;1", USER_DATA),
    ("VENDOR.;1", "vendor-data"),
];
const META_DATA: &str = "meta-data";
const USER_DATA: &str = "user-data";

/// The metadata of a directory without any. `cloud-localds` writes the same.
const DEFAULT_META_DATA: &[u8] = b"instance-id: iid-local01\n";

/// Why there is no seed.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The directory can't be opened.
    #[error(
        "can't open the cloud-init directory {dir:?} ({source}); name a directory with a file `user-data`"
    )]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// The host's failure.
        source: io::Error,
    },
    /// It lacks the one file that it must have.
    #[error(
        "the cloud-init directory {dir:?} has no `user-data`; put the guest's configuration there, in a file that begins \
         with `#cloud-config`"
    )]
    NoUserData {
        /// The directory.
        dir: PathBuf,
    },
    /// A file can't be read.
    #[error(
        "can't read the cloud-init file {path:?} ({source}); give it content and read permission"
    )]
    File {
        /// The file.
        path: PathBuf,
        /// The host's failure.
        source: io::Error,
    },
    /// The files are too large.
    #[error(
        "the cloud-init files in {dir:?} have more than {} MiB; let the guest fetch large files itself, or give it a disk",
        MAX_SIZE >> 20
    )]
    TooLarge {
        /// The directory.
        dir: PathBuf,
    },
    /// There is no memory for it.
    #[error("can't keep the cloud-init seed in memory ({0}); free some memory")]
    Memory(#[source] io::Error),
}

/// A file in memory with the seed from `dir`.
///
/// # Errors
/// [`SeedError`] if `dir` lacks a file that it must have, or has one that can't be read or is too large.
pub fn seed(dir: &Path) -> Result<File, SeedError> {
    let image = image(dir)?;
    let in_memory = || {
        let mut file = File::from(rustix::fs::memfd_create("cidata", MemfdFlags::CLOEXEC)?);
        file.write_all(&image)?;
        Ok(file)
    };
    in_memory().map_err(SeedError::Memory)
}

/// The paths of the files that a seed from `dir` may have.
pub fn files(dir: &Path) -> impl Iterator<Item = PathBuf> {
    FILES.map(|(_, name)| dir.join(name)).into_iter()
}

/// The seed's content.
fn image(dir: &Path) -> Result<Vec<u8>, SeedError> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let handle =
        rustix::fs::open(dir, flags, Mode::empty()).map_err(|error| SeedError::Directory {
            dir: dir.into(),
            source: error.into(),
        })?;
    let mut left = MAX_SIZE;
    let mut files = Vec::new();
    for (short, name) in FILES {
        // A FIFO must not stop the start.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let data = match rustix::fs::openat(&handle, name, flags, Mode::empty()) {
            Ok(file) => read(&File::from(file), left),
            Err(rustix::io::Errno::NOENT) if name == USER_DATA => {
                return Err(SeedError::NoUserData { dir: dir.into() });
            }
            Err(rustix::io::Errno::NOENT) if name == META_DATA => Ok(DEFAULT_META_DATA.to_vec()),
            Err(rustix::io::Errno::NOENT) => continue,
            Err(error) => Err(error.into()),
        };
        let data = data.map_err(|source| SeedError::File {
            path: dir.join(name),
            source,
        })?;
        left = left
            .checked_sub(data.len())
            .ok_or_else(|| SeedError::TooLarge { dir: dir.into() })?;
        files.push((short, name, data));
    }
    let entries = files
        .iter()
        .map(|(short, name, data)| Entry { short, name, data });
    Ok(iso::image("CIDATA", &entries.collect::<Vec<_>>()))
}

/// The content of a regular file, up to one byte more than `limit`.
fn read(file: &File, limit: usize) -> io::Result<Vec<u8>> {
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut data = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut data)?;
    Ok(data)
}

#[cfg(test)]
mod tests;
