// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The record of written pages, with which a VMM saves a machine that runs.

use std::sync::Arc;

use virtio_models::net::Net;
use virtio_transport::Device;
use virtio_transport::device::{Active, Event, Interrupt, Io};
use virtio_transport::queue::{QueueState, Virtq};
use virtio_transport::testing::TestPoller;
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::support::*;

type Memory = Arc<GuestMemoryMmap<AtomicBitmap>>;

struct Silent;

impl Interrupt for Silent {
    fn queue(&self, _: u16) {}

    fn config(&self) {}
}

const RING: QueueState = QueueState {
    size: 4,
    descriptors: 0x1000,
    available: 0x2000,
    used: 0x3000,
    position: virtio_transport::queue::Position {
        next_available: 0,
        next_used: 0,
    },
};

/// The numbers of the pages from 0x10000 on that are marked after a frame of `len` bytes.
fn written(len: usize) -> Vec<u64> {
    let range = (GuestAddress(0), 0x10_0000);
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[range]).expect("memory"));
    // Two buffers: one of two pieces of a page and a half each, and one page.
    let put = |value: u64, at| memory.write_obj(value, GuestAddress(at)).expect("memory");
    let pieces: [(u64, u64, u64); 3] = [
        (0x1_0000, 0x1800, 3 | 1 << 16),
        (0x1_4000, 0x1800, 2),
        (0x1_8000, 0x1000, 2),
    ];
    for (at, (address, len, flags)) in (0x1000..).step_by(16).zip(pieces) {
        put(address, at);
        put(len | flags << 32, at + 8);
    }
    // Available: flags, index 2, heads 0 and 2.
    put(2 << 16 | 2 << 48, 0x2000);
    let wire = Wire::new();
    wire.deliver([0; HEADER], frame(len));
    let mut net = Net::<Memory>::new(config(), vec![wire.link()], Box::new(|_| ()));
    let queue = Virtq::new(&RING, MRG_RXBUF, &*memory).expect("a queue");
    let active = Active {
        features: MRG_RXBUF,
        memory: Arc::clone(&memory),
        queues: vec![Some(queue), None],
        interrupt: Arc::new(Silent),
    };
    let region = memory.iter().next().expect("a region");
    let mut poller = TestPoller::default();
    let mut io = Io::new(&mut poller);
    net.start(&mut io, active).expect("a device that starts");
    let pages = |from: u64| {
        let is_marked = |page: &u64| region.bitmap().dirty_at((from + 0x1000 * page) as usize);
        (0..10).filter(is_marked).collect::<Vec<_>>()
    };
    assert!(pages(0x1_0000).is_empty());
    net.process(&mut io, Event::Queue(0)).expect("a queue");
    assert_eq!(pages(0x3000)[0], 0, "the used ring");
    pages(0x1_0000)
}

#[test]
fn the_pages_of_a_frame_are_marked_and_no_others() {
    assert_eq!(written(100), [0]);
    assert_eq!(written(0x1000), [0, 1]);
    assert_eq!(written(0x1800), [0, 1, 4]);
    assert_eq!(written(0x2800), [0, 1, 4, 5]);
    assert_eq!(written(0x3000), [0, 1, 4, 5, 8]);
}
