// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Times patching (`cargo bench -p hypercall-patch --features vm-memory`), or without the feature only the bytes.
//!
//! `bare store` is the lower bound: the same four bytes through `vm-memory` without checks.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use hypercall_patch::{HypercallInsn, PAGE_SIZE, Stub, Vendor, hyperv, xen};

#[cfg(feature = "vm-memory")]
mod memory {
    use std::ops::Range;
    use std::sync::atomic::Ordering;

    use hypercall_patch::memory::{check_site, write_stub};
    use hypercall_patch::{PioPort, Stub};
    use vm_memory::bitmap::AtomicBitmap;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;

    const PIO: Stub = Stub::Pio(PioPort::DEFAULT);
    const KEEP: Range<u64> = 0x2000..0x2018;

    fn memory() -> GuestMemoryMmap<AtomicBitmap> {
        // Two regions, like RAM below and above 4 GiB.
        GuestMemoryMmap::from_ranges(&[
            (GuestAddress(0), 4 << 20),
            (GuestAddress(1 << 32), 4 << 20),
        ])
        .unwrap()
    }

    pub fn benches(c: &mut Criterion) {
        let memory = memory();
        let mut group = c.benchmark_group("memory");
        group.bench_function("bare store", |b| {
            b.iter(|| {
                memory.store(
                    black_box(0xc3c1_010f_u32),
                    black_box(GuestAddress(0x1000)),
                    Ordering::Release,
                )
            })
        });
        for (name, gpa) in [
            ("aligned", 0x1000),
            ("unaligned", 0x1101),
            ("above 4 GiB", (1 << 32) + 0x1000),
        ] {
            let gpa = GuestAddress(gpa);
            group.bench_function(format!("two stubs in turn, {name}"), |b| {
                b.iter(|| {
                    write_stub(&memory, black_box(gpa), PIO, Some(KEEP)).unwrap();
                    write_stub(&memory, black_box(gpa), Stub::Vmx, Some(KEEP)).unwrap()
                })
            });
            group.bench_function(format!("stub that is there, {name}"), |b| {
                b.iter(|| write_stub(&memory, black_box(gpa), Stub::Vmx, Some(KEEP)).unwrap())
            });
        }
        for (name, gpa) in [
            ("not RAM", 0xf000_0000),
            ("crosses a page", 0x1ffd),
            ("overlaps", 0x2010),
        ] {
            group.bench_function(format!("refused, {name}"), |b| {
                b.iter(|| {
                    check_site(&memory, black_box(GuestAddress(gpa)), Some(KEEP)).unwrap_err()
                })
            });
        }
        group.finish();
    }
}

#[cfg(not(feature = "vm-memory"))]
mod memory {
    pub fn benches(_: &mut criterion::Criterion) {
        eprintln!("memory: not measured, add --features vm-memory");
    }
}

fn bytes_benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("bytes");
    group.bench_function("identify a stub", |b| {
        b.iter(|| Stub::identify(black_box(&[0xe6, 0xf5, 0xc3, 0xcc])))
    });
    group.bench_function("vendor from leaf 0", |b| {
        b.iter(|| {
            Vendor::from_leaf0(
                black_box(0x746e_6543),
                black_box(0x736c_7561),
                black_box(0x4872_7561),
            )
        })
    });
    let mut page = [0; PAGE_SIZE];
    group.bench_function("Xen page", |b| {
        b.iter(|| xen::write_page(black_box(&mut page), HypercallInsn::Vmcall))
    });
    group.bench_function("identify a Xen page", |b| {
        b.iter(|| xen::identify(black_box(&page)))
    });
    group.bench_function("Hyper-V page", |b| {
        b.iter(|| hyperv::write_page(black_box(&mut page), HypercallInsn::Vmmcall))
    });
    group.finish();
}

criterion_group!(benches, memory::benches, bytes_benches);
criterion_main!(benches);
