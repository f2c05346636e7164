// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Queues and chains: a well-behaved driver, and each rule that another one breaks.
#![allow(clippy::unwrap_used)]

use virtio_transport::chain::{Chain, ChainError, Segment};
use virtio_transport::layout::{EVENT_IDX, INDIRECT_DESC, RING_FEATURES};
use virtio_transport::queue::{NotDrained, Position, QueueError, QueueState, Virtq};
use virtio_transport::testing::{Buffers, DriverRing, Flags, Memory, Used, memory};
use virtio_transport::{Broken, IndirectFault};
use vm_memory::{Bytes, GuestAddress};

const RAM: usize = 0x40_0000;
const DATA: u64 = 0x10_0000;
const TABLE: u64 = 0x20_0000;

fn queue_of(size: u16, features: u64) -> (Memory, DriverRing, Virtq) {
    let memory = memory(RAM);
    let ring = DriverRing::new(&memory, 0x1000, size);
    let queue = Virtq::new(&ring.state(), features, &*memory).unwrap();
    (memory, ring, queue)
}

fn queue(features: u64) -> (Memory, DriverRing, Virtq) {
    queue_of(8, features)
}

fn buffers(readable: &[u32], writable: &[u32]) -> Buffers {
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

/// The error of a chain that starts at descriptor 0.
fn broken(memory: &Memory, ring: &mut DriverRing, queue: &mut Virtq) -> Broken {
    ring.offer(0);
    let mut chain = Chain::new();
    let broken = queue.pop(&**memory, &mut chain).unwrap_err();
    assert_eq!(queue.in_flight(), 0);
    assert!(chain.readable().is_empty() && chain.writable().is_empty());
    // A second try gives the same error.
    assert_eq!(queue.pop(&**memory, &mut chain), Err(broken));
    broken
}

#[test]
fn a_request_is_read_answered_and_counted() {
    for indirect in [false, true] {
        let (memory, mut ring, mut queue) = queue(RING_FEATURES);
        memory
            .write_slice(b"hello, device", GuestAddress(DATA))
            .unwrap();
        let request = buffers(&[5, 0, 8], &[4, 12]);
        let head = if indirect {
            ring.send_indirect(TABLE, &request)
        } else {
            ring.send(&request)
        };
        let mut chain = Chain::new();
        assert_eq!(queue.pop(&*memory, &mut chain), Ok(true));
        assert_eq!((chain.head(), chain.readable().len()), (head, 2));
        assert_eq!((chain.readable_len(), chain.writable_len()), (13, 16));
        let second = Segment {
            address: GuestAddress(DATA + 5),
            len: 8,
        };
        assert_eq!(chain.readable()[1], second);

        let mut data = [0; 13];
        let mut reader = chain.reader(&*memory);
        reader.read(&mut data).unwrap();
        assert_eq!((&data, reader.left()), (b"hello, device", 0));
        let (wanted, left) = (1, 0);
        assert_eq!(
            reader.read(&mut [0]),
            Err(ChainError::Short { wanted, left })
        );

        let mut writer = chain.writer(&*memory);
        writer.write(b"hello, driver").unwrap();
        assert_eq!((writer.written(), writer.left()), (13, 3));
        assert!(matches!(
            writer.write(&[0; 4]),
            Err(ChainError::Short { .. })
        ));
        queue
            .push(&*memory, chain.head(), writer.written())
            .unwrap();
        let head = u32::from(head);
        assert_eq!(ring.take(), Some(Used { head, len: 13 }));
        assert_eq!(ring.take(), None);
        memory
            .read_slice(&mut data, GuestAddress(DATA + 13))
            .unwrap();
        assert_eq!(&data, b"hello, driver");
        assert_eq!(queue.pop(&*memory, &mut chain), Ok(false));
    }
}

#[test]
fn positions_wrap() {
    let (memory, mut ring, mut queue) = queue(0);
    let mut chain = Chain::new();
    for i in 0..70_000_u32 {
        let head = ring.send(&buffers(&[1], &[1]));
        assert_eq!(queue.pop(&*memory, &mut chain), Ok(true), "request {i}");
        queue.push(&*memory, head, 1).unwrap();
        assert!(ring.take().is_some());
    }
    let position = queue.state().unwrap().position;
    assert_eq!(u32::from(position.next_used), 70_000 - 65_536);
    assert_eq!(position.next_available, position.next_used);
}

#[test]
fn one_allocation_serves_all_requests() {
    let (memory, mut ring, mut queue) = queue(RING_FEATURES);
    let mut chain = Chain::new();
    let mut place = None;
    for i in 0..100 {
        let request = buffers(&[1, 2], &[3]);
        let head = match i % 2 {
            0 => ring.send(&request),
            _ => ring.send_indirect(TABLE, &request),
        };
        assert_eq!(queue.pop(&*memory, &mut chain), Ok(true));
        let here = chain.readable().as_ptr();
        assert_eq!(*place.get_or_insert(here), here);
        queue.push(&*memory, head, 0).unwrap();
        assert!(ring.take().is_some());
    }
}

#[test]
fn a_full_ring_is_taken_in_any_order() {
    let (memory, mut ring, mut queue) = queue(0);
    let heads: Vec<_> = (0..8).map(|_| ring.send(&buffers(&[], &[1]))).collect();
    let mut chain = Chain::new();
    for head in &heads {
        assert_eq!(queue.pop(&*memory, &mut chain), Ok(true));
        assert_eq!(chain.head(), *head);
    }
    assert_eq!(queue.pop(&*memory, &mut chain), Ok(false));
    assert_eq!(queue.state(), Err(NotDrained { in_flight: 8 }));
    for head in heads.iter().rev() {
        queue.push(&*memory, *head, 0).unwrap();
    }
    assert!(queue.state().is_ok());
    let back: Vec<_> = std::iter::from_fn(|| ring.take())
        .map(|used| used.head as u16)
        .collect();
    assert!(back.iter().eq(heads.iter().rev()));
}

#[test]
fn a_chain_that_the_device_has_is_not_taken_again() {
    let (memory, mut ring, mut queue) = queue(0);
    let head = ring.send(&buffers(&[1], &[]));
    ring.offer(head);
    let mut chain = Chain::new();
    assert_eq!(queue.pop(&*memory, &mut chain), Ok(true));
    let twice = Err(Broken::InFlight { head });
    assert_eq!(queue.pop(&*memory, &mut chain), twice);
    // After its return it is a new request.
    queue.push(&*memory, head, 0).unwrap();
    assert_eq!(queue.pop(&*memory, &mut chain), Ok(true));
}

#[test]
fn only_what_is_in_flight_is_given_back() {
    let (memory, mut ring, mut queue) = queue(0);
    let head = ring.send(&buffers(&[1], &[]));
    for wrong in [head, 8, 64, u16::MAX] {
        let error = Err(Broken::NotInFlight { head: wrong });
        assert_eq!(queue.push(&*memory, wrong, 0), error);
    }
    let mut chain = Chain::new();
    assert_eq!(queue.pop(&*memory, &mut chain), Ok(true));
    queue.push(&*memory, head, 0).unwrap();
    assert!(queue.push(&*memory, head, 0).is_err());
    assert_eq!(
        (ring.take().map(|used| used.head), ring.take()),
        (Some(head.into()), None)
    );
}

#[test]
fn chains_are_put_back_the_last_one_first() {
    let (memory, mut ring, mut queue) = queue(0);
    let heads = [
        ring.send(&buffers(&[1], &[])),
        ring.send(&buffers(&[2], &[])),
    ];
    let mut chain = Chain::new();
    assert_eq!(queue.pop(&*memory, &mut chain), Ok(true));
    assert_eq!(queue.pop(&*memory, &mut chain), Ok(true));
    assert!(!queue.unpop(heads[0]) && queue.unpop(heads[1]) && !queue.unpop(heads[1]));
    assert_eq!(queue.in_flight(), 1);
    assert_eq!(queue.pop(&*memory, &mut chain), Ok(true));
    assert_eq!(chain.head(), heads[1]);
    // Both can be undone, the last one first.
    assert!(queue.unpop(heads[1]) && queue.unpop(heads[0]) && !queue.unpop(heads[0]));
    assert_eq!(queue.state().unwrap().position, Position::default());
    for head in &heads[..2] {
        assert_eq!(queue.pop(&*memory, &mut chain), Ok(true));
        assert_eq!(chain.head(), *head);
    }
    // A returned chain doesn't belong to the device any more.
    queue.push(&*memory, heads[1], 0).unwrap();
    assert!(!queue.unpop(heads[1]) && !queue.unpop(heads[0]) && !queue.unpop(u16::MAX));
}

#[test]
fn an_available_index_too_far_ahead_is_broken() {
    for index in [9, 0x8000, u16::MAX] {
        let (memory, mut ring, mut queue) = queue(0);
        ring.set_available(index);
        let (next, size) = (0, 8);
        let broken = Err(Broken::AvailableIndex { index, next, size });
        assert_eq!(queue.pop(&*memory, &mut Chain::new()), broken);
    }
}

#[test]
fn a_head_outside_of_the_table_is_broken() {
    for index in [8, 9, u16::MAX] {
        let (memory, mut ring, mut queue) = queue(0);
        ring.offer(index);
        let broken = Err(Broken::Index { index, size: 8 });
        assert_eq!(queue.pop(&*memory, &mut Chain::new()), broken);
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
    assert_eq!(queue.pop(&*memory, &mut chain), Ok(true));
    let mut writer = chain.writer(&*memory);
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
    assert_eq!(queue.pop(&*memory, &mut chain), Ok(true));
    let error = Err(ChainError::Memory {
        address: hole,
        len: 8,
    });
    assert_eq!(chain.reader(&*memory).read(&mut [0; 8]), error);
    assert_eq!(chain.writer(&*memory).write(&[0; 8]), error);
    queue.push(&*memory, 0, 0).unwrap();
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
    assert_eq!(queue.pop(&*memory, &mut chain), Ok(true));
    assert_eq!((chain.readable_len(), chain.writable_len()), (3, 4));
}

#[test]
fn an_indirect_table_may_be_longer_than_the_queue_but_not_endless() {
    let (memory, mut ring, mut queue) = queue(INDIRECT_DESC);
    let mut request = Buffers::default();
    request.writable.resize(1024, (DATA, 1));
    ring.send_indirect(TABLE, &request);
    let mut chain = Chain::new();
    assert_eq!(queue.pop(&*memory, &mut chain), Ok(true));
    assert_eq!(chain.writable_len(), 1024);
    request.writable.push((DATA, 1));
    let head = ring.send_indirect(TABLE, &request);
    let limit = 1024;
    let broken = Err(Broken::TooMany { head, limit });
    assert_eq!(queue.pop(&*memory, &mut chain), broken);
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
        let memory_of = queue.pop(&*memory, &mut Chain::new());
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

#[test]
fn interrupts_follow_the_available_flags() {
    let (memory, mut ring, mut queue) = queue(0);
    let mut chain = Chain::new();
    assert_eq!(
        queue.needs_interrupt(&*memory),
        Ok(false),
        "nothing was given back"
    );
    for none in [true, false] {
        ring.set_no_interrupt(none);
        let head = ring.send(&buffers(&[], &[1]));
        assert_eq!(queue.pop(&*memory, &mut chain), Ok(true));
        queue.push(&*memory, head, 0).unwrap();
        assert_eq!(queue.needs_interrupt(&*memory), Ok(!none));
        assert_eq!(queue.needs_interrupt(&*memory), Ok(false), "asked already");
    }
}

#[test]
fn interrupts_follow_the_used_event() {
    // For each batch size and each event index of the driver: an interrupt if the batch passes that index.
    for batch in 1..=4_u16 {
        for event in 0..8_u16 {
            let (memory, mut ring, mut queue) = queue(EVENT_IDX);
            ring.set_no_interrupt(true); // Ignored with EVENT_IDX.
            ring.set_used_event(event);
            let mut chain = Chain::new();
            let mut done = 0;
            for _ in 0..2 {
                for _ in 0..batch {
                    let head = ring.send(&buffers(&[], &[1]));
                    assert_eq!(queue.pop(&*memory, &mut chain), Ok(true));
                    queue.push(&*memory, head, 0).unwrap();
                }
                let passes = (done..done + batch).contains(&event);
                assert_eq!(
                    queue.needs_interrupt(&*memory),
                    Ok(passes),
                    "{batch} {event}"
                );
                done += batch;
            }
        }
    }
}

#[test]
fn kicks_are_asked_for_and_a_chain_in_between_is_seen() {
    for features in [0, EVENT_IDX] {
        let (memory, mut ring, mut queue) = queue(features);
        let mut chain = Chain::new();
        assert_eq!(queue.enable_kicks(&*memory), Ok(false));
        queue.disable_kicks(&*memory).unwrap();
        assert_eq!(ring.used_flags(), u16::from(features == 0));
        ring.send(&buffers(&[], &[1]));
        assert_eq!(queue.enable_kicks(&*memory), Ok(true));
        assert_eq!(ring.used_flags(), 0);
        assert_eq!(queue.pop(&*memory, &mut chain), Ok(true));
        assert_eq!(queue.enable_kicks(&*memory), Ok(false));
        if features == EVENT_IDX {
            assert_eq!(ring.available_event(), 1);
        }
    }
}

#[test]
fn a_queue_goes_on_where_another_stopped() {
    let (memory, mut ring, mut queue) = queue(RING_FEATURES);
    let mut chain = Chain::new();
    for _ in 0..11 {
        let head = ring.send(&buffers(&[1], &[1]));
        assert_eq!(queue.pop(&*memory, &mut chain), Ok(true));
        queue.push(&*memory, head, 1).unwrap();
        assert!(ring.take().is_some());
    }
    ring.send(&buffers(&[1], &[1]));
    let state = queue.state().unwrap();
    let json = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<QueueState>(&json).unwrap(), state);
    let mut queue = Virtq::new(&state, RING_FEATURES, &*memory).unwrap();
    assert_eq!(queue.pop(&*memory, &mut chain), Ok(true));
    queue.push(&*memory, chain.head(), 1).unwrap();
    assert!(ring.take().is_some() && ring.take().is_none());
}
