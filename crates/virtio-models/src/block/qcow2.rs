// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! qcow2 images and overlays, by imago.
//!
//! imago trusts more than a VMM can: it opens what an image names, and reads encrypted images as if they were plain. So
//! headers are looked at here first, and no file is opened but those that the user named.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder,
    StorageOpenOptions,
};

use super::disk::SECTOR;
use super::pool::{Blocking, file_size};
use crate::sys::Buffers;

/// How much is copied at a time at most, in bytes: the device goes on with the rest.
const PIECE: usize = 256 << 10;
/// What QEMU takes at most, in bytes: of an L1 table, and of a refcount table.
const MAX_L1: u64 = 32 << 20;
const MAX_REFCOUNTS: u64 = 8 << 20;

/// The bits of a table's entry that are the place of another table, in bytes.
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;

type Access = FormatAccess<imago::file::File>;

/// Why a header is refused.
pub(super) type Refusal = &'static str;

/// The numbers of a header (QEMU's docs/interop/qcow2.txt), big-endian.
struct Header([u8; 104]);

impl Header {
    fn word(&self, at: usize) -> u32 {
        let bytes = self.0[at..].iter().take(4);
        bytes.fold(0, |n, byte| n << 8 | u32::from(*byte))
    }

    fn long(&self, at: usize) -> u64 {
        u64::from(self.word(at)) << 32 | u64::from(self.word(at + 4))
    }

    fn check(&self, file_len: u64, readonly: bool) -> Result<(), Refusal> {
        let version = self.word(4);
        if self.word(0) != 0x5146_49fb {
            return Err("has no qcow2 header: say `format=raw` if it is a raw image");
        }
        if !matches!(version, 2 | 3) {
            return Err("has an unknown version of qcow2: convert it with `qemu-img convert`");
        }
        if self.long(8) != 0 {
            return Err(
                "names a backing file, which is not opened: put both into one image with `qemu-img convert`",
            );
        }
        if self.word(32) != 0 {
            return Err("is encrypted: decrypt it with `qemu-img convert`");
        }
        if version == 3 {
            self.check_features()?;
        }
        if self.word(60) != 0 && !readonly {
            return Err(
                "has snapshots inside, which writes would spoil: delete them with `qemu-img snapshot -d`, or say `readonly`",
            );
        }
        self.check_numbers(file_len, version)
    }

    fn check_features(&self) -> Result<(), Refusal> {
        match self.long(72) {
            0 => Ok(()),
            bits if bits & 3 != 0 => {
                Err("was not closed properly or is damaged: repair it with `qemu-img check -r all`")
            }
            bits if bits & 4 != 0 => Err(
                "keeps its data in another file, which is not opened: put both into one image with `qemu-img convert`",
            ),
            _ => Err("has features that are not supported: convert it with `qemu-img convert`"),
        }
    }

    fn check_numbers(&self, file_len: u64, version: u32) -> Result<(), Refusal> {
        const ABSURD: Refusal =
            "has numbers in its header that can't be: repair it with `qemu-img check -r all`";
        let (cluster_bits, size) = (self.word(20), self.long(24));
        let (l1_entries, l1_at) = (u64::from(self.word(36)), self.long(40));
        let (refcounts_at, refcount_clusters) = (self.long(48), u64::from(self.word(56)));
        if !(9..=21).contains(&cluster_bits) || (version == 3 && self.word(96) > 6) {
            return Err(ABSURD);
        }
        let refcounts = refcount_clusters << cluster_bits;
        if !size.is_multiple_of(SECTOR) {
            return Err(
                "has a size that is not a multiple of 512: change it with `qemu-img resize`",
            );
        }
        let is_inside = |at: u64, len: u64| {
            at.is_multiple_of(1 << cluster_bits)
                && at.checked_add(len).is_some_and(|end| end <= file_len)
        };
        // An entry of the L1 table is for a cluster of entries of 8 bytes, each for a cluster.
        let covered = u128::from(l1_entries) << (2 * cluster_bits - 3);
        let is_sane = l1_entries * 8 <= MAX_L1
            && refcounts <= MAX_REFCOUNTS
            && refcounts != 0
            && is_inside(l1_at, l1_entries * 8)
            && is_inside(refcounts_at, refcounts)
            && covered >= u128::from(size)
            && size <= i64::MAX as u64;
        if is_sane { Ok(()) } else { Err(ABSURD) }
    }

    /// Checks that the tables that the L1 table and the refcount table name are in the file, and that each is named once
    /// and is neither of these two. So no table leads back to itself. [`check`](Self::check) comes first.
    fn check_tables(&self, file: &File, file_len: u64) -> Result<(), Failure> {
        let cluster = 1u64 << self.word(20);
        let l1 = (self.long(40), u64::from(self.word(36)) * 8);
        let refcounts = (self.long(48), u64::from(self.word(56)) * cluster);
        let mut used = Vec::new();
        for (at, len) in [l1, refcounts] {
            let mut table = vec![0; len as usize];
            file.read_exact_at(&mut table, at).map_err(Failure::Host)?;
            let (entries, _) = table.as_chunks();
            let places = entries
                .iter()
                .map(|entry| u64::from_be_bytes(*entry) & PLACE);
            used.extend(places.filter(|place| *place != 0));
            used.extend((at..at + len).step_by(cluster as usize));
        }
        used.sort_unstable();
        let is_twice = used.windows(2).any(|pair| pair[0] == pair[1]);
        if is_twice || used.last().is_some_and(|last| *last >= file_len) {
            return Err(Failure::Refused(
                "has tables that lead to each other or out of it: repair it with `qemu-img check -r all`",
            ));
        }
        Ok(())
    }
}

/// Why an image can't be opened.
#[derive(Debug)]
pub(super) enum Failure {
    Refused(Refusal),
    /// What imago finds wrong with the image.
    Damaged(io::Error),
    Host(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => Failure::Damaged(error),
            _ => Failure::Host(error),
        }
    }
}

/// Runs imago's code, which may panic on what it doesn't expect.
fn guarded<T>(run: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "no program can read it",
        ))
    })
}

fn storage(file: File, write: bool) -> io::Result<imago::file::File> {
    imago::file::File::from_open_file(file, StorageOpenOptions::new().write(write))
}

/// Opens a qcow2 image, over `base` or by itself.
fn access(file: File, readonly: bool, base: Option<Access>) -> Result<Access, Failure> {
    let mut header = Header([0; 104]);
    // What is behind the header of version 2 is not looked at.
    let read = file.read_at(&mut header.0, 0).map_err(Failure::Host)?;
    if read < 72 {
        return Err(Failure::Refused(
            "is too short for a qcow2 image: say `format=raw` if it is a raw image",
        ));
    }
    let len = file_size(&file).map_err(Failure::Host)?;
    header.check(len, readonly).map_err(Failure::Refused)?;
    header.check_tables(&file, len)?;
    if base
        .as_ref()
        .is_some_and(|base| base.size() != header.long(24))
    {
        return Err(Failure::Refused(
            "has another size than when the machine was saved: name the image that it had",
        ));
    }
    let opened = guarded(|| {
        let builder = Qcow2::<imago::file::File>::builder(storage(file, !readonly)?);
        let builder = builder.write(!readonly).backing(base);
        builder.open(DenyImplicitOpenGate::default())
    });
    Ok(FormatAccess::new(opened?))
}

/// The image below an overlay, which is only read.
fn base_access(base: File, is_qcow2: bool) -> Result<Access, Failure> {
    if is_qcow2 {
        return access(base, true, None);
    }
    let raw = guarded(|| Raw::open_image(storage(base, false)?, false));
    Ok(FormatAccess::new(raw.map_err(Failure::Host)?))
}

/// A qcow2 image, for the threads.
pub(super) struct Image {
    access: RwLock<Access>,
    /// The file of an overlay.
    overlay: Option<File>,
}

impl Image {
    /// Opens an image.
    pub(super) fn open(file: File, readonly: bool) -> Result<Self, Failure> {
        Ok(Image {
            access: RwLock::new(access(file, readonly, None)?),
            overlay: None,
        })
    }

    /// Makes an overlay in an empty file over a base, which is only read.
    pub(super) fn overlay(file: File, base: File, base_is_qcow2: bool) -> Result<Self, Failure> {
        let base = base_access(base, base_is_qcow2)?;
        let size = base.size();
        let copy = file.try_clone().map_err(Failure::Host)?;
        let opened = guarded(|| {
            let create = Qcow2::<imago::file::File>::create_builder(storage(file, true)?);
            create
                .size(size)
                .create_open(DenyImplicitOpenGate::default(), |file| {
                    Ok(Qcow2::builder(file).write(true).backing(Some(base)))
                })
        });
        let access = FormatAccess::new(opened.map_err(Failure::Host)?);
        Ok(Image {
            access: RwLock::new(access),
            overlay: Some(copy),
        })
    }

    /// Opens an overlay that was one before, over the same base.
    pub(super) fn saved_overlay(
        file: File,
        base: File,
        base_is_qcow2: bool,
    ) -> Result<Self, Failure> {
        let base = base_access(base, base_is_qcow2)?;
        let copy = file.try_clone().map_err(Failure::Host)?;
        Ok(Image {
            access: RwLock::new(access(file, false, Some(base))?),
            overlay: Some(copy),
        })
    }

    // What imago did before it panicked is the image's damage, not ours.
    fn shared(&self) -> RwLockReadGuard<'_, Access> {
        self.access.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, Access> {
        self.access.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blocking for Image {
    fn size(&self) -> io::Result<u64> {
        Ok(self.shared().size())
    }

    fn read(&self, offset: u64, buffers: &Buffers) -> io::Result<usize> {
        // A copy: the guest may write its memory at any time, and imago works with slices.
        let mut data = vec![0; buffers.left().min(PIECE)];
        self.shared().read(&mut data[..], offset)?;
        Ok(buffers.copy_from(&data))
    }

    fn write(&self, offset: u64, buffers: &Buffers) -> io::Result<usize> {
        let mut data = vec![0; buffers.left().min(PIECE)];
        buffers.copy_to(&mut data);
        self.shared().write(&data[..], offset)?;
        Ok(data.len())
    }

    fn flush(&self) -> io::Result<()> {
        let access = self.shared();
        access.flush()?;
        access.sync()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.exclusive().discard_to_any(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if unmap {
            self.exclusive().discard_to_zero(offset, len)
        } else {
            self.shared().write_zeroes(offset, len)
        }
    }

    fn overlay(&self) -> Option<&File> {
        self.overlay.as_ref()
    }
}
