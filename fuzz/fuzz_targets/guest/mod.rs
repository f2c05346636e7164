// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A small guest memory, with a copy of its former bytes.

use hypercall_patch::{PioPort, Stub};
use para_msr::para::ParaRegistration;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Two regions that touch and one apart that ends within a page: (address, bytes).
const REGIONS: [(u64, usize); 3] = [(0, 0x2000), (0x2000, 0x2000), (0x5000, 0x1800)];
/// The end of the last region.
const END: usize = 0x6800;

pub const STUBS: [Stub; 3] = [Stub::Vmx, Stub::Svm, Stub::Pio(PioPort::DEFAULT)];

/// All bytes by address; 0 outside of the memory.
pub type Image = Box<[u8; END]>;

pub fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&REGIONS.map(|(start, size)| (GuestAddress(start), size)))
        .expect("a few pages of memory")
}

pub fn clear(memory: &GuestMemoryMmap) {
    for (start, size) in REGIONS {
        memory
            .write_slice(&vec![0; size], GuestAddress(start))
            .expect("in RAM");
    }
}

pub fn image(memory: &GuestMemoryMmap) -> Image {
    let mut image = Box::new([0; END]);
    for (start, size) in REGIONS {
        let bytes = &mut image[start as usize..start as usize + size];
        memory
            .read_slice(bytes, GuestAddress(start))
            .expect("in RAM");
    }
    image
}

/// Checks that nothing changed outside of these ranges.
pub fn assert_only(before: &Image, after: &Image, allowed: &[std::ops::Range<u64>]) {
    if before == after {
        return;
    }
    for at in (0..END).filter(|at| before[*at] != after[*at]) {
        let allowed = allowed.iter().any(|range| range.contains(&(at as u64)));
        assert!(allowed, "the byte at {at:#x} has changed");
    }
}

/// The bytes at a site, all of which must be in RAM.
pub fn site(image: &Image, gpa: u64) -> [u8; 4] {
    let at = gpa as usize;
    image[at..at + 4].try_into().expect("four bytes")
}

/// Checks what must be true of any registration.
pub fn assert_sane(registration: &ParaRegistration) {
    let ParaRegistration {
        para_state_gpa: page,
        hypercall_gpa: site,
        ..
    } = *registration;
    let in_ram = |gpa: u64, size: u64| {
        REGIONS
            .iter()
            .any(|(start, len)| *start <= gpa && gpa + size <= start + *len as u64)
    };
    assert!(page % 4096 == 0 && in_ram(page, 24));
    assert!(site % 4096 <= 4092 && in_ram(site, 4));
    assert!(site + 4 <= page || page + 24 <= site);
}
