// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stubs in guest memory: sites at every edge, refusals, and dirty pages.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{Guarded, Liar, StoreLog, stores};
use hypercall_patch::memory::{SiteError, Written, check_site, write_stub};
use hypercall_patch::{PioPort, Stub, Vendor};
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

const PIO: Stub = Stub::Pio(PioPort::DEFAULT);
/// What guests reserve for the stub: `mov eax, -38; ret`.
const RESERVED: [u8; 6] = [0xb8, 0xda, 0xff, 0xff, 0xff, 0xc3];

fn ram(ranges: &[(u64, usize)]) -> GuestMemoryMmap<AtomicBitmap> {
    let ranges: Vec<_> = ranges
        .iter()
        .map(|&(base, len)| (GuestAddress(base), len))
        .collect();
    let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
    for region in memory.iter() {
        let fill = vec![0x5a; region.len() as usize];
        memory.write_slice(&fill, region.start_addr()).unwrap();
        region.bitmap_reset();
    }
    memory
}

/// Reaches `AtomicBitmap::reset`, which the region's trait doesn't expose.
trait BitmapReset {
    fn bitmap_reset(&self);
}

impl BitmapReset for vm_memory::GuestRegionMmap<AtomicBitmap> {
    fn bitmap_reset(&self) {
        use std::ops::Deref;
        self.deref().bitmap().reset();
    }
}

/// Every byte of every region, and whether its page is dirty.
fn image(memory: &GuestMemoryMmap<AtomicBitmap>) -> Vec<(u64, u8, bool)> {
    let mut image = Vec::new();
    for region in memory.iter() {
        let start = region.start_addr().0;
        let mut bytes = vec![0; region.len() as usize];
        memory.read_slice(&mut bytes, region.start_addr()).unwrap();
        let bitmap = region.bitmap();
        image.extend(
            (0..)
                .zip(bytes)
                .map(|(at, byte)| (start + at as u64, byte, bitmap.dirty_at(at))),
        );
    }
    image
}

fn bytes_at<const N: usize>(memory: &GuestMemoryMmap<AtomicBitmap>, gpa: u64) -> [u8; N] {
    let mut bytes = [0; N];
    memory.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
    bytes
}

/// Checks that both the check and the write refuse the site with the same error, and change
/// nothing. Returns the error.
fn refused(
    memory: &GuestMemoryMmap<AtomicBitmap>,
    gpa: u64,
    keep: Option<std::ops::Range<u64>>,
) -> SiteError {
    let before = image(memory);
    let error = write_stub(memory, GuestAddress(gpa), Stub::Vmx, keep.clone()).unwrap_err();
    assert_eq!(
        check_site(memory, GuestAddress(gpa), keep).err(),
        Some(error)
    );
    assert_eq!(error.gpa(), GuestAddress(gpa));
    assert!(image(memory) == before, "{error}: yet memory changed");
    error
}

#[test]
fn r9_four_bytes_are_written_and_the_fifth_and_sixth_survive() {
    let memory = ram(&[(0, 0x3000)]);
    for (stub, gpa) in [(Stub::Vmx, 0x1000), (Stub::Svm, 0x1101), (PIO, 0x1202)] {
        memory.write_slice(&RESERVED, GuestAddress(gpa)).unwrap();
        assert_eq!(
            write_stub(&memory, GuestAddress(gpa), stub, None),
            Ok(Written::Changed)
        );
        let found: [u8; 8] = bytes_at(&memory, gpa - 1);
        let [a, b, c, d] = stub.bytes();
        assert_eq!(found, [0x5a, a, b, c, d, 0xff, 0xc3, 0x5a]);
    }
}

#[test]
fn r11_a_stub_that_every_vcpu_registers_is_written_once() {
    let memory = ram(&[(0, 0x2000)]);
    assert_eq!(
        write_stub(&memory, GuestAddress(0x1004), PIO, None),
        Ok(Written::Changed)
    );
    let before = image(&memory);
    for _ in 0..3 {
        assert_eq!(
            write_stub(&memory, GuestAddress(0x1004), PIO, None),
            Ok(Written::Unchanged)
        );
    }
    assert!(image(&memory) == before);
}

#[test]
fn h1_a_site_that_crosses_a_page_is_refused() {
    // In the middle of RAM, at the end of RAM, and where two regions meet.
    let memory = ram(&[(0x1000, 0x2000), (0x3000, 0x1000)]);
    for page in [0x1000, 0x2000, 0x3000] {
        for offset in 0xffd..=0xfff {
            assert_eq!(
                refused(&memory, page + offset, None),
                SiteError::CrossesPage { gpa: page + offset }
            );
        }
        let last = page + 0xffc;
        assert_eq!(
            write_stub(&memory, GuestAddress(last), Stub::Vmx, None),
            Ok(Written::Changed)
        );
        assert_eq!(bytes_at(&memory, last), Stub::Vmx.bytes());
    }
}

#[test]
fn h1_a_site_that_is_ram_in_part_is_refused_without_a_partial_write() {
    // RAM that ends and starts in the middle of a page.
    let memory = ram(&[(0x1000, 0x802), (0x1901, 0x100)]);
    for gpa in [
        0x1000 - 4,
        0x17ff,
        0x1800,
        0x1801,
        0x1802,
        0x18fd,
        0x18fe,
        0x18ff,
        0x1900,
        0x19fe,
        0x5000,
    ] {
        assert_eq!(
            refused(&memory, gpa, None),
            SiteError::NotRam { gpa },
            "{gpa:#x}"
        );
    }
    for gpa in [0x1000, 0x17fe, 0x1901, 0x19fd] {
        assert_eq!(
            write_stub(&memory, GuestAddress(gpa), PIO, None),
            Ok(Written::Changed),
            "{gpa:#x}"
        );
        assert_eq!(bytes_at(&memory, gpa), PIO.bytes());
    }
}

#[test]
fn h1_a_site_may_lie_in_several_regions_of_one_page() {
    // Regions of 1, 2 and 1 bytes, then the rest of the page.
    let memory = ram(&[
        (0x1000, 0x800),
        (0x1800, 1),
        (0x1801, 2),
        (0x1803, 1),
        (0x1804, 0x7fc),
    ]);
    for gpa in 0x17fc..=0x1805 {
        for stub in [Stub::Vmx, PIO] {
            assert_eq!(
                write_stub(&memory, GuestAddress(gpa), stub, None),
                Ok(Written::Changed),
                "{gpa:#x}"
            );
            assert_eq!(bytes_at(&memory, gpa), stub.bytes(), "{gpa:#x}");
            let site = check_site(&memory, GuestAddress(gpa), None).unwrap();
            assert_eq!((site.gpa(), site.stub()), (GuestAddress(gpa), Some(stub)));
        }
        memory.write_slice(&[0x5a; 4], GuestAddress(gpa)).unwrap();
    }
    let fresh = ram(&[(0x1000, 0x1000)]);
    assert_eq!(
        bytes_at::<0x1000>(&memory, 0x1000),
        bytes_at::<0x1000>(&fresh, 0x1000)
    );
}

#[test]
fn h3_a_write_marks_its_page_dirty_and_no_other() {
    for gpa in [0x1000, 0x1ffc, 0x1235] {
        let memory = ram(&[(0, 0x4000)]);
        assert!(image(&memory).iter().all(|&(.., dirty)| !dirty));
        write_stub(&memory, GuestAddress(gpa), Stub::Svm, None).unwrap();
        for (at, _, dirty) in image(&memory) {
            assert_eq!(dirty, at / 0x1000 == 1, "{at:#x}");
        }
    }
}

#[test]
fn h3_a_site_in_two_regions_marks_both() {
    let memory = ram(&[(0x1000, 0x802), (0x1802, 0x1000)]);
    write_stub(&memory, GuestAddress(0x1800), Stub::Svm, None).unwrap();
    let dirty: Vec<_> = memory
        .iter()
        .map(|region| region.bitmap().dirty_at(0))
        .collect();
    assert_eq!(dirty, [true, true]);
}

#[test]
fn h3_bytes_that_are_there_already_make_nothing_dirty() {
    let memory = ram(&[(0, 0x2000)]);
    memory
        .write_slice(&Stub::Vmx.bytes(), GuestAddress(0x1001))
        .unwrap();
    memory.iter().for_each(BitmapReset::bitmap_reset);
    assert_eq!(
        write_stub(&memory, GuestAddress(0x1001), Stub::Vmx, None),
        Ok(Written::Unchanged)
    );
    assert!(image(&memory).iter().all(|&(.., dirty)| !dirty));
}

#[test]
fn h6_a_restored_stub_is_patched_for_another_vendor() {
    let memory = ram(&[(0, 0x2000)]);
    let gpa = GuestAddress(0x1010);
    write_stub(&memory, gpa, Stub::native(Vendor::Intel), None).unwrap();
    let site = check_site(&memory, gpa, None).unwrap();
    assert_eq!(site.stub(), Some(Stub::Vmx));
    assert_eq!(site.write(Stub::native(Vendor::Hygon)), Written::Changed);
    assert_eq!(
        (site.stub(), site.bytes()),
        (Some(Stub::Svm), [0x0f, 0x01, 0xd9, 0xc3])
    );
}

#[test]
fn h8_an_aligned_site_is_one_store_of_four_bytes() {
    let memory = GuestMemoryMmap::<StoreLog>::from_ranges(&[(GuestAddress(0), 0x3000)]).unwrap();
    for gpa in [0x1000, 0x1234, 0x1ffc] {
        write_stub(&memory, GuestAddress(gpa), Stub::Vmx, None).unwrap();
        assert_eq!(stores(&memory), [(gpa as usize, 4)]);
        // Only one byte differs, but it is still one store.
        write_stub(&memory, GuestAddress(gpa), Stub::Svm, None).unwrap();
        assert_eq!(stores(&memory), [(gpa as usize, 4)]);
        write_stub(&memory, GuestAddress(gpa), Stub::Svm, None).unwrap();
        assert_eq!(stores(&memory), []);
    }
}

#[test]
fn h8_another_site_is_stored_from_its_last_byte_to_its_first() {
    let memory = GuestMemoryMmap::<StoreLog>::from_ranges(&[(GuestAddress(0), 0x3000)]).unwrap();
    for gpa in [0x1001_usize, 0x1102, 0x1203] {
        let site = GuestAddress(gpa as u64);
        write_stub(&memory, site, Stub::Vmx, None).unwrap();
        assert_eq!(
            stores(&memory),
            [(gpa + 3, 1), (gpa + 2, 1), (gpa + 1, 1), (gpa, 1)]
        );
        write_stub(&memory, site, Stub::Svm, None).unwrap();
        assert_eq!(
            stores(&memory),
            [(gpa + 2, 1)],
            "c1 becomes d9, the rest stays"
        );
        write_stub(&memory, site, PIO, None).unwrap();
        assert_eq!(stores(&memory).len(), 4);
    }
}

#[test]
fn h8_a_vcpu_never_sees_half_of_an_aligned_stub() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
    let gpa = GuestAddress(0x1008);
    write_stub(&memory, gpa, Stub::Vmx, None).unwrap();
    let (done, start) = (AtomicBool::new(false), Barrier::new(2));
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            start.wait();
            let mut seen = 0_u64;
            while !done.load(Ordering::Relaxed) || seen == 0 {
                let word: u32 = memory.load(gpa, Ordering::Acquire).unwrap();
                let stub = Stub::identify(&word.to_ne_bytes());
                assert!(matches!(stub, Some(Stub::Vmx | PIO)), "{word:#x}");
                seen += 1;
            }
        });
        start.wait();
        for _ in 0..50_000 {
            write_stub(&memory, gpa, PIO, None).unwrap();
            write_stub(&memory, gpa, Stub::Vmx, None).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
}

#[test]
fn h9_a_site_that_overlaps_the_kept_bytes_is_refused() {
    let memory = ram(&[(0, 0x4000)]);
    let para = 0x2000_u64;
    for gpa in para - 8..para + 40 {
        let keep = para..para + 24;
        let overlaps = (gpa..gpa + 4).any(|byte| keep.contains(&byte));
        if (0xffd..=0xfff).contains(&(gpa % 0x1000)) {
            assert_eq!(
                refused(&memory, gpa, Some(keep)),
                SiteError::CrossesPage { gpa }
            );
        } else if overlaps {
            assert_eq!(
                refused(&memory, gpa, Some(keep)),
                SiteError::Overlaps {
                    gpa,
                    start: para,
                    end: para + 24
                }
            );
        } else {
            assert!(
                check_site(&memory, GuestAddress(gpa), Some(keep)).is_ok(),
                "{gpa:#x}"
            );
        }
    }
}

#[test]
fn h9_an_empty_range_keeps_nothing() {
    let memory = ram(&[(0, 0x4000)]);
    #[allow(clippy::reversed_empty_ranges)]
    for keep in [0x1001..0x1001, 0x1004..0x1000, u64::MAX..0] {
        assert!(check_site(&memory, GuestAddress(0x1000), Some(keep)).is_ok());
    }
}

#[test]
fn h10_memory_that_grants_no_write_is_read_only() {
    let memory = Guarded {
        memory: ram(&[(0, 0x3000)]),
        read_only: 0x1802..0x2000,
        private: 0x2000..0x2100,
    };
    let before = image(&memory.memory);
    for (gpa, error) in [
        (0x1800, SiteError::ReadOnly { gpa: 0x1800 }),
        (0x1ffc, SiteError::ReadOnly { gpa: 0x1ffc }),
        (0x2000, SiteError::NotRam { gpa: 0x2000 }),
        (0x20fd, SiteError::NotRam { gpa: 0x20fd }),
    ] {
        assert_eq!(
            write_stub(&memory, GuestAddress(gpa), PIO, None),
            Err(error)
        );
    }
    assert!(image(&memory.memory) == before);
    for gpa in [0x17fe, 0x2100] {
        assert_eq!(
            write_stub(&memory, GuestAddress(gpa), PIO, None),
            Ok(Written::Changed)
        );
    }
}

#[test]
fn memory_that_breaks_its_contract_causes_no_partial_write() {
    // One byte per region, so that too many bytes are also too many slices.
    let ranges: Vec<_> = (0..8).map(|at| (0x1000 + at, 1)).collect();
    for (ranges, len) in [
        (vec![(0x1000, 8)], 0),
        (vec![(0x1000, 8)], 3),
        (vec![(0x1000, 8)], 5),
        (ranges, 8),
    ] {
        let memory = Liar {
            memory: ram(&ranges),
            len,
        };
        let before = image(&memory.memory);
        let written = write_stub(&memory, GuestAddress(0x1000), PIO, None);
        assert_eq!(
            written,
            Err(SiteError::NotRam { gpa: 0x1000 }),
            "{len} bytes"
        );
        assert!(image(&memory.memory) == before);
    }
}

#[test]
fn h13_addresses_near_the_top_fail_and_do_not_wrap() {
    // RAM at 0, where a wrapped store would land, and at the top, up to the last address but one.
    let top = u64::MAX - 0xffff;
    let memory = ram(&[(0, 0x1000), (top, 0xffff)]);
    for gpa in [u64::MAX - 2, u64::MAX - 1, u64::MAX] {
        assert_eq!(refused(&memory, gpa, None), SiteError::CrossesPage { gpa });
    }
    // Its last byte is at the highest address, which no region can contain.
    let gpa = u64::MAX - 3;
    assert_eq!(refused(&memory, gpa, None), SiteError::NotRam { gpa });
    assert_eq!(
        refused(&memory, gpa, Some(u64::MAX - 1..u64::MAX)),
        SiteError::Overlaps {
            gpa,
            start: u64::MAX - 1,
            end: u64::MAX
        }
    );
    for gpa in [1 << 63, 0x000f_ffff_ffff_f000, 0xffff_ffff_0000_0000] {
        assert_eq!(refused(&memory, gpa, None), SiteError::NotRam { gpa });
    }
    for gpa in [u64::MAX - 7, u64::MAX - 4] {
        assert_eq!(
            write_stub(&memory, GuestAddress(gpa), PIO, None),
            Ok(Written::Changed)
        );
        assert_eq!(bytes_at(&memory, gpa), PIO.bytes());
    }
}

#[test]
fn h13_ram_above_4_gib_is_no_different() {
    let memory = ram(&[(0, 0x1000), (0x1_0000_0000, 0x2000)]);
    let gpa = 0x1_0000_1004;
    assert_eq!(
        write_stub(&memory, GuestAddress(gpa), Stub::Svm, None),
        Ok(Written::Changed)
    );
    assert_eq!(bytes_at(&memory, gpa), Stub::Svm.bytes());
    assert_eq!(
        refused(&memory, 0x1_0000_2000, None),
        SiteError::NotRam { gpa: 0x1_0000_2000 }
    );
}

#[test]
fn refusals_are_one_sentence_with_the_address_and_the_next_step() {
    let gpa = 0xfeed_0000;
    for error in [
        SiteError::CrossesPage { gpa },
        SiteError::Overlaps {
            gpa,
            start: 0xfeec_0000,
            end: 0xfeef_0000,
        },
        SiteError::NotRam { gpa },
        SiteError::ReadOnly { gpa },
    ] {
        let text = error.to_string();
        assert!(
            text.contains("0xfeed0000") && text.contains("; the guest must "),
            "{text}"
        );
        assert!(
            !text.contains('\n') && !text.contains(". ") && !text.ends_with('.'),
            "{text}"
        );
    }
}
