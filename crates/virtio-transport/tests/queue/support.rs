// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Queues and requests of a driver.

use virtio_transport::queue::Virtq;
use virtio_transport::testing::{Buffers, DriverRing, Memory, memory};

pub const RAM: usize = 0x40_0000;

pub const DATA: u64 = 0x10_0000;

pub const TABLE: u64 = 0x20_0000;

pub fn queue_of(size: u16, features: u64) -> (Memory, DriverRing, Virtq) {
    let memory = memory(RAM);
    let ring = DriverRing::new(&memory, 0x1000, size);
    let queue = Virtq::new(&ring.state(), features, &*memory).unwrap();
    (memory, ring, queue)
}

pub fn queue(features: u64) -> (Memory, DriverRing, Virtq) {
    queue_of(8, features)
}

pub fn buffers(readable: &[u32], writable: &[u32]) -> Buffers {
    let mut at = DATA;
    let mut place = |len: &u32| {
        let address = at;
        at += u64::from(*len);
        (address, *len)
    };
    Buffers {
        readable: readable.iter().map(&mut place).collect(),
        writable: writable.iter().map(&mut place).collect(),
    }
}
