// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory: where it lies, how it is had from the host, and the map that the guest is given.

mod aligned;

use std::fmt;
use std::fs;
use std::sync::OnceLock;

use vm_memory::mmap::FromRangesError;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

pub use self::aligned::prefer_huge_pages;
use crate::config::{MemoryError, check_memory};
use crate::layout::{
    ACPI_TABLES, ACPI_TABLES_SIZE, GIB, HIGH_RAM, HOLE_END, HOLE_START, KIB, KVM_IDENTITY_MAP,
    KVM_TSS, LOW_RAM_END, MIB, PAGE_SIZE,
};
pub use crate::sys::mapped_vm::{MappedVm, SlotError, create_vm};

/// Every x86-64 processor addresses at least this many bits of physical memory.
const LEAST_PHYSICAL_BITS: u32 = 36;

/// Why the machine can't have its memory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No machine can have it.
    #[error(transparent)]
    Size(#[from] MemoryError),
    /// More RAM was asked for than the host's processor can address.
    #[error("{} of memory is too much; ask for {} or less", Size(*asked), Size(*most))]
    TooLarge {
        /// Bytes that were asked for.
        asked: u64,
        /// The most bytes that can be had.
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
        /// Bytes that the host says are available, if it was asked and says it.
        available: Option<u64>,
        /// What was refused.
        reason: FromRangesError,
    },
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

/// Where `ram` bytes of RAM lie: from 0 up to the hole below 4 GiB, the rest from 4 GiB.
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
/// [`Error`] when the size can't be had; the message says what can.
pub fn allocate(ram: u64) -> Result<GuestMemoryMmap, Error> {
    allocate_or_tell(ram, available)
}

/// As [`allocate`], for a process that reads no file late: where the host has not enough, the error does not say how much
/// there is.
pub(crate) fn allocate_sealed(ram: u64) -> Result<GuestMemoryMmap, Error> {
    allocate_or_tell(ram, || None)
}

fn allocate_or_tell(
    ram: u64,
    available: impl FnOnce() -> Option<u64>,
) -> Result<GuestMemoryMmap, Error> {
    check_size(ram, physical_bits)?;
    aligned::from_ranges(&regions(ram)).map_err(|reason| Error::Host {
        asked: ram,
        available: available(),
        reason,
    })
}

/// Whether a machine may have `ram` bytes on a processor with `bits()` bits of physical address.
fn check_size(ram: u64, bits: impl Fn() -> u32) -> Result<(), Error> {
    check_memory(ram)?;
    // The processor is asked only where the answer matters.
    let reach = |bits: u32| (1u64 << bits.min(63)) - (HOLE_END - HOLE_START);
    if ram > reach(LEAST_PHYSICAL_BITS) {
        let most = reach(bits());
        if ram > most {
            return Err(Error::TooLarge { asked: ram, most });
        }
    }
    Ok(())
}

/// The host processor's physical address bits, or the least there can be where it can't be told. Read once: the machine
/// after a reset has as much memory as the one before.
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

/// Bytes of memory that the host can still give, if it says so.
fn available() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.parse::<u64>().ok())
        .map(|kib| kib.saturating_mul(KIB) / MIB * MIB)
}

/// What a range of the guest's memory map is. The numbers are those of E820 and of PVH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    /// RAM.
    Ram = 1,
    /// Not for the operating system.
    Reserved = 2,
    /// RAM that holds ACPI tables.
    Acpi = 3,
}

/// One range of the guest's memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// The guest-physical address where it starts.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// What it is.
    pub kind: MapKind,
}

/// The memory map that the guest is told, by whichever boot protocol; sorted, without overlaps.
///
/// Device windows in the hole are not in it: a driver claims them, and what is reserved can't be claimed.
pub fn memory_map<M: GuestMemoryBackend>(mem: &M) -> Vec<MapEntry> {
    let entry = |start, end: u64, kind| MapEntry {
        start,
        size: end.saturating_sub(start),
        kind,
    };
    let mut map = vec![
        entry(0, LOW_RAM_END, MapKind::Ram),
        entry(LOW_RAM_END, 640 * KIB, MapKind::Reserved),
        entry(ACPI_TABLES, ACPI_TABLES + ACPI_TABLES_SIZE, MapKind::Acpi),
    ];
    for region in mem.iter() {
        let start = region.start_addr().raw_value().max(HIGH_RAM);
        map.push(entry(
            start,
            region.last_addr().raw_value() + 1,
            MapKind::Ram,
        ));
        if region.start_addr().raw_value() == 0 {
            map.push(entry(
                KVM_IDENTITY_MAP,
                KVM_TSS + 3 * PAGE_SIZE,
                MapKind::Reserved,
            ));
        }
    }
    map.retain(|entry| entry.size > 0);
    map
}

/// Where RAM that starts at address 0 ends.
pub fn low_ram_end<M: GuestMemoryBackend>(mem: &M) -> u64 {
    mem.find_region(GuestAddress(0))
        .map_or(0, |region| region.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layout::MIN_RAM;

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
    fn this_host_addresses_at_least_the_least() {
        assert!((LEAST_PHYSICAL_BITS..=57).contains(&physical_bits()));
    }

    proptest! {
        #[test]
        fn map_is_sorted_apart_and_holds_all_ram(pages in (MIN_RAM / PAGE_SIZE)..(9 * GIB / PAGE_SIZE)) {
            let ram = pages * PAGE_SIZE;
            let map = memory_map(&allocate(ram).unwrap());
            for pair in map.windows(2) {
                prop_assert!(pair[0].start + pair[0].size <= pair[1].start);
            }
            let usable: u64 = map.iter().filter(|e| e.kind == MapKind::Ram).map(|e| e.size).sum();
            // All but what lies between conventional memory's end and 1 MiB.
            prop_assert_eq!(usable, ram - (HIGH_RAM - LOW_RAM_END));
            prop_assert!(map.iter().all(|e| e.kind != MapKind::Ram || e.start >= HOLE_END || e.start + e.size <= HOLE_START));
        }
    }
}
