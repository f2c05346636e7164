// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Times a registration in user space: accepted, refused, faulted, and restored from a snapshot.

use std::hint::black_box;

use criterion::Criterion;
use hypercall_patch::{PioPort, Stub};
use para_abi::ParaStatePayload;
use para_msr::ParaMsr;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const PAGE: u64 = 0x1000;
const SITE: u64 = 0x2000;
const SIZE: usize = 1 << 20;

/// The benchmarks of the group `registration`.
pub fn registration(c: &mut Criterion) {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), SIZE)]).unwrap();
    let put = |page, guest_version, site| {
        let payload = ParaStatePayload {
            guest_version,
            ..ParaStatePayload::new(site)
        };
        memory
            .write_slice(&payload.to_bytes(), GuestAddress(page))
            .unwrap();
    };
    put(PAGE, 1, SITE);
    put(PAGE * 3, 2, SITE);
    let mut para = ParaMsr::new(&memory, Stub::Pio(PioPort::DEFAULT));
    let mut group = c.benchmark_group("registration");
    group.bench_function("accepted, stub written", |b| {
        b.iter(|| {
            memory.write_obj(0x90u32, GuestAddress(SITE)).unwrap();
            para.wrmsr(black_box(PAGE))
        });
    });
    group.bench_function("accepted, stub found", |b| {
        b.iter(|| para.wrmsr(black_box(PAGE)))
    });
    group.bench_function("refused", |b| b.iter(|| para.wrmsr(black_box(PAGE * 3))));
    group.bench_function("faulted", |b| b.iter(|| para.wrmsr(black_box(PAGE + 8))));
    let state = para.save();
    group.bench_function("restored", |b| b.iter(|| para.restore(black_box(&state))));
    group.finish();
}
