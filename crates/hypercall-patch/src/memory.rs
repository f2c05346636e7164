// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Writes a stub to guest memory: first a check of the site, then stores that can't fail.
//!
//! The host of 2007 translated the address once and stored four bytes there, one at a time. A guest could make
//! it write past the page, or into the structure that the registration came from, and no dirty log recorded the
//! stores. Here, for a site at guest-physical address *g*:
//!
//! - *g* to *g* + 3 are in one page of 4096 bytes. The guest's next virtual page need not be its next physical
//!   page, so the guest would see a stub across the boundary in two pieces. This check also rejects addresses
//!   near 2^64 before anything can wrap.
//! - They don't overlap a range that the caller keeps, such as the structure's 24 bytes.
//! - All four bytes are RAM, and writable if the [`GuestMemory`] has permissions. Otherwise the site is
//!   refused and no byte is touched. The bytes may be in several regions that are adjacent only in the guest.
//! - Bytes that are already right aren't stored. A stub that several vCPUs register is written once, and not
//!   again while another vCPU runs it.
//! - Otherwise a 4-aligned site gets **one** 32-bit atomic store. Any other site gets byte stores **from the last
//!   byte to the first**, and only of bytes that change. The first byte keeps its old value until the last store,
//!   so the `mov eax, imm32; ret` that known guests put there stays valid throughout. A vCPU that runs other code
//!   there may see a mixture. The ABI can't prevent that; guests should align their stubs. (A 4-aligned site is
//!   also stored byte by byte if it isn't aligned in the host, or spans regions.)
//! - The stores are marked in the memory's dirty bitmap. KVM's dirty log doesn't see them.
//!
//! A plain `GuestMemoryMmap` doesn't know read-only or private memory. A VMM with ROM slots or guest_memfd
//! must leave them out of the object that it passes, or wrap it in a [`GuestMemory`] that doesn't grant
//! [`Permissions::Write`] for them.

use core::fmt;
use core::ops::Range;
use core::sync::atomic::Ordering;

use vm_memory::bitmap::{BS, BitmapSlice};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice};

use crate::{PAGE_SIZE, Stub};

const LEN: usize = Stub::LEN;

/// Checks a site and writes a stub there: [`check_site`] and [`Site::write`] in one call.
///
/// `keep` is a range of guest-physical addresses that the stub must not overlap.
///
/// # Errors
///
/// [`SiteError`] if the site is refused. Then nothing was written.
///
/// # Examples
///
/// ```
/// use hypercall_patch::memory::{Written, write_stub};
/// use hypercall_patch::{Stub, Vendor};
/// use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
///
/// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x4000)])?;
/// let (site, para_state) = (GuestAddress(0x1000), 0x2000..0x2018);
/// let stub = Stub::native(Vendor::Intel);
///
/// assert_eq!(write_stub(&memory, site, stub, Some(para_state.clone()))?, Written::Changed);
/// assert_eq!(write_stub(&memory, site, stub, Some(para_state.clone()))?, Written::Unchanged);
/// assert_eq!(memory.read_obj::<[u8; 4]>(site)?, stub.bytes());
///
/// let refused = write_stub(&memory, GuestAddress(0x1ffd), stub, Some(para_state)).unwrap_err();
/// assert!(refused.to_string().contains("would cross a page"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write_stub<M: GuestMemory + ?Sized>(
    memory: &M,
    gpa: GuestAddress,
    stub: Stub,
    keep: Option<Range<u64>>,
) -> Result<Written, SiteError> {
    Ok(check_site(memory, gpa, keep)?.write(stub))
}

/// Checks that a stub may be written at `gpa`, and writes nothing. [`Site::write`] can't fail, so a
/// caller can validate everything before it changes anything.
///
/// `keep` is a range of guest-physical addresses that the stub must not overlap. An empty range forbids nothing.
///
/// # Errors
///
/// [`SiteError`]: the first variant that applies.
///
/// # Examples
///
/// A restored guest gets the stub of this host's vendor:
///
/// ```
/// use hypercall_patch::memory::{Written, check_site};
/// use hypercall_patch::{Stub, Vendor};
/// use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
///
/// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x4000)])?;
/// memory.write_slice(&Stub::Vmx.bytes(), GuestAddress(0x1000))?;
///
/// let site = check_site(&memory, GuestAddress(0x1000), None)?;
/// assert_eq!(site.stub(), Some(Stub::Vmx));
/// assert_eq!(site.write(Stub::native(Vendor::Amd)), Written::Changed);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn check_site<M: GuestMemory + ?Sized>(
    memory: &M,
    gpa: GuestAddress,
    keep: Option<Range<u64>>,
) -> Result<Site<'_, BS<'_, M::Bitmap>>, SiteError> {
    let first = gpa.0;
    if first % PAGE_SIZE as u64 > (PAGE_SIZE - LEN) as u64 {
        return Err(SiteError::CrossesPage { gpa: first });
    }
    // In one page, so this can't wrap.
    let last = first + (LEN as u64 - 1);
    if let Some(keep) = keep
        && !keep.is_empty()
        && first < keep.end
        && keep.start <= last
    {
        return Err(SiteError::Overlaps {
            gpa: first,
            start: keep.start,
            end: keep.end,
        });
    }
    resolve(memory, gpa).ok_or_else(|| {
        if memory.check_range(gpa, LEN, Permissions::Read) {
            SiteError::ReadOnly { gpa: first }
        } else {
            SiteError::NotRam { gpa: first }
        }
    })
}

/// The host's view of the four bytes, `None` if any of them is missing.
fn resolve<M: GuestMemory + ?Sized>(
    memory: &M,
    gpa: GuestAddress,
) -> Option<Site<'_, BS<'_, M::Bitmap>>> {
    let mut site = Site {
        gpa,
        parts: [const { None }; LEN],
    };
    let mut len = 0;
    for part in memory.get_slices(gpa, LEN, Permissions::ReadWrite).ok()? {
        let part = part.ok()?;
        if part.is_empty() {
            continue;
        }
        len += part.len();
        *site.parts.iter_mut().find(|slot| slot.is_none())? = Some(part);
    }
    (len == LEN).then_some(site)
}

/// Four bytes of guest memory that can hold a stub, from [`check_site`].
#[derive(Debug)]
pub struct Site<'a, B: BitmapSlice> {
    gpa: GuestAddress,
    /// One slice per region, none of them empty, 4 bytes in total.
    parts: [Option<VolatileSlice<'a, B>>; LEN],
}

impl<B: BitmapSlice> Site<'_, B> {
    /// The site's guest-physical address.
    pub fn gpa(&self) -> GuestAddress {
        self.gpa
    }

    /// The current bytes. The guest may change them at any time.
    pub fn bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let mut at = 0;
        for part in self.parts.iter().flatten() {
            at += part.copy_to(&mut bytes[at..]);
        }
        bytes
    }

    /// The stub that is there now, if the bytes are one.
    pub fn stub(&self) -> Option<Stub> {
        Stub::identify(&self.bytes())
    }

    /// Writes the stub as the [module](self) describes. It can't fail.
    pub fn write(&self, stub: Stub) -> Written {
        let (old, new) = (self.bytes(), stub.bytes());
        if old == new {
            return Written::Unchanged;
        }
        if !self.store_whole(new) {
            self.store_bytes(old, new);
        }
        Written::Changed
    }

    /// One 32-bit store, if the site is one slice and aligned on the host. Otherwise stores nothing
    /// and returns `false`.
    fn store_whole(&self, new: [u8; LEN]) -> bool {
        match &self.parts {
            [Some(whole), None, ..] => whole
                .store(u32::from_ne_bytes(new), 0, Ordering::Release)
                .is_ok(),
            _ => false,
        }
    }

    /// Stores the bytes that differ, the last first. Volatile stores keep this order.
    fn store_bytes(&self, old: [u8; LEN], new: [u8; LEN]) {
        let mut end = LEN;
        for part in self.parts.iter().flatten().rev() {
            let start = end.saturating_sub(part.len());
            for at in (start..end).rev() {
                if old[at] != new[at]
                    && let Ok(byte) = part.offset(at - start)
                {
                    byte.copy_from(&new[at..=at]);
                }
            }
            end = start;
        }
    }
}

/// What a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The stub was written.
    Changed,
    /// The stub was already there. Nothing was stored or marked dirty.
    Unchanged,
}

/// Why a stub can't be written at a site. The guest chose the address, so for a VMM this is an outcome
/// (`-KVM_EINVAL` in the 2007 ABI) and not a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SiteError {
    /// The four bytes are in two pages. Checked first.
    CrossesPage {
        /// Guest-physical address of the site.
        gpa: u64,
    },
    /// The four bytes overlap the range to keep. Checked second.
    Overlaps {
        /// Guest-physical address of the site.
        gpa: u64,
        /// First address to keep.
        start: u64,
        /// First address after those to keep.
        end: u64,
    },
    /// At least one of the four bytes isn't RAM.
    NotRam {
        /// Guest-physical address of the site.
        gpa: u64,
    },
    /// The memory there can be read but not written.
    ReadOnly {
        /// Guest-physical address of the site.
        gpa: u64,
    },
}

impl SiteError {
    /// Guest-physical address of the refused site.
    pub const fn gpa(&self) -> GuestAddress {
        match *self {
            Self::CrossesPage { gpa }
            | Self::Overlaps { gpa, .. }
            | Self::NotRam { gpa }
            | Self::ReadOnly { gpa } => GuestAddress(gpa),
        }
    }
}

impl fmt::Display for SiteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::CrossesPage { gpa } => write!(
                f,
                "a hypercall stub at guest address {gpa:#x} would cross a page; the guest must place its four \
                 bytes in one, best 4-aligned"
            ),
            Self::Overlaps { gpa, start, end } => write!(
                f,
                "a hypercall stub at guest address {gpa:#x} would overwrite {start:#x}..{end:#x}, which belongs \
                 to its registration; the guest must place it elsewhere"
            ),
            Self::NotRam { gpa } => write!(
                f,
                "a hypercall stub at guest address {gpa:#x} would not lie in RAM; the guest must pass the \
                 physical address of RAM"
            ),
            Self::ReadOnly { gpa } => write!(
                f,
                "a hypercall stub at guest address {gpa:#x} would lie in read-only memory; the guest must pass \
                 the physical address of RAM that it can write"
            ),
        }
    }
}

impl core::error::Error for SiteError {}
