// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory: its addresses, its allocation on the host, and the guest's memory map.

mod map;
mod page_set;
mod returned;
mod served;
mod shared;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::sync::{Arc, OnceLock};

use libc::{
    MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE,
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vm_memory::mmap::{FromRangesError, MmapRegionError};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionCollectionError, GuestRegionMmap, MmapRegion,
};

pub use self::map::{MapEntry, MapKind, low_ram_end, memory_map};
pub use self::returned::Returned;
#[cfg(any(test, feature = "test-utils"))]
pub use self::served::handler;
pub use self::served::{Served, ServedError};
pub use self::shared::{SharedMemory, SharedMemoryError};
use crate::config::{MemoryError, check_memory};
use crate::layout::{GIB, HOLE_END, HOLE_START, KIB, MIB};
use crate::sys::huge_pages::{HUGE_PAGE, Pages, advise};
pub use crate::sys::mapped_vm::{MappedVm, SlotError, create_vm};

/// Every x86-64 processor addresses at least this many bits of physical memory.
const LEAST_PHYSICAL_BITS: u32 = 36;

/// Why the machine's memory can't be allocated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No machine can have this size.
    #[error(transparent)]
    Size(#[from] MemoryError),
    /// More RAM was asked for than the host's processor can address.
    #[error("{} of memory is too much; ask for {} or less", Size(*asked), Size(*most))]
    TooLarge {
        /// Bytes that were asked for.
        asked: u64,
        /// The most bytes that are possible.
        most: u64,
    },
    /// The host refused the mapping.
    #[error(
        "the host does not map {} of memory ({reason}); ask for less{}, or raise its limits (ulimit -v, \
         vm.overcommit_memory)",
        Size(*asked),
        available.map_or_else(String::new, |bytes| format!(" than the {} that it has available", Size(bytes)))
    )]
    Host {
        /// Bytes that were asked for.
        asked: u64,
        /// Bytes that the host reports as available, if it was asked and reports them.
        available: Option<u64>,
        /// The error of the mapping.
        reason: FromRangesError,
    },
    /// The host refused to map shared memory.
    #[error("the host does not map {} of shared memory ({reason}); share less, or raise its limits (ulimit -v)", Size(*size))]
    Shared {
        /// Its size in bytes.
        size: u64,
        /// The error of the mapping.
        reason: MmapRegionError,
    },
    /// Shared memory is where the host's processor has no addresses.
    #[error(
        "the shared memory would end at {end:#x}, which this processor can't address; share less, or give the machine less memory"
    )]
    SharedTooHigh {
        /// The guest-physical address after it.
        end: u64,
    },
    /// No other process brings its pages.
    #[error(transparent)]
    Served(#[from] ServedError),
    /// KVM refused a memory slot.
    #[error(
        "KVM refused {} of memory at guest address {:#x} ({}); ask for less memory",
        Size(.0.size),
        .0.start,
        .0.reason
    )]
    Slot(SlotError),
}

impl From<SlotError> for Error {
    fn from(refused: SlotError) -> Self {
        Error::Slot(refused)
    }
}

/// Prints a number of bytes in the largest unit that keeps it whole.
///
/// # Example
/// ```
/// use mini_vmm::memory::Size;
/// assert_eq!(Size(512 << 20).to_string(), "512 MiB");
/// assert_eq!(Size(4 << 30).to_string(), "4 GiB");
/// assert_eq!(Size(4097).to_string(), "4097 bytes");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            size if size >= GIB && size % GIB == 0 => write!(f, "{} GiB", size / GIB),
            size if size >= MIB && size % MIB == 0 => write!(f, "{} MiB", size / MIB),
            size if size >= KIB && size % KIB == 0 => write!(f, "{} KiB", size / KIB),
            size => write!(f, "{size} bytes"),
        }
    }
}

/// The ranges of `ram` bytes of RAM: from 0 up to the hole below 4 GiB, the rest from 4 GiB.
///
/// # Example
/// ```
/// use mini_vmm::memory::regions;
/// assert_eq!(regions(2 << 30).len(), 1);
/// let above = regions(5 << 30)[1];
/// assert_eq!((above.0.0, above.1), (4 << 30, 2 << 30));
/// ```
pub fn regions(ram: u64) -> Vec<(GuestAddress, usize)> {
    let low = ram.min(HOLE_START);
    let mut regions = vec![(GuestAddress(0), low as usize)];
    if ram > low {
        regions.push((GuestAddress(HOLE_END), (ram - low) as usize));
    }
    regions
}

/// Maps `ram` bytes of guest memory. They read as zero, and the host neither reserves nor touches them yet. They are
/// aligned for the host's huge pages. The first 2 MiB always have small pages.
///
/// # Errors
/// [`Error`] when memory of this size can't be allocated. The message says what size is possible.
pub fn allocate(ram: u64) -> Result<GuestMemoryMmap, Error> {
    allocate_or_tell(ram, available)
}

/// Like [`allocate`], for a process that must open no file late. If the host has too little memory, the error doesn't
/// say how much there is.
pub(crate) fn allocate_sealed(ram: u64) -> Result<GuestMemoryMmap, Error> {
    allocate_or_tell(ram, || None)
}

fn allocate_or_tell(
    ram: u64,
    available: impl FnOnce() -> Option<u64>,
) -> Result<GuestMemoryMmap, Error> {
    check_size(ram, physical_bits)?;
    from_ranges(&regions(ram)).map_err(|reason| Error::Host {
        asked: ram,
        available: available(),
        reason,
    })
}

/// Maps the first `ram` bytes of `file` as guest memory. Nothing is read yet, and what the guest writes stays in this
/// process.
///
/// The file must not become shorter while it is mapped: the host ends a process that touches what is gone (SIGBUS).
///
/// # Errors
/// As [`allocate`].
pub fn map(file: File, ram: u64) -> Result<GuestMemoryMmap, Error> {
    check_size(ram, physical_bits)?;
    map_file(&Arc::new(file), ram, MAP_PRIVATE).map_err(|reason| Error::Host {
        asked: ram,
        available: available(),
        reason,
    })
}

/// Like [`allocate`], for a machine with devices that other processes serve: the memory is a file that they map, too. It
/// keeps its size, so that none of them can take memory away.
///
/// If `sealed`, no other file is opened, as by [`allocate_sealed`].
///
/// # Errors
/// As [`allocate`].
pub(crate) fn allocate_shared(ram: u64, sealed: bool) -> Result<GuestMemoryMmap, Error> {
    check_size(ram, physical_bits)?;
    let mapped = sealed_file(ram).map_err(|error| MmapRegionError::Mmap(error).into());
    let mapped = mapped.and_then(|file| map_file(&Arc::new(file), ram, MAP_SHARED));
    mapped.map_err(|reason| Error::Host {
        asked: ram,
        available: (!sealed).then(available).flatten(),
        reason,
    })
}

/// A file in memory of this size, which it keeps.
fn sealed_file(size: u64) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("guest memory", flags)?);
    file.set_len(size)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    Ok(file)
}

fn map_file(file: &Arc<File>, ram: u64, kind: i32) -> Result<GuestMemoryMmap, FromRangesError> {
    let mut offset = 0;
    let mut mapped = Vec::new();
    for (start, size) in regions(ram) {
        let part = FileOffset::from_arc(Arc::clone(file), offset);
        let flags = kind | MAP_NORESERVE;
        let memory = MmapRegion::build(Some(part), size, PROT_READ | PROT_WRITE, flags)?;
        let region = GuestRegionMmap::new(memory, start);
        mapped.push(region.ok_or(GuestRegionCollectionError::NoMemoryRegion)?);
        offset += size as u64;
    }
    Ok(GuestMemoryMmap::from_regions(mapped)?)
}

/// Maps anonymous memory at the given ranges, aligned to the huge pages of host and guest. KVM maps 2 MiB at once only
/// if guest-physical and host address agree in their lower 21 bits, else the same takes 512 faults. The kernel alone
/// would place a mapping at any page.
fn from_ranges(ranges: &[(GuestAddress, usize)]) -> Result<GuestMemoryMmap, FromRangesError> {
    let mut regions = Vec::with_capacity(ranges.len());
    for (start, size) in ranges {
        let memory = map_aligned(*size)?;
        advise(&memory, 0..small(*start), Pages::Small);
        let region = GuestRegionMmap::new(memory, *start);
        regions.push(region.ok_or(GuestRegionCollectionError::NoMemoryRegion)?);
    }
    Ok(GuestMemoryMmap::from_regions(regions)?)
}

/// Lets the host use huge pages for `memory` from now on, if its setting is `madvise`
/// (`/sys/kernel/mm/transparent_hugepage/enabled`). Touched memory keeps its small pages until khugepaged, the host's
/// thread that merges pages, replaces them. The first 2 MiB keep them for good.
pub fn prefer_huge_pages(memory: &GuestMemoryMmap) {
    for region in memory.iter() {
        let from = small(region.start_addr());
        advise(region, from..region.size(), Pages::Huge);
    }
}

/// The bytes of a region that have small pages on any host. A guest uses little of its first 2 MiB, mostly tables that
/// are written before it starts. That is not worth clearing a huge page.
fn small(start: GuestAddress) -> usize {
    match start {
        GuestAddress(0) => HUGE_PAGE,
        _ => 0,
    }
}

/// How many placements are tried. A process has fewer gaps in which guest memory fits.
const TRIES: usize = 8;

/// Maps `size` bytes, aligned to a huge page unless other threads map or unmap memory meanwhile.
///
/// Linux places mappings from the top of a gap down. A misaligned mapping is kept until this function returns, with a
/// filler below it, so that the next try is aligned in the same gap. If the gap is too small, the next try uses the
/// next gap.
fn map_aligned(size: usize) -> Result<MmapRegion, MmapRegionError> {
    let flags = MAP_ANONYMOUS | MAP_PRIVATE | MAP_NORESERVE;
    let mut kept = Vec::with_capacity(2 * TRIES);
    for _ in 0..TRIES {
        let region = MmapRegion::new(size)?;
        let start = region.as_ptr() as usize;
        if start.is_multiple_of(HUGE_PAGE) {
            return Ok(region);
        }
        kept.push(region);
        // As large as the memory, so that it doesn't land in a smaller gap.
        let filler = size.next_multiple_of(HUGE_PAGE) + start.wrapping_sub(size) % HUGE_PAGE;
        // If the address space is limited, the guest gets small pages instead of an error.
        let Ok(filler) = MmapRegion::build(None, filler, PROT_NONE, flags) else {
            break;
        };
        kept.push(filler);
    }
    drop(kept);
    MmapRegion::new(size)
}

/// Checks that a machine can have `ram` bytes on a processor with `bits()` physical address bits.
fn check_size(ram: u64, bits: impl Fn() -> u32) -> Result<(), Error> {
    check_memory(ram)?;
    // The processor is asked only if the answer matters.
    let reach = |bits: u32| (1u64 << bits.min(63)) - (HOLE_END - HOLE_START);
    if ram > reach(LEAST_PHYSICAL_BITS) {
        let most = reach(bits());
        if ram > most {
            return Err(Error::TooLarge { asked: ram, most });
        }
    }
    Ok(())
}

/// The host processor's physical address bits, or the minimum of x86-64 if unknown. Read once: after a reset the
/// machine has as much memory as before.
fn physical_bits() -> u32 {
    static BITS: OnceLock<u32> = OnceLock::new();
    *BITS.get_or_init(read_physical_bits)
}

fn read_physical_bits() -> u32 {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("address sizes"))
        .and_then(|line| line.trim_start_matches([' ', '\t', ':']).split(' ').next())
        .and_then(|bits| bits.parse().ok())
        .unwrap_or(LEAST_PHYSICAL_BITS)
}

/// Bytes of memory that the host can still provide, if it reports them.
fn available() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.parse::<u64>().ok())
        .map(|kib| kib.saturating_mul(KIB) / MIB * MIB)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::Bytes;

    use super::*;
    use crate::layout::{MIN_RAM, PAGE_SIZE};

    #[test]
    fn ram_leaves_the_hole_free() {
        let at = |ram| {
            regions(ram)
                .iter()
                .map(|(start, len)| (start.0, *len as u64))
                .collect::<Vec<_>>()
        };
        assert_eq!(at(MIN_RAM), [(0, MIN_RAM)]);
        assert_eq!(at(3 * GIB), [(0, 3 * GIB)]);
        assert_eq!(
            at(3 * GIB + PAGE_SIZE),
            [(0, 3 * GIB), (4 * GIB, PAGE_SIZE)]
        );
        assert_eq!(at(6 * GIB), [(0, 3 * GIB), (4 * GIB, 3 * GIB)]);
    }

    #[test]
    fn absurd_sizes_say_what_would_do() {
        let message = |ram, bits: u32| match check_size(ram, || bits) {
            Ok(()) => "fits".to_owned(),
            Err(e) => e.to_string(),
        };
        assert_eq!(
            message(0, 48),
            "0 bytes of memory is less than the 32M that a machine needs; give it more"
        );
        assert_eq!(
            message(MIN_RAM - 1, 48),
            "33554431 bytes of memory is less than the 32M that a machine needs; give it more"
        );
        assert_eq!(message(MIN_RAM, 48), "fits");
        assert_eq!(
            message(u64::MAX, 48),
            "18446744073709551615 bytes of memory is more than a machine can have; give it at most 1T"
        );
        assert_eq!(
            message(512 * GIB, 39),
            "512 GiB of memory is too much; ask for 511 GiB or less"
        );
        assert_eq!(message(511 * GIB, 39), "fits");
        assert_eq!(
            message(MIN_RAM + 1, 48),
            "33554433 bytes of memory is not a multiple of the 4K page; the nearest size is 32M"
        );
    }

    #[test]
    fn shared_memory_is_a_file_that_keeps_its_size() {
        let memory = allocate_shared(4 * GIB, false).unwrap();
        let mut end = 0;
        for region in memory.iter() {
            let part = region.file_offset().unwrap();
            assert_eq!(part.start(), end);
            end += region.len();
            part.file().set_len(0).unwrap_err();
            part.file().set_len(5 * GIB).unwrap_err();
        }
        assert_eq!((end, memory.num_regions()), (4 * GIB, 2));
        // Other mappings of the file have what is written.
        memory.write_obj(7_u8, GuestAddress(HOLE_END + 5)).unwrap();
        let region = memory.find_region(GuestAddress(HOLE_END)).unwrap();
        let part = region.file_offset().unwrap();
        let mut byte = [0];
        part.file()
            .read_exact_at(&mut byte, part.start() + 5)
            .unwrap();
        assert_eq!(byte, [7]);
    }

    #[test]
    fn this_host_addresses_at_least_the_least() {
        assert!((LEAST_PHYSICAL_BITS..=57).contains(&physical_bits()));
    }
}
