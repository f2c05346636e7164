// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Times an MSR access in user space, the compilation of a filter, and a registration.
//!
//! `cargo bench -p para-msr`
#![allow(clippy::unwrap_used)]
#![allow(missing_docs)] // `criterion_group!` makes a public function.

mod registration;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use para_msr::filter::{Access, FilterDefault, MsrFilterBuilder};
use para_msr::handlers::Shadow;
use para_msr::{MsrDispatch, MsrDispatchBuilder, profile};

const BASE: u32 = 0x4000_0000;
/// The distance between the first MSRs of two ranges.
const STEP: u32 = 16;

fn table(ranges: u32) -> MsrDispatch {
    let shadow = |n: u32| Shadow::<4>::new(BASE + n * STEP, 0).unwrap();
    (0..ranges)
        .fold(MsrDispatchBuilder::new(), |builder, n| {
            builder.insert(shadow(n).range(), shadow(n)).unwrap()
        })
        .build()
}

fn dispatch(c: &mut Criterion) {
    let mut group = c.benchmark_group("dispatch");
    for ranges in [1, 16, 256] {
        let mut msrs = table(ranges);
        // A different range each time, in an order that caches and branch prediction can't learn.
        let mut next = 0u32;
        let mut index = move || {
            next = next.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            BASE + (next >> 16) % ranges * STEP + 1
        };
        group.bench_function(BenchmarkId::new("write and read", ranges), |b| {
            b.iter(|| {
                let index = black_box(index());
                let _ = black_box(msrs.write(index, 5));
                black_box(msrs.read(index))
            });
        });
        group.bench_function(BenchmarkId::new("read nobody's", ranges), |b| {
            b.iter(|| black_box(msrs.read(black_box(BASE + 8))));
        });
    }
    group.finish();
}

fn compilation(c: &mut Criterion) {
    let mut group = c.benchmark_group("filter");
    let owners = [
        0x8765_5678,
        0x8b,
        0xce,
        0x35,
        0x1a0,
        0x4000_0105,
        0x4b56_4d08,
    ]
    .into_iter()
    .fold(
        MsrFilterBuilder::new(FilterDefault::Allow),
        |builder, index| builder.deny(index, Access::Both),
    );
    group.bench_function("seven owners", |b| {
        b.iter(|| black_box(&owners).compile().unwrap())
    });
    let linux = MsrFilterBuilder::new(FilterDefault::Deny)
        .allow_profile(profile::LINUX)
        .deny(0x8765_5678, Access::Both);
    group.bench_function("the Linux profile", |b| {
        b.iter(|| black_box(&linux).compile().unwrap())
    });
    group.finish();
}

criterion_group!(benches, dispatch, compilation, registration::registration);
criterion_main!(benches);
