// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rings made of the input: one byte for the features, then guest memory from the rings on, and a queue that works on
//! it. What is taken keeps the rules, no head is taken twice, and nothing but the used ring is written.

#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use virtio_transport::chain::Chain;
use virtio_transport::memory::View;
use virtio_transport::queue::{Position, QueueState, Virtq};
use virtio_transport::testing::memory;
use vm_memory::{Bytes, GuestAddress};

/// A queue of eight, with its rings one behind the other, in memory of two pages.
const RAM: usize = 0x2000;
const STATE: QueueState = QueueState {
    size: 8,
    descriptors: 0,
    available: 0x80,
    used: 0x98,
    position: Position {
        next_available: 0,
        next_used: 0,
    },
};
const USED: std::ops::Range<usize> = 0x98..0x98 + 6 + 8 * 8;

fn image(memory: &impl Bytes<GuestAddress>) -> Vec<u8> {
    let mut image = vec![0; RAM];
    assert!(memory.read_slice(&mut image, GuestAddress(0)).is_ok());
    image.drain(USED);
    image
}

fuzz_target!(|input: &[u8]| {
    let Some((choices, bytes)) = input.split_first() else {
        return;
    };
    let memory = memory(RAM);
    let bytes = &bytes[..bytes.len().min(RAM)];
    memory
        .write_slice(bytes, GuestAddress(0))
        .expect("guest memory");
    let before = image(&*memory);
    let features = u64::from(choices % 4) << 28;
    let mut queue = Virtq::new(&STATE, features, &*memory).expect("a queue in memory");
    let mut chain = Chain::new();
    let mut held = BTreeSet::new();
    for _ in 0..64 {
        match queue.pop(&View::new(&*memory), &mut chain) {
            Ok(true) => {
                assert!(held.insert(chain.head()), "a head twice");
                let total = chain.readable_len() + chain.writable_len();
                assert!(chain.head() < 8 && total <= 1 << 32);
                let segments = chain.readable().iter().chain(chain.writable());
                assert!(segments.clone().count() <= 1024);
                let mut lens = segments.map(|segment| u64::from(segment.len));
                assert!(lens.clone().all(|len| len != 0));
                assert_eq!(lens.by_ref().sum::<u64>(), total);
                let mut data = [0; 16];
                let _ = chain.reader(&View::new(&*memory)).read(&mut data);
            }
            Ok(false) => break,
            Err(_) => {
                assert!(queue.pop(&View::new(&*memory), &mut chain).is_err());
                break;
            }
        }
        // Every other one is given back at once.
        if choices & 4 != 0 && held.len() % 2 == 1 {
            let head = held.pop_first().expect("a chain");
            queue.push(&View::new(&*memory), head, 1).expect("a chain in flight");
        }
    }
    assert_eq!(usize::from(queue.in_flight()), held.len());
    assert_eq!(queue.state().is_ok(), held.is_empty());
    assert!(image(&*memory) == before, "something else is written");
});
