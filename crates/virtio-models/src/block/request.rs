// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests of the driver (virtio 1.4, section 5.2.6).

use virtio_transport::chain::{Chain, ChainReader};
use virtio_transport::memory::View;
use vm_memory::{GuestAddress, GuestMemory};

use super::config::{DISCARD, FLUSH, MAX_DISCARD_SECTORS, MAX_WRITE_ZEROES_SECTORS, WRITE_ZEROES};
use super::disk::{Disk, SECTOR};

/// The length of a request's header in bytes.
const HEADER: u64 = 16;
/// The length of a range to discard or to fill with zeros, in bytes.
const RANGE: u64 = 16;
/// The length of the answer to `VIRTIO_BLK_T_GET_ID` in bytes.
const ID: u64 = 20;
/// The flag of a range whose blocks may be discarded.
const UNMAP: u32 = 1;

/// The status byte of a completed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoErr = 1,
    Unsupported = 2,
}

/// A valid request. Offsets and lengths are in bytes, and inside the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Request {
    Read {
        offset: u64,
        len: u64,
    },
    Write {
        offset: u64,
        len: u64,
    },
    Flush,
    Id,
    Discard {
        offset: u64,
        len: u64,
    },
    WriteZeroes {
        offset: u64,
        len: u64,
        unmap: bool,
    },
    /// Nothing to do.
    #[default]
    Nothing,
}

impl Request {
    /// Whether it changes the disk.
    pub(super) const fn changes(self) -> bool {
        matches!(
            self,
            Request::Write { .. } | Request::Discard { .. } | Request::WriteZeroes { .. }
        )
    }

    /// Its offset on the disk.
    pub(super) const fn offset(self) -> u64 {
        match self {
            Request::Read { offset, .. }
            | Request::Write { offset, .. }
            | Request::Discard { offset, .. }
            | Request::WriteZeroes { offset, .. } => offset,
            Request::Flush | Request::Id | Request::Nothing => 0,
        }
    }

    /// Its name for messages.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Request::Read { .. } => "read",
            Request::Write { .. } => "write",
            Request::Flush => "flush",
            Request::Discard { .. } => "discard",
            Request::WriteZeroes { .. } => "write of zeros",
            Request::Id | Request::Nothing => "request",
        }
    }

    /// Parses a request of a driver that accepted `features`.
    pub(super) fn parse<M: GuestMemory>(
        chain: &Chain,
        view: &View<'_, M>,
        disk: &Disk,
        features: u64,
    ) -> Result<Self, Status> {
        let mut reader = chain.reader(view);
        let header: [u64; 2] = reader.read_obj().map_err(|_| Status::IoErr)?;
        // The kind, four bytes without a meaning, and the sector.
        let [kind, sector] = header.map(u64::from_le);
        let kind = kind as u32;
        // The status follows the data.
        let writable = chain.writable_len().checked_sub(1);
        let writable = writable.ok_or(Status::IoErr)?;
        match kind {
            0 => {
                let (offset, len) = extent(disk, sector, writable)?;
                Ok(Request::Read { offset, len })
            }
            1 => {
                let (offset, len) = extent(disk, sector, reader.left())?;
                changeable(disk)?;
                Ok(Request::Write { offset, len })
            }
            4 if features & FLUSH != 0 => Ok(Request::Flush),
            8 if writable >= ID => Ok(Request::Id),
            8 => Err(Status::IoErr),
            11 if features & DISCARD != 0 => {
                let (offset, len, flags) = range(reader, disk, MAX_DISCARD_SECTORS)?;
                match (flags, len) {
                    (0, 0) => Ok(Request::Nothing),
                    (0, _) => Ok(Request::Discard { offset, len }),
                    _ => Err(Status::Unsupported),
                }
            }
            13 if features & WRITE_ZEROES != 0 => {
                let (offset, len, flags) = range(reader, disk, MAX_WRITE_ZEROES_SECTORS)?;
                let unmap = flags & UNMAP != 0;
                match (flags & !UNMAP, len) {
                    (0, 0) => Ok(Request::Nothing),
                    (0, _) => Ok(Request::WriteZeroes { offset, len, unmap }),
                    _ => Err(Status::Unsupported),
                }
            }
            _ => Err(Status::Unsupported),
        }
    }
}

const fn changeable(disk: &Disk) -> Result<(), Status> {
    if disk.readonly {
        return Err(Status::IoErr);
    }
    Ok(())
}

/// The range of `len` bytes from a sector on. It must be whole blocks inside the disk.
fn extent(disk: &Disk, sector: u64, len: u64) -> Result<(u64, u64), Status> {
    let offset = sector.checked_mul(SECTOR).ok_or(Status::IoErr)?;
    let end = offset.checked_add(len).ok_or(Status::IoErr)?;
    let mask = u64::from(disk.block_size.max(SECTOR as u32)) - 1;
    if (offset | len) & mask != 0 || end > disk.sectors.saturating_mul(SECTOR) {
        return Err(Status::IoErr);
    }
    Ok((offset, len))
}

/// The only range of a request, and its flags.
fn range<M: GuestMemory>(
    mut reader: ChainReader<'_, '_, M>,
    disk: &Disk,
    max: u32,
) -> Result<(u64, u64, u32), Status> {
    if reader.left() != RANGE {
        return Err(Status::IoErr);
    }
    let range: [u64; 2] = reader.read_obj().map_err(|_| Status::IoErr)?;
    // The sector, their number, and the flags.
    let [sector, rest] = range.map(u64::from_le);
    let (count, flags) = (rest as u32, (rest >> 32) as u32);
    // Flags come first, so that a driver learns that it used an unsupported one.
    if flags & !UNMAP != 0 {
        return Err(Status::Unsupported);
    }
    if count > max {
        return Err(Status::IoErr);
    }
    changeable(disk)?;
    let (offset, len) = extent(disk, sector, u64::from(count) * SECTOR)?;
    Ok((offset, len, flags))
}

/// A request's data in guest memory: what follows the header or precedes the status.
pub(super) fn data(
    chain: &Chain,
    request: Request,
) -> impl Iterator<Item = (GuestAddress, usize)> + '_ {
    let (segments, mut skip, mut left) = match request {
        Request::Read { len, .. } => (chain.writable(), 0, len),
        Request::Write { len, .. } => (chain.readable(), HEADER, len),
        _ => (&[][..], 0, 0),
    };
    segments.iter().filter_map(move |segment| {
        let len = u64::from(segment.len);
        let skipped = skip.min(len);
        skip -= skipped;
        let here = (len - skipped).min(left);
        left -= here;
        // The segment doesn't wrap, so no part of it does.
        let address = GuestAddress(segment.address.0.wrapping_add(skipped));
        (here != 0).then_some((address, here as usize))
    })
}

/// The address of the status: the last writable byte.
pub(super) fn status_address(chain: &Chain) -> Option<GuestAddress> {
    let last = chain.writable().last()?;
    let offset = u64::from(last.len) - 1;
    Some(GuestAddress(last.address.0.wrapping_add(offset)))
}
