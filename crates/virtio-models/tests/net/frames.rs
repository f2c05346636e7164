// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Frames both ways: in any buffers, with and without space.

use proptest::prelude::*;
use virtio_models::net::{LinkError, MAX_FRAME, NetConfig};
use virtio_transport::testing::Buffers;

use crate::support::*;

pub const PLAIN: [u8; HEADER] = [0; HEADER];

/// The header of a received frame in this many buffers.
fn spread(count: u8) -> [u8; HEADER] {
    let mut header = PLAIN;
    header[10] = count;
    header
}

#[test]
fn a_frame_of_the_guest_is_sent_as_it_is() {
    let wire = Wire::new();
    let mut guest = Guest::one(&wire, u64::MAX);
    let header = [1, 1, 54, 0, 180, 5, 34, 0, 16, 0, 0, 0];
    guest.send(&header, &frame(4000));
    assert_eq!(guest.used(1), [Vec::<u8>::new()]);
    assert_eq!(wire.line().sent, [(header, frame(4000))]);
    assert_eq!(
        (guest.counters.sent(), guest.counters.sent_dropped()),
        (1, 0)
    );
    assert_eq!(guest.counters.sent_bytes(), 4000);
}

#[test]
fn a_malformed_frame_is_dropped_and_returned() {
    let wire = Wire::new();
    let mut guest = Guest::one(&wire, u64::MAX);
    let mut dropped = 0;
    // Too short for a header, and for Ethernet's.
    for len in [0, 1, 11, 12, 25] {
        guest.queue(1, &vec![0; len], &[], 0);
        dropped += 1;
    }
    // Only space to write, a hole, and a frame longer than any.
    guest.queue(1, &[], &[], 100);
    guest.machine.kick(1);
    guest.machine.pump();
    dropped += 1;
    for buffer in [(0xffff_0000, 100), (0x8_0000, 80_000)] {
        let buffers = Buffers {
            readable: vec![buffer],
            writable: Vec::new(),
        };
        guest.driver.rings[1].send(&buffers);
        dropped += 1;
    }
    guest.machine.kick(1);
    guest.machine.pump();
    let returned = std::iter::from_fn(|| guest.driver.rings[1].take());
    assert!(returned.map(|used| used.len).eq([0; 8]));
    assert_eq!(guest.counters.sent_dropped(), dropped);
    // Segmentation that the host doesn't do.
    guest.restart(u64::MAX);
    guest.send(&[1, 3, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0], &frame(2000));
    guest.send(&[1, 0x81, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0], &frame(2000));
    assert_eq!(guest.used(1).len(), 2);
    assert_eq!(guest.counters.sent_dropped(), dropped + 2);
    assert!(wire.line().sent.is_empty() && guest.machine.failures.is_empty());
    guest.send(&PLAIN, &frame(14));
    assert_eq!(wire.line().sent, [(PLAIN, frame(14))]);
}

#[test]
fn a_frame_for_the_guest_is_in_the_first_buffer() {
    let wire = Wire::new();
    let mut guest = Guest::one(&wire, u64::MAX);
    for lens in [&[1526][..], &[12, 1514], &[5, 7, 3, 1600], &[1000, 1000]] {
        guest.give(0, lens);
        guest.give(0, lens);
        wire.deliver(PLAIN, frame(1514));
        guest.machine.pump();
        assert_eq!(guest.received(), [(spread(1), frame(1514))]);
        wire.deliver(PLAIN, frame(60));
        guest.machine.pump();
        assert_eq!(guest.received(), [(spread(1), frame(60))]);
    }
    assert_eq!(guest.counters.received(), 8);
    assert_eq!(guest.counters.received_bytes(), 4 * (1514 + 60));
}

#[test]
fn a_long_frame_is_spread_over_buffers() {
    let wire = Wire::new();
    let mut guest = Guest::one(&wire, u64::MAX);
    for _ in 0..60 {
        guest.post(0, &[1536]);
    }
    guest.machine.kick(0);
    guest.machine.pump();
    wire.deliver([1, 1, 54, 0, 180, 5, 34, 0, 16, 0, 0, 0], frame(65_000));
    guest.machine.pump();
    let used = guest.used(0);
    assert_eq!(used.len(), (65_000 + HEADER).div_ceil(1536));
    // All but the last one are full (5.1.9.4.1).
    assert!(
        used[..used.len() - 1]
            .iter()
            .all(|bytes| bytes.len() == 1536)
    );
    assert_eq!(
        used.concat()[..HEADER],
        [1, 1, 54, 0, 180, 5, 34, 0, 16, 0, 43, 0]
    );
    assert_eq!(used.concat()[HEADER..], frame(65_000));
}

#[test]
fn a_frame_waits_until_there_are_enough_buffers() {
    let wire = Wire::new();
    let mut guest = Guest::one(&wire, u64::MAX);
    guest.give(0, &[100]);
    wire.deliver(PLAIN, frame(1000));
    wire.deliver(PLAIN, frame(50));
    guest.machine.pump();
    for _ in 0..9 {
        guest.give(0, &[100]);
        assert!(guest.received().is_empty());
        // Nothing is read, and nothing watched, meanwhile.
        assert_eq!((wire.line().receives, guest.watched()), (2, 0));
    }
    guest.give(0, &[100]);
    assert_eq!(guest.received(), [(spread(11), frame(1000))]);
    guest.give(0, &[100]);
    assert_eq!(guest.received(), [(spread(1), frame(50))]);
    assert_eq!(guest.counters.received_dropped(), 0);
}

#[test]
fn buffers_and_a_waiting_frame_survive_nothing_but_a_pause_of_the_buffers() {
    let wire = Wire::new();
    let mut guest = Guest::one(&wire, u64::MAX);
    guest.give(0, &[100]);
    guest.give(0, &[200]);
    wire.deliver(PLAIN, frame(1000));
    guest.machine.pump();
    guest.machine.pause().expect("a device that drains");
    guest.machine.resume();
    guest.machine.pump();
    // The waiting frame is lost, its buffers are not.
    wire.deliver(PLAIN, frame(250));
    guest.machine.pump();
    assert_eq!(guest.received(), [(spread(2), frame(250))]);
}

#[test]
fn without_merging_a_frame_is_in_one_buffer_or_dropped() {
    let wire = Wire::new();
    let mut guest = Guest::one(&wire, !MRG_RXBUF);
    guest.give(0, &[1526]);
    guest.give(0, &[1526]);
    wire.deliver(PLAIN, frame(1515));
    wire.deliver(PLAIN, frame(1514));
    wire.deliver(PLAIN, frame(1000));
    guest.machine.pump();
    let wanted = [(spread(1), frame(1514)), (spread(1), frame(1000))];
    assert_eq!(guest.received(), wanted);
    assert_eq!(guest.counters.received_dropped(), 1);
}

#[test]
fn a_frame_that_the_driver_can_not_take_is_dropped() {
    let wire = Wire::new();
    let config = NetConfig {
        mtu: Some(1500),
        ..config()
    };
    let wanted = !(GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6);
    let mut guest = Guest::with(config, std::slice::from_ref(&wire), wanted, (None, None));
    guest.give(0, &[65_000]);
    let mut tcp = PLAIN;
    (tcp[0], tcp[1], tcp[4]) = (1, 1, 99);
    let mut valid = PLAIN;
    valid[0] = 2;
    for (header, len) in [(tcp, 3000), (PLAIN, 3000), (valid, 1514)] {
        wire.deliver(header, frame(len));
    }
    guest.machine.pump();
    assert_eq!(guest.received(), [(spread(1), frame(1514))]);
    assert_eq!(guest.counters.received_dropped(), 2);
}

#[test]
fn without_buffers_nothing_is_read_or_watched() {
    // The source is always readable, so a device that watched it would never rest.
    let wire = Wire::endless(100);
    let mut guest = Guest::one(&wire, u64::MAX);
    assert_eq!((wire.line().receives, guest.watched()), (0, 0));
    for _ in 0..3 {
        guest.post(0, &[200]);
        guest.give(0, &[200]);
        assert_eq!(guest.received().len(), 2);
        assert_eq!(guest.watched(), 0);
    }
    assert_eq!(wire.line().receives, 6);
}

#[test]
fn a_bad_buffer_breaks_the_device() {
    let whys = ["shorter than a frame's header", "not in guest memory"];
    for (buffer, why) in [(0x8_0000, 11), (0xf_ff00, 1000)].into_iter().zip(whys) {
        let mut guest = Guest::one(&Wire::endless(100), u64::MAX);
        let buffers = Buffers {
            readable: Vec::new(),
            writable: vec![buffer],
        };
        guest.driver.rings[0].send(&buffers);
        guest.machine.kick(0);
        guest.machine.pump();
        assert_eq!(guest.machine.failures.len(), 1);
        let text = guest.machine.failures[0].to_string();
        assert!(text.contains(why), "{text}");
        guest.machine.failures.clear();
        guest.restart(u64::MAX);
        guest.give(0, &[112]);
        assert_eq!(guest.received(), [(spread(1), frame(100))]);
    }
}

#[test]
fn a_frame_that_the_link_can_not_take_now_is_sent_later() {
    let wire = Wire::new();
    let mut guest = Guest::one(&wire, u64::MAX);
    wire.set_writable(false);
    wire.line().send_faults.push_back(LinkError::Busy);
    for len in [100, 101, 102] {
        guest.send(&PLAIN, &frame(len));
    }
    // Each further notification is a new try.
    assert_eq!(wire.line().sent.len(), 3);
    wire.line().sent.clear();
    wire.line().send_faults.push_back(LinkError::Busy);
    guest.queue(1, &[&PLAIN[..], &frame(200)].concat(), &[], 0);
    guest.send(&PLAIN, &frame(201));
    assert!(wire.line().sent.is_empty());
    assert_eq!(guest.watched(), 1);
    wire.set_writable(true);
    guest.machine.pump();
    let wanted = [(PLAIN, frame(200)), (PLAIN, frame(201))];
    assert_eq!(wire.line().sent, wanted);
    assert_eq!(guest.watched(), 0);
    assert_eq!(
        (guest.counters.sent(), guest.counters.sent_dropped()),
        (5, 0)
    );
}

/// Ascending cuts make pieces.
fn lens() -> impl Strategy<Value = Vec<u32>> {
    proptest::collection::vec(1..400_u32, 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn frames_for_the_guest_are_the_same_in_any_buffers(
        frames in proptest::collection::vec(14..3000_usize, 1..8),
        buffers in proptest::collection::vec(lens(), 40..60),
        burst in 1..10_usize,
    ) {
        let wire = Wire::new();
        let mut guest = Guest::one(&wire, u64::MAX);
        for len in &frames {
            wire.deliver(PLAIN, frame(*len));
        }
        let mut received = Vec::new();
        for (i, lens) in buffers.iter().cycle().take(400).enumerate() {
            // A buffer holds a header at least.
            guest.post(0, &[&[12], &lens[..]].concat());
            if i % burst == 0 {
                guest.machine.kick(0);
                guest.machine.pump();
                received.extend(guest.received().into_iter().map(|(_, frame)| frame));
            }
            if received.len() == frames.len() {
                break;
            }
        }
        let wanted: Vec<_> = frames.iter().map(|len| frame(*len)).collect();
        prop_assert_eq!(received, wanted);
    }

    #[test]
    fn frames_of_the_guest_are_the_same_in_any_pieces(
        frames in proptest::collection::vec((14..9000_usize, lens()), 1..8),
    ) {
        let wire = Wire::new();
        let mut guest = Guest::one(&wire, u64::MAX);
        for (len, lens) in &frames {
            let mut left = (len + HEADER) as u32;
            let lens: Vec<u32> = lens.iter().map(|piece| {
                let here = left.min(*piece);
                left -= here;
                here
            }).collect();
            guest.queue(1, &[&PLAIN[..], &frame(*len)].concat(), &lens, 0);
        }
        guest.machine.kick(1);
        guest.machine.pump();
        let wanted: Vec<_> = frames.iter().map(|(len, _)| (PLAIN, frame(*len))).collect();
        prop_assert_eq!(&wire.line().sent, &wanted);
        prop_assert_eq!(guest.used(1).len(), frames.len());
    }
}

#[test]
fn the_longest_frame_passes() {
    let wire = Wire::new();
    let mut guest = Guest::one(&wire, u64::MAX);
    guest.send(&PLAIN, &frame(MAX_FRAME));
    guest.send(&PLAIN, &frame(MAX_FRAME + 1));
    assert_eq!(wire.line().sent, [(PLAIN, frame(MAX_FRAME))]);
    guest.give(0, &[(HEADER + MAX_FRAME) as u32]);
    wire.deliver(PLAIN, frame(MAX_FRAME));
    guest.machine.pump();
    assert_eq!(guest.received(), [(spread(1), frame(MAX_FRAME))]);
}

/// A chain of pieces of one byte each, in an indirect table.
fn tiny(guest: &mut Guest, queue: u16, nth: u64, count: u64) {
    let at = 0x4_0000 + nth * 0x1_0000;
    let pieces = (0..count).map(|i| (at + 0x8000 + i, 1)).collect();
    let (readable, writable) = if queue == 0 {
        (Vec::new(), pieces)
    } else {
        (pieces, Vec::new())
    };
    let buffers = Buffers { readable, writable };
    guest.driver.rings[usize::from(queue)].send_indirect(at, &buffers);
    guest.machine.kick(queue);
    guest.machine.pump();
}

#[test]
fn a_frame_of_the_guest_is_in_up_to_a_thousand_pieces() {
    let wire = Wire::new();
    let mut guest = Guest::one(&wire, u64::MAX);
    tiny(&mut guest, 1, 0, 1024);
    assert_eq!(wire.line().sent[0].1.len(), 1024 - HEADER);
    // With the header that is one more than a system call takes.
    let mut pieces: Vec<_> = (0..1024).map(|i| (0x6_0000 + i, 1)).collect();
    pieces[0].1 = 13;
    let buffers = Buffers {
        readable: pieces,
        writable: Vec::new(),
    };
    guest.driver.rings[1].send_indirect(0x5_0000, &buffers);
    guest.machine.kick(1);
    guest.machine.pump();
    assert_eq!(
        (guest.counters.sent(), guest.counters.sent_dropped()),
        (1, 1)
    );
    assert!(guest.machine.failures.is_empty());
}

#[test]
fn a_frame_for_the_guest_needs_up_to_a_thousand_pieces() {
    let wire = Wire::new();
    let mut guest = Guest::one(&wire, u64::MAX);
    for nth in 0..10 {
        tiny(&mut guest, 0, nth, 200);
    }
    // There is space, but not in one system call.
    wire.deliver(PLAIN, frame(1500));
    wire.deliver(PLAIN, frame(900));
    guest.machine.pump();
    let used: Vec<_> = std::iter::from_fn(|| guest.driver.rings[0].take()).collect();
    let lens: Vec<u32> = used.iter().map(|used| used.len).collect();
    assert_eq!(lens, [200, 200, 200, 200, 112]);
    assert_eq!(
        (guest.counters.received(), guest.counters.received_dropped()),
        (1, 1)
    );
    // The other buffers are still there.
    guest.machine.pause().expect("a device that drains");
    guest.machine.resume();
    wire.deliver(PLAIN, frame(900));
    guest.machine.pump();
    assert_eq!(guest.counters.received(), 2);
    tiny(&mut guest, 0, 0, 1024);
    assert_eq!(guest.machine.failures.len(), 1);
}
