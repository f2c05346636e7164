// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Opens images, and says what is wrong with them. Creates and changes nothing.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, StatxFlags, fcntl_setfl, fstat, open as open_path, stat, statx,
};
use thiserror::Error;

use super::disk::{Disk, SECTOR};
use super::image::Image;
use super::pool::file_size;
use super::spec::{BlockSpec, Engine, Format, MAX_QUEUES};
use super::uring::Uring;
use crate::sys;

/// Why an image can't be opened. Each is one sentence with the next step.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no such file.
    #[error("there is no disk image {0:?}: check the path, or make one, as with `truncate -s 1G`")]
    Missing(PathBuf),
    /// Its path leads nowhere.
    #[error("the disk image {path:?} can't be found: {source}; check the path")]
    Path {
        /// The image.
        path: PathBuf,
        /// The cause: a loop of symbolic links, or a name that is too long.
        source: io::Error,
    },
    /// The user has no permission to read or write it.
    #[error("the disk image {path:?} can't be {}: {}", if *.readonly { "read by this user" } else { "written by this user" }, if *.readonly { "change its permissions" } else { "change its permissions, or say `readonly`" })]
    Denied {
        /// The image.
        path: PathBuf,
        /// Whether it should be read-only.
        readonly: bool,
    },
    /// It is neither a file nor a block device.
    #[error("the disk image {path:?} is {what}: name a file or a block device")]
    Kind {
        /// The image.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// It has no content.
    #[error("the disk image {0:?} is empty: give it a size, as with `truncate -s 1G`")]
    Empty(PathBuf),
    /// Its size is not a whole number of sectors.
    #[error(
        "the disk image {path:?} has {size} bytes, which is not a multiple of {unit}: make it larger with `truncate -s %{unit}`"
    )]
    Misaligned {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The unit of its size.
        unit: u64,
    },
    /// Another machine has locked it.
    #[error("the disk image {path:?} is in use by another machine: stop that one, {}", if *.readonly { "or let it use the image `readonly`, too" } else { "or use a copy of the image" })]
    Locked {
        /// The image.
        path: PathBuf,
        /// Whether it should be read-only.
        readonly: bool,
    },
    /// The host or another program has the block device for itself.
    #[error(
        "the block device {0:?} is in use, by a mount or another machine: unmount it, or stop that one"
    )]
    Claimed(PathBuf),
    /// The file system doesn't support direct I/O.
    #[error("the disk image {0:?} is on a file system without direct I/O: leave out `direct`")]
    Direct(PathBuf),
    /// Direct I/O is for raw images.
    #[error(
        "the disk image {0:?} is not used as a raw image, so `direct` can't be had: leave it out"
    )]
    DirectMapped(PathBuf),
    /// The host refuses io_uring.
    #[error(
        "the disk image {path:?} can't be used with io_uring: {source}; allow io_uring, or leave out the engine"
    )]
    Uring {
        /// The image.
        path: PathBuf,
        /// Why the host refuses it.
        source: io::Error,
    },
    /// io_uring is for raw images.
    #[error(
        "the disk image {0:?} is not used as a raw image, so it can't have io_uring: leave out the engine"
    )]
    UringMapped(PathBuf),
    /// The serial number is not valid.
    #[error(
        "the serial number {0:?} is not of up to 20 printable ASCII characters: choose a shorter or plainer one"
    )]
    Serial(String),
    /// The number of queues is not valid.
    #[error("a disk can't have {0} queues: choose 1 to {MAX_QUEUES}")]
    Queues(u16),
    /// It is no qcow2 image that can be used.
    #[error("the disk image {path:?} {why}")]
    Qcow2 {
        /// The image.
        path: PathBuf,
        /// What is wrong, and the next step.
        why: &'static str,
    },
    /// It is a damaged qcow2 image.
    #[error("the disk image {path:?} is damaged: {source}; repair it with `qemu-img check -r all`")]
    Damaged {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// This build has no qcow2.
    #[error(
        "the disk image {0:?} can't be used: this build has no qcow2 images and overlays, so use a raw image"
    )]
    NoQcow2(PathBuf),
    /// There is no place for an overlay.
    #[error(
        "no overlay can be made in {path:?}: {source}; name a directory that can be written, on a file system with O_TMPFILE"
    )]
    Overlay {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A saved overlay can't be copied.
    #[error(
        "the saved overlay of the disk image {path:?} can't be copied: {source}; free space, or take a new snapshot"
    )]
    Saved {
        /// The image.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An overlay is there to be written.
    #[error("the disk image {0:?} has an overlay and is `readonly`: leave out one of them")]
    ReadonlyOverlay(PathBuf),
    /// The host failed.
    #[error("the disk image {path:?} can't be {what}: {source}; check the host's disk and mounts")]
    Host {
        /// The image.
        path: PathBuf,
        /// What failed.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
}

/// Opens and locks the image that `spec` describes: exclusively if the guest can write it, else shared with other
/// readers. The lock belongs to the open file (`F_OFD_SETLK`), so it also keeps out a second disk of the same process.
/// A block device is also opened with `O_EXCL` if the guest can write it: that keeps out mounts, and writers by another
/// name of the device.
///
/// # Errors
/// [`OpenError`].
pub fn open(spec: &BlockSpec) -> Result<Image, OpenError> {
    open_with(spec, None)
}

/// As [`open`], for a disk whose overlay goes on: `fill` writes a copy of [`Control::overlay`](super::Control::overlay)
/// to an empty file. The image must be the one that the overlay was made for. The copy is checked as any qcow2 image is,
/// so it may be a stranger's.
///
/// # Errors
/// [`OpenError`]. [`OpenError::Saved`] is that of `fill`, or `spec` names no place for an overlay.
pub fn open_saved(spec: &BlockSpec, fill: Fill<'_>) -> Result<Image, OpenError> {
    if spec.overlay.is_none() {
        return Err(OpenError::Saved {
            path: spec.path.clone(),
            source: io::Error::new(io::ErrorKind::InvalidInput, "no place is given for it"),
        });
    }
    open_with(spec, Some(fill))
}

/// Writes an overlay to an empty file.
type Fill<'a> = &'a dyn Fn(&File) -> io::Result<()>;

fn open_with(spec: &BlockSpec, fill: Option<Fill<'_>>) -> Result<Image, OpenError> {
    let serial = serial(spec.serial.as_deref().unwrap_or(""))?;
    if !(1..=MAX_QUEUES).contains(&spec.queues) {
        return Err(OpenError::Queues(spec.queues));
    }
    if spec.overlay.is_some() && spec.readonly {
        return Err(OpenError::ReadonlyOverlay(spec.path.clone()));
    }
    let disk = Disk {
        sectors: 0,
        readonly: spec.readonly,
        serial,
        queues: spec.queues,
        cache: spec.cache,
        ..Disk::default()
    };
    let image = if spec.format == Format::Raw && spec.overlay.is_none() {
        open_plain(spec, disk)?
    } else {
        open_mapped(spec, disk, fill)?
    };
    Ok(image.with_engine(spec.engine).with_limits(spec.limits))
}

/// Checks that an image that must have io_uring gets it.
fn check_engine(spec: &BlockSpec, ring: impl FnOnce() -> io::Result<()>) -> Result<(), OpenError> {
    if spec.engine != Engine::Async {
        return Ok(());
    }
    let path = spec.path.clone();
    ring().map_err(|source| OpenError::Uring { path, source })
}

/// A raw image.
fn open_plain(spec: &BlockSpec, disk: Disk) -> Result<Image, OpenError> {
    let file = open_file(spec)?;
    let (block_size, alignment, length_alignment) = if spec.direct {
        let (block_size, alignment) = direct_alignment(&file);
        (block_size, alignment, block_size)
    } else {
        (SECTOR as u32, 1, 1)
    };
    check_size(&spec.path, &file, block_size.into())?;
    let file = Arc::new(file);
    check_engine(spec, || Uring::new(&file, 1).map(drop))?;
    let disk = Disk {
        block_size,
        alignment,
        length_alignment,
        ..disk
    };
    Image::raw(file, disk).map_err(|source| host(spec, "measured", source))
}

#[cfg(not(feature = "qcow2"))]
fn open_mapped(spec: &BlockSpec, _: Disk, _: Option<Fill<'_>>) -> Result<Image, OpenError> {
    Err(OpenError::NoQcow2(spec.path.clone()))
}

/// A qcow2 image, or an overlay over any.
#[cfg(feature = "qcow2")]
fn open_mapped(spec: &BlockSpec, disk: Disk, fill: Option<Fill<'_>>) -> Result<Image, OpenError> {
    use super::qcow2;
    if spec.direct {
        return Err(OpenError::DirectMapped(spec.path.clone()));
    }
    if spec.engine == Engine::Async {
        return Err(OpenError::UringMapped(spec.path.clone()));
    }
    let base = BlockSpec {
        readonly: spec.readonly || spec.overlay.is_some(),
        ..spec.clone()
    };
    let file = open_file(&base)?;
    let is_qcow2 = spec.format == Format::Qcow2;
    check_size(&spec.path, &file, if is_qcow2 { 1 } else { SECTOR })?;
    let opened = match (&spec.overlay, fill) {
        (None, _) => qcow2::Image::open(file, spec.readonly),
        (Some(place), None) => qcow2::Image::overlay(overlay_file(place)?, file, is_qcow2),
        (Some(place), Some(fill)) => {
            let overlay = overlay_file(place)?;
            fill(&overlay).map_err(|source| OpenError::Saved {
                path: spec.path.clone(),
                source,
            })?;
            qcow2::Image::saved_overlay(overlay, file, is_qcow2)
        }
    };
    let image = opened.map_err(|failure| mapped(spec, failure))?;
    let image = Image::blocking(Arc::new(image), disk);
    let image = image.map_err(|source| host(spec, "measured", source))?;
    if image.disk().sectors == 0 {
        return Err(OpenError::Empty(spec.path.clone()));
    }
    Ok(image)
}

/// Why a qcow2 image can't be used.
#[cfg(feature = "qcow2")]
fn mapped(spec: &BlockSpec, failure: super::qcow2::Failure) -> OpenError {
    use super::qcow2::Failure;
    let path = spec.path.clone();
    match failure {
        Failure::Refused(why) => OpenError::Qcow2 { path, why },
        Failure::Damaged(source) => OpenError::Damaged { path, source },
        Failure::Host(source) => host(spec, "opened as qcow2", source),
    }
}

/// A file without a name in a directory: gone with the machine.
#[cfg(feature = "qcow2")]
fn overlay_file(place: &Path) -> Result<File, OpenError> {
    let path = if place == Path::new("tmp") {
        std::env::temp_dir()
    } else {
        place.to_owned()
    };
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match open_path(&path, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        Err(error) => Err(OpenError::Overlay {
            path,
            source: error.into(),
        }),
    }
}

fn host(spec: &BlockSpec, what: &'static str, source: io::Error) -> OpenError {
    OpenError::Host {
        path: spec.path.clone(),
        what,
        source,
    }
}

fn serial(text: &str) -> Result<[u8; 20], OpenError> {
    let mut serial = [0; 20];
    let is_plain = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    match serial.get_mut(..text.len()) {
        Some(place) if is_plain => place.copy_from_slice(text.as_bytes()),
        _ => return Err(OpenError::Serial(text.to_owned())),
    }
    Ok(serial)
}

/// The kind of file, if it is neither a file nor a block device.
fn wrong_kind(mode: rustix::fs::RawMode) -> Option<&'static str> {
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile | FileType::BlockDevice => None,
        FileType::Directory => Some("a directory"),
        FileType::Fifo => Some("a named pipe"),
        FileType::CharacterDevice => Some("a character device"),
        FileType::Socket => Some("a socket"),
        _ => Some("no file"),
    }
}

fn open_file(spec: &BlockSpec) -> Result<File, OpenError> {
    let path = &spec.path;
    let error = |error: rustix::io::Errno| failed(spec, error);
    let kind = |mode| match wrong_kind(mode) {
        Some(what) => Err(OpenError::Kind {
            path: path.clone(),
            what,
        }),
        None => Ok(()),
    };
    // Opening a device may have side effects, so its kind is checked first. If it changes in between, the open doesn't
    // block on a pipe, and the check afterwards notices it.
    let mode = stat(path).map_err(error)?.st_mode;
    kind(mode)?;
    let flags = flags(spec, FileType::from_raw_mode(mode));
    let file = open_path(path, flags | OFlags::NONBLOCK, Mode::empty()).map_err(error)?;
    kind(fstat(&file).map_err(error)?.st_mode)?;
    // With O_NONBLOCK, io_uring would not wait for the file.
    fcntl_setfl(&file, flags & OFlags::DIRECT).map_err(error)?;
    let file = File::from(file);
    match sys::lock(&file, !spec.readonly) {
        Ok(true) => Ok(file),
        Ok(false) => Err(OpenError::Locked {
            path: path.clone(),
            readonly: spec.readonly,
        }),
        Err(source) => Err(host(spec, "locked", source)),
    }
}

fn flags(spec: &BlockSpec, kind: FileType) -> OFlags {
    let mut flags = OFlags::CLOEXEC | OFlags::NOCTTY;
    flags |= if spec.readonly {
        OFlags::RDONLY
    } else {
        OFlags::RDWR
    };
    flags.set(OFlags::DIRECT, spec.direct);
    // Locks are on one node of the device; it may have several.
    let claims = kind == FileType::BlockDevice && !spec.readonly;
    flags.set(OFlags::EXCL, claims);
    flags
}

fn failed(spec: &BlockSpec, error: rustix::io::Errno) -> OpenError {
    use rustix::io::Errno;
    let (path, readonly) = (spec.path.clone(), spec.readonly);
    match error {
        Errno::NOENT | Errno::NOTDIR => OpenError::Missing(path),
        Errno::LOOP | Errno::NAMETOOLONG => OpenError::Path {
            path,
            source: error.into(),
        },
        Errno::ACCESS | Errno::PERM | Errno::ROFS => OpenError::Denied { path, readonly },
        Errno::BUSY => OpenError::Claimed(path),
        Errno::INVAL if spec.direct => OpenError::Direct(path),
        error => host(spec, "opened", error.into()),
    }
}

/// The unit of direct I/O in the file, and the memory alignment that it needs, in bytes.
fn direct_alignment(file: &File) -> (u32, u32) {
    let told = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    let valid = |n: u32| n.is_power_of_two() && (512..=4096).contains(&n);
    match told {
        Ok(told) if valid(told.stx_dio_offset_align) => {
            let memory = told.stx_dio_mem_align;
            let memory = if memory.is_power_of_two() {
                memory
            } else {
                4096
            };
            (told.stx_dio_offset_align, memory.min(4096))
        }
        // Sufficient for all disks. The kernel reports these values since Linux 6.1.
        _ => (4096, 4096),
    }
}

fn check_size(path: &Path, file: &File, unit: u64) -> Result<(), OpenError> {
    let path = path.to_owned();
    match file_size(file) {
        Ok(0) => Err(OpenError::Empty(path)),
        Ok(size) if size % unit != 0 => Err(OpenError::Misaligned { path, size, unit }),
        Ok(_) => Ok(()),
        Err(source) => Err(OpenError::Host {
            path,
            what: "measured",
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_image_that_must_have_a_ring_is_refused_without_one() {
        let refused = || Err(io::Error::from_raw_os_error(libc::EPERM));
        for (engine, is_refused) in [
            (Engine::Auto, false),
            (Engine::Sync, false),
            (Engine::Async, true),
        ] {
            let spec = BlockSpec {
                engine,
                ..BlockSpec::new("disk")
            };
            let checked = check_engine(&spec, refused);
            assert_eq!(
                matches!(checked, Err(OpenError::Uring { .. })),
                is_refused,
                "{engine:?}"
            );
            check_engine(&spec, || Ok(())).expect("a ring");
        }
    }

    #[test]
    fn only_a_written_block_device_is_claimed() {
        for readonly in [false, true] {
            for kind in [FileType::BlockDevice, FileType::RegularFile] {
                let mut spec = BlockSpec::new("disk");
                spec.readonly = readonly;
                let claims = flags(&spec, kind).contains(OFlags::EXCL);
                assert_eq!(claims, kind == FileType::BlockDevice && !readonly);
            }
        }
    }
}
