// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The cost of a request in a queue: taking a chain and returning it, compared to virtio-queue's iterator, which checks
//! less. Also the cost of a register access.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use virtio_queue::{Queue, QueueOwnedT, QueueState as RawState, QueueT};
use virtio_transport::chain::Chain;
use virtio_transport::layout::{INDIRECT_DESC, RING_FEATURES};
use virtio_transport::memory::View;
use virtio_transport::queue::Virtq;
use virtio_transport::testing::{
    Buffers, DriverRing, Echo, MEMORY, Machine, Memory, MmioPort, PciPort, Port, memory,
};

const SIZE: u16 = 256;
const TABLE: u64 = 0x8_0000;

/// A ring full of requests with three descriptors.
fn full(indirect: bool) -> (Memory, DriverRing) {
    let memory = memory(MEMORY);
    let mut ring = DriverRing::new(&memory, 0, SIZE);
    let request = Buffers {
        readable: vec![(TABLE + 0x1_0000, 16)],
        writable: vec![(TABLE + 0x2_0000, 4096), (TABLE + 0x3_0000, 1)],
    };
    for i in 0..64 {
        if indirect {
            ring.send_indirect(TABLE + 64 * i, &request);
        } else {
            ring.send(&request);
        }
    }
    (memory, ring)
}

fn queues(criterion: &mut Criterion) {
    for (name, indirect) in [("direct", false), ("indirect", true)] {
        let (memory, ring) = full(indirect);
        let mut chain = Chain::new();
        criterion.bench_function(&format!("64 requests, {name}"), |bencher| {
            bencher.iter(|| {
                let features = RING_FEATURES & INDIRECT_DESC;
                let mut queue = Virtq::new(&ring.state(), features, &*memory).unwrap();
                while queue.pop(&View::new(&*memory), &mut chain).unwrap() {
                    let len = black_box(chain.writable().len()) as u32;
                    queue.push(&View::new(&*memory), chain.head(), len).unwrap();
                }
                queue.needs_interrupt(&View::new(&*memory)).unwrap()
            });
        });
        let state = ring.state();
        criterion.bench_function(&format!("64 requests, {name}, virtio-queue"), |bencher| {
            bencher.iter(|| {
                let raw = RawState {
                    max_size: SIZE,
                    size: SIZE,
                    ready: true,
                    desc_table: state.descriptors,
                    avail_ring: state.available,
                    used_ring: state.used,
                    ..RawState::default()
                };
                let mut queue = Queue::try_from(raw).unwrap();
                while let Some(chain) = queue.iter(&*memory).unwrap().next() {
                    let head = chain.head_index();
                    let segments: Vec<_> = chain.collect();
                    let len = black_box(segments.len()) as u32;
                    queue.add_used(&*memory, head, len).unwrap();
                }
                queue.needs_notification(&*memory).unwrap()
            });
        });
    }
}

fn read<P: Port>(criterion: &mut Criterion, name: &str) {
    let mut machine = Machine::<P>::new(Box::new(Echo::new()), &memory(MEMORY));
    let mut data = [0; 4];
    let (status, len) = P::STATUS;
    criterion.bench_function(&format!("the status, {name}"), |bencher| {
        bencher.iter(|| machine.port.read(black_box(status), &mut data[..len]));
    });
}

fn registers(criterion: &mut Criterion) {
    read::<MmioPort>(criterion, "MMIO");
    read::<PciPort>(criterion, "PCI");
}

criterion_group!(benches, queues, registers);
criterion_main!(benches);
