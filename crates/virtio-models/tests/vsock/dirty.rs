// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The record of written pages, with which a VMM saves a machine that runs.

use std::sync::Arc;

use virtio_models::vsock::Vsock;
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

/// A queue of four entries, on three pages from `base` on.
fn ring(base: u64) -> QueueState {
    QueueState {
        size: 4,
        descriptors: base,
        available: base + 0x1000,
        used: base + 0x2000,
        ..QueueState::default()
    }
}

/// The numbers of the pages from 0x10000 on that are marked after `len` bytes of data.
fn written(len: usize) -> Vec<u64> {
    let range = (GuestAddress(0), 0x10_0000);
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[range]).expect("memory"));
    let put = |value: u64, at| memory.write_obj(value, GuestAddress(at)).expect("memory");
    // A buffer for the answer to the request; one of two pieces of a page and a half each, and one page.
    let pieces: [(u64, u64, u64); 4] = [
        (0x9000, 64, 2),
        (0x1_0000, 0x1800, 3 | 2 << 16),
        (0x1_4000, 0x1800, 2),
        (0x1_8000, 0x1000, 2),
    ];
    for (at, (address, len, flags)) in (0x1000..).step_by(16).zip(pieces) {
        put(address, at);
        put(len | flags << 32, at + 8);
    }
    // Available: flags, index 3, heads 0, 1 and 3.
    put(3 << 16 | 1 << 48, 0x2000);
    put(3, 0x2008);
    // The request.
    let request = packet(REQUEST).bytes();
    let sent = memory.write_slice(&request, GuestAddress(0xa000));
    sent.expect("memory");
    put(0xa000, 0x4000);
    put(request.len() as u64, 0x4008);
    put(1 << 16, 0x5000);

    let place = Place::new();
    let listener = place.listen(52);
    let report = Box::new(|notice| eprintln!("{notice}"));
    let mut vsock = Vsock::<Memory>::new(CID as u32, Arc::clone(&place.host), report);
    let queue = |base| Some(Virtq::new(&ring(base), 0, &*memory).expect("a queue"));
    let active = Active {
        features: 0,
        memory: Arc::clone(&memory),
        queues: vec![queue(0x1000), queue(0x4000), None],
        interrupt: Arc::new(Silent),
    };
    let region = memory.iter().next().expect("a region");
    let is_marked = |at: u64| region.bitmap().dirty_at(at as usize);
    let mut poller = TestPoller::default();
    let mut io = Io::new(&mut poller);
    vsock.start(&mut io, active).expect("a device that starts");
    vsock.process(&mut io, Event::Queue(1)).expect("a packet");
    assert!(is_marked(0x9000), "the answer");
    assert!(is_marked(0x3000) && is_marked(0x6000), "the used rings");
    let (socket, _) = listener.accept().expect("a connection");
    assert_eq!(write(&socket, &bytes(len)), len);
    // The first socket.
    let turns = [Event::Source(2); 8].into_iter();
    turns.for_each(|event| vsock.process(&mut io, event).expect("data"));
    let pages = (0..10).filter(|page| is_marked(0x1_0000 + 0x1000 * page));
    pages.collect()
}

#[test]
fn the_pages_of_data_are_marked_and_no_others() {
    assert_eq!(written(100), [0]);
    assert_eq!(written(0x1000 - 44), [0]);
    assert_eq!(written(0x1000), [0, 1]);
    // The first packet has 4 KiB, because nobody knows yet that more comes.
    assert_eq!(written(0x1800), [0, 1, 8]);
}
