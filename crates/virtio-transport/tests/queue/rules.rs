// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rules that a driver breaks.

use virtio_transport::chain::{Chain, ChainError};
use virtio_transport::layout::{EVENT_IDX, INDIRECT_DESC};
use virtio_transport::memory::View;
use virtio_transport::queue::{QueueError, QueueState, Virtq};
use virtio_transport::testing::{Buffers, DriverRing, Flags, Memory};
use virtio_transport::{Broken, IndirectFault};

use crate::support::{DATA, RAM, TABLE, queue};

/// The error of a chain that starts at descriptor 0.
fn broken(memory: &Memory, ring: &mut DriverRing, queue: &mut Virtq) -> Broken {
    ring.offer(0);
    let mut chain = Chain::new();
    let broken = queue.pop(&View::new(&**memory), &mut chain).unwrap_err();
    assert_eq!(queue.in_flight(), 0);
    assert!(chain.readable().is_empty() && chain.writable().is_empty());
    // A second try gives the same error.
    assert_eq!(queue.pop(&View::new(&**memory), &mut chain), Err(broken));
    broken
}

#[test]
fn an_available_index_too_far_ahead_is_broken() {
    for index in [9, 0x8000, u16::MAX] {
        let (memory, mut ring, mut queue) = queue(0);
        ring.set_available(index);
        let (next, size) = (0, 8);
        let broken = Err(Broken::AvailableIndex { index, next, size });
        assert_eq!(queue.pop(&View::new(&*memory), &mut Chain::new()), broken);
    }
}

#[test]
fn a_head_outside_of_the_table_is_broken() {
    for index in [8, 9, u16::MAX] {
        let (memory, mut ring, mut queue) = queue(0);
        ring.offer(index);
        let broken = Err(Broken::Index { index, size: 8 });
        assert_eq!(queue.pop(&View::new(&*memory), &mut Chain::new()), broken);
    }
}

#[test]
fn a_next_outside_of_the_table_is_broken() {
    let (memory, mut ring, mut queue) = queue(0);
    ring.descriptor(0, (DATA, 1), Flags::NEXT, 8);
    let broken = broken(&memory, &mut ring, &mut queue);
    assert_eq!(broken, Broken::Index { index: 8, size: 8 });
}

#[test]
fn a_loop_is_broken() {
    for len in [0, 1] {
        let (memory, mut ring, mut queue) = queue(0);
        ring.descriptor(0, (DATA, len), Flags::NEXT, 1);
        ring.descriptor(1, (DATA, len), Flags::NEXT, 0);
        let broken = broken(&memory, &mut ring, &mut queue);
        assert_eq!(
            broken,
            Broken::TooMany {
                head: 0,
                limit: 1024
            }
        );
    }
}

#[test]
fn a_readable_buffer_behind_a_writable_one_is_broken() {
    for len in [0, 1] {
        let (memory, mut ring, mut queue) = queue(0);
        ring.descriptor(0, (DATA, len), Flags::NEXT.and(Flags::WRITE), 1);
        ring.descriptor(1, (DATA, 1), Flags::default(), 0);
        let broken = broken(&memory, &mut ring, &mut queue);
        assert_eq!(broken, Broken::Order { head: 0 });
    }
}

#[test]
fn a_chain_of_more_than_4_gib_is_broken() {
    let (memory, mut ring, mut queue) = queue(0);
    ring.descriptor(0, (0, u32::MAX), Flags::NEXT, 1);
    ring.descriptor(1, (0, 1), Flags::NEXT.and(Flags::WRITE), 2);
    ring.descriptor(2, (0, 1), Flags::WRITE, 0);
    let broken = broken(&memory, &mut ring, &mut queue);
    assert_eq!(broken, Broken::TooLong { head: 0 });
}

#[test]
fn a_chain_of_4_gib_is_one_whose_length_is_cut() {
    let (memory, mut ring, mut queue) = queue(0);
    ring.descriptor(0, (0, u32::MAX), Flags::NEXT.and(Flags::WRITE), 1);
    ring.descriptor(1, (0, 1), Flags::WRITE, 0);
    ring.offer(0);
    let mut chain = Chain::new();
    assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(true));
    let view = View::new(&*memory);
    let mut writer = chain.writer(&view);
    writer.skip(1 << 32).unwrap();
    assert_eq!(writer.written(), u32::MAX);
}

#[test]
fn a_buffer_that_wraps_is_broken() {
    let (memory, mut ring, mut queue) = queue(0);
    let (address, len) = (u64::MAX - 7, 9);
    ring.descriptor(0, (address, len), Flags::WRITE, 0);
    let broken = broken(&memory, &mut ring, &mut queue);
    assert_eq!(broken, Broken::Wraps { address, len });
}

#[test]
fn a_buffer_in_a_hole_is_an_error_of_the_request() {
    let (memory, mut ring, mut queue) = queue(0);
    let hole = RAM as u64 - 4;
    ring.descriptor(0, (hole, 8), Flags::NEXT, 1);
    ring.descriptor(1, (hole, 8), Flags::WRITE, 0);
    ring.offer(0);
    let mut chain = Chain::new();
    assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(true));
    let error = Err(ChainError::Memory {
        address: hole,
        len: 8,
    });
    assert_eq!(chain.reader(&View::new(&*memory)).read(&mut [0; 8]), error);
    assert_eq!(chain.writer(&View::new(&*memory)).write(&[0; 8]), error);
    queue.push(&View::new(&*memory), 0, 0).unwrap();
}

#[test]
fn indirect_tables_obey_their_rules() {
    let whole = |ring: &mut DriverRing, len| ring.descriptor(0, (TABLE, len), Flags::INDIRECT, 0);
    let entry = |ring: &DriverRing, flags| ring.descriptor_at(TABLE, (DATA, 16), flags, 0);
    type Prepare<'a> = &'a dyn Fn(&mut DriverRing);
    let cases: [(u64, Prepare, IndirectFault); 5] = [
        (
            EVENT_IDX,
            &|ring| whole(ring, 16),
            IndirectFault::NotNegotiated,
        ),
        (
            INDIRECT_DESC,
            &|ring| whole(ring, 0),
            IndirectFault::Length(0),
        ),
        (
            INDIRECT_DESC,
            &|ring| whole(ring, 17),
            IndirectFault::Length(17),
        ),
        (
            INDIRECT_DESC,
            &|ring| {
                entry(ring, Flags::INDIRECT);
                whole(ring, 16);
            },
            IndirectFault::Nested,
        ),
        (
            INDIRECT_DESC,
            &|ring| ring.descriptor(0, (TABLE, 16), Flags::INDIRECT.and(Flags::NEXT), 1),
            IndirectFault::Next,
        ),
    ];
    for (features, prepare, fault) in cases {
        let (memory, mut ring, mut queue) = queue(features);
        prepare(&mut ring);
        let broken = broken(&memory, &mut ring, &mut queue);
        assert_eq!(broken, Broken::Indirect { head: 0, fault });
    }
}

#[test]
fn an_indirect_table_may_follow_buffers_and_its_write_flag_means_nothing() {
    let (memory, mut ring, mut queue) = queue(INDIRECT_DESC);
    ring.descriptor(0, (DATA, 1), Flags::NEXT, 3);
    ring.descriptor(3, (TABLE, 32), Flags::INDIRECT.and(Flags::WRITE), 0);
    ring.descriptor_at(TABLE, (DATA, 2), Flags::NEXT, 1);
    ring.descriptor_at(TABLE + 16, (DATA, 4), Flags::WRITE, 0);
    ring.offer(0);
    let mut chain = Chain::new();
    assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(true));
    assert_eq!((chain.readable_len(), chain.writable_len()), (3, 4));
}

#[test]
fn an_indirect_table_may_be_longer_than_the_queue_but_not_endless() {
    let (memory, mut ring, mut queue) = queue(INDIRECT_DESC);
    let mut request = Buffers::default();
    request.writable.resize(1024, (DATA, 1));
    ring.send_indirect(TABLE, &request);
    let mut chain = Chain::new();
    assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(true));
    assert_eq!(chain.writable_len(), 1024);
    request.writable.push((DATA, 1));
    let head = ring.send_indirect(TABLE, &request);
    let limit = 1024;
    let broken = Err(Broken::TooMany { head, limit });
    assert_eq!(queue.pop(&View::new(&*memory), &mut chain), broken);
}

#[test]
fn tables_and_rings_outside_of_memory_are_broken_or_refused() {
    let hole = RAM as u64;
    let (memory, mut ring, mut queue) = queue(INDIRECT_DESC);
    ring.descriptor(0, (hole, 16), Flags::INDIRECT, 0);
    let broken = broken(&memory, &mut ring, &mut queue);
    assert_eq!(broken, Broken::Memory { address: hole });
    for address in [u64::MAX - 15, u64::MAX - 31] {
        ring.descriptor(0, (address, 64), Flags::INDIRECT, 0);
        let memory_of = queue.pop(&View::new(&*memory), &mut Chain::new());
        assert_eq!(memory_of, Err(Broken::Memory { address }));
    }

    let good = ring.state();
    let with = |change: &dyn Fn(&mut QueueState)| {
        let mut state = good;
        change(&mut state);
        Virtq::new(&state, 0, &*memory).err()
    };
    for size in [0, 3, 0x8001, u16::MAX] {
        assert_eq!(
            with(&|state| state.size = size),
            Some(QueueError::Size(size))
        );
    }
    let aligned = |address| Some(QueueError::Alignment(address));
    assert_eq!(with(&|state| state.descriptors = 8), aligned(8));
    assert_eq!(with(&|state| state.available = 1), aligned(1));
    assert_eq!(with(&|state| state.used = 2), aligned(2));
    for address in [hole, hole - 16, u64::MAX - 15, !0xfff] {
        let of = |len| Some(QueueError::Memory { address, len });
        assert_eq!(with(&|state| state.descriptors = address), of(128));
        assert_eq!(with(&|state| state.available = address), of(22));
        assert_eq!(with(&|state| state.used = address), of(70));
    }
}
