// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Queues and chains: a well-behaved driver, and each rule that another one breaks.
#![allow(clippy::unwrap_used)]

mod rules;
mod support;

use virtio_transport::Broken;
use virtio_transport::chain::{Chain, ChainError, Segment};
use virtio_transport::layout::{EVENT_IDX, RING_FEATURES};
use virtio_transport::memory::View;
use virtio_transport::queue::{NotDrained, Position, QueueState, Virtq};
use virtio_transport::testing::Used;
use vm_memory::{Bytes, GuestAddress};

use support::{DATA, TABLE, buffers, queue};

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
        assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(true));
        assert_eq!((chain.head(), chain.readable().len()), (head, 2));
        assert_eq!((chain.readable_len(), chain.writable_len()), (13, 16));
        let second = Segment {
            address: GuestAddress(DATA + 5),
            len: 8,
        };
        assert_eq!(chain.readable()[1], second);

        let mut data = [0; 13];
        let view = View::new(&*memory);
        let mut reader = chain.reader(&view);
        reader.read(&mut data).unwrap();
        assert_eq!((&data, reader.left()), (b"hello, device", 0));
        let (wanted, left) = (1, 0);
        assert_eq!(
            reader.read(&mut [0]),
            Err(ChainError::Short { wanted, left })
        );

        let view = View::new(&*memory);
        let mut writer = chain.writer(&view);
        writer.write(b"hello, driver").unwrap();
        assert_eq!((writer.written(), writer.left()), (13, 3));
        assert!(matches!(
            writer.write(&[0; 4]),
            Err(ChainError::Short { .. })
        ));
        queue
            .push(&View::new(&*memory), chain.head(), writer.written())
            .unwrap();
        let head = u32::from(head);
        assert_eq!(ring.take(), Some(Used { head, len: 13 }));
        assert_eq!(ring.take(), None);
        memory
            .read_slice(&mut data, GuestAddress(DATA + 13))
            .unwrap();
        assert_eq!(&data, b"hello, driver");
        assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(false));
    }
}

#[test]
fn positions_wrap() {
    let (memory, mut ring, mut queue) = queue(0);
    let mut chain = Chain::new();
    for i in 0..70_000_u32 {
        let head = ring.send(&buffers(&[1], &[1]));
        assert_eq!(
            queue.pop(&View::new(&*memory), &mut chain),
            Ok(true),
            "request {i}"
        );
        queue.push(&View::new(&*memory), head, 1).unwrap();
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
        assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(true));
        let here = chain.readable().as_ptr();
        assert_eq!(*place.get_or_insert(here), here);
        queue.push(&View::new(&*memory), head, 0).unwrap();
        assert!(ring.take().is_some());
    }
}

#[test]
fn a_full_ring_is_taken_in_any_order() {
    let (memory, mut ring, mut queue) = queue(0);
    let heads: Vec<_> = (0..8).map(|_| ring.send(&buffers(&[], &[1]))).collect();
    let mut chain = Chain::new();
    for head in &heads {
        assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(true));
        assert_eq!(chain.head(), *head);
    }
    assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(false));
    assert_eq!(queue.state(), Err(NotDrained { in_flight: 8 }));
    for head in heads.iter().rev() {
        queue.push(&View::new(&*memory), *head, 0).unwrap();
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
    assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(true));
    let twice = Err(Broken::InFlight { head });
    assert_eq!(queue.pop(&View::new(&*memory), &mut chain), twice);
    // After its return it is a new request.
    queue.push(&View::new(&*memory), head, 0).unwrap();
    assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(true));
}

#[test]
fn only_what_is_in_flight_is_given_back() {
    let (memory, mut ring, mut queue) = queue(0);
    let head = ring.send(&buffers(&[1], &[]));
    for wrong in [head, 8, 64, u16::MAX] {
        let error = Err(Broken::NotInFlight { head: wrong });
        assert_eq!(queue.push(&View::new(&*memory), wrong, 0), error);
    }
    let mut chain = Chain::new();
    assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(true));
    queue.push(&View::new(&*memory), head, 0).unwrap();
    assert!(queue.push(&View::new(&*memory), head, 0).is_err());
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
    assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(true));
    assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(true));
    assert!(!queue.unpop(heads[0]) && queue.unpop(heads[1]) && !queue.unpop(heads[1]));
    assert_eq!(queue.in_flight(), 1);
    assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(true));
    assert_eq!(chain.head(), heads[1]);
    // Both can be undone, the last one first.
    assert!(queue.unpop(heads[1]) && queue.unpop(heads[0]) && !queue.unpop(heads[0]));
    assert_eq!(queue.state().unwrap().position, Position::default());
    for head in &heads[..2] {
        assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(true));
        assert_eq!(chain.head(), *head);
    }
    // A returned chain doesn't belong to the device any more.
    queue.push(&View::new(&*memory), heads[1], 0).unwrap();
    assert!(!queue.unpop(heads[1]) && !queue.unpop(heads[0]) && !queue.unpop(u16::MAX));
}

#[test]
fn interrupts_follow_the_available_flags() {
    let (memory, mut ring, mut queue) = queue(0);
    let mut chain = Chain::new();
    assert_eq!(
        queue.needs_interrupt(&View::new(&*memory)),
        Ok(false),
        "nothing was given back"
    );
    for none in [true, false] {
        ring.set_no_interrupt(none);
        let head = ring.send(&buffers(&[], &[1]));
        assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(true));
        queue.push(&View::new(&*memory), head, 0).unwrap();
        assert_eq!(queue.needs_interrupt(&View::new(&*memory)), Ok(!none));
        assert_eq!(
            queue.needs_interrupt(&View::new(&*memory)),
            Ok(false),
            "asked already"
        );
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
                    assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(true));
                    queue.push(&View::new(&*memory), head, 0).unwrap();
                }
                let passes = (done..done + batch).contains(&event);
                assert_eq!(
                    queue.needs_interrupt(&View::new(&*memory)),
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
        assert_eq!(queue.enable_kicks(&View::new(&*memory)), Ok(false));
        queue.disable_kicks(&View::new(&*memory)).unwrap();
        assert_eq!(ring.used_flags(), u16::from(features == 0));
        ring.send(&buffers(&[], &[1]));
        assert_eq!(queue.enable_kicks(&View::new(&*memory)), Ok(true));
        assert_eq!(ring.used_flags(), 0);
        assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(true));
        assert_eq!(queue.enable_kicks(&View::new(&*memory)), Ok(false));
        if features == EVENT_IDX {
            assert_eq!(ring.available_event(), 1);
        }
    }
}

#[test]
fn kicks_are_asked_for_behind_chains_that_are_left_there() {
    for features in [0, EVENT_IDX] {
        let (memory, mut ring, mut queue) = queue(features);
        let view = View::new(&*memory);
        assert_eq!(queue.enable_kicks_behind(&view), Ok(0));
        queue.disable_kicks(&view).unwrap();
        let mut chain = Chain::new();
        for left in 1..4 {
            ring.send(&buffers(&[], &[1]));
            assert_eq!(queue.enable_kicks_behind(&view), Ok(left));
            assert_eq!(ring.used_flags(), 0);
            if features == EVENT_IDX {
                assert_eq!(ring.available_event(), left);
            }
        }
        assert_eq!(queue.pop(&view, &mut chain), Ok(true));
        assert_eq!(queue.enable_kicks_behind(&view), Ok(2));
        ring.set_available(100);
        let broken = queue.enable_kicks_behind(&view);
        assert!(matches!(broken, Err(Broken::AvailableIndex { .. })));
    }
}

#[test]
fn a_queue_goes_on_where_another_stopped() {
    let (memory, mut ring, mut queue) = queue(RING_FEATURES);
    let mut chain = Chain::new();
    for _ in 0..11 {
        let head = ring.send(&buffers(&[1], &[1]));
        assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(true));
        queue.push(&View::new(&*memory), head, 1).unwrap();
        assert!(ring.take().is_some());
    }
    ring.send(&buffers(&[1], &[1]));
    let state = queue.state().unwrap();
    let json = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<QueueState>(&json).unwrap(), state);
    let mut queue = Virtq::new(&state, RING_FEATURES, &*memory).unwrap();
    assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(true));
    queue.push(&View::new(&*memory), chain.head(), 1).unwrap();
    assert!(ring.take().is_some() && ring.take().is_none());
}
