// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Links that fail and come back, and frames on a stream socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_models::net::{LinkError, Offloads, Stream};
use virtio_transport::device::Event;
use virtio_transport::registers::NEEDS_RESET;
use virtio_transport::testing::Port;

use crate::limits::limiter;
use crate::support::*;

const PLAIN: [u8; HEADER] = [0; HEADER];

fn error() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

#[test]
fn a_link_is_down_until_it_is_writable() {
    let wire = Wire::new();
    let mut guest = Guest::one(&wire, u64::MAX);
    guest.give(0, &[200]);
    assert!(guest.is_link_up());
    wire.set_writable(false);
    for _ in 0..3 {
        wire.line().send_faults.push_back(LinkError::Down(error()));
    }
    for _ in 0..5 {
        guest.send(&PLAIN, &frame(60));
    }
    // The driver is told, and its frames are returned.
    assert!(!guest.is_link_up() && guest.machine.port.take_interrupts().config);
    assert_eq!(guest.used(1).len(), 5);
    assert_eq!(guest.counters.sent_dropped(), 5);
    assert_eq!(guest.notices().len(), 1);
    assert_eq!(guest.machine.port.status() & NEEDS_RESET, 0);
    // An event from before the failure changes nothing.
    let (worker, poller) = (&mut guest.machine.worker, &mut guest.machine.poller);
    worker.process(poller, Event::Source(2), &mut Vec::new());
    assert!(!guest.is_link_up() && guest.notices().len() == 1);
    wire.line().send_faults.clear();
    wire.set_writable(true);
    guest.machine.pump();
    assert!(guest.is_link_up() && guest.machine.port.take_interrupts().config);
    assert_eq!(guest.notices()[1..], ["the network link is up again"]);
    guest.send(&PLAIN, &frame(60));
    wire.deliver(PLAIN, frame(100));
    guest.machine.pump();
    assert_eq!((wire.line().sent.len(), guest.received().len()), (1, 1));
    assert!(guest.machine.failures.is_empty());
}

#[test]
fn a_lost_link_is_left_alone() {
    for receives in [false, true] {
        let wire = Wire::new();
        let mut guest = Guest::one(&wire, u64::MAX);
        guest.give(0, &[200]);
        if receives {
            wire.line()
                .receive_faults
                .push_back(LinkError::Lost(error()));
            wire.deliver(PLAIN, frame(60));
            guest.machine.pump();
        } else {
            wire.line().send_faults.push_back(LinkError::Lost(error()));
        }
        for _ in 0..3 {
            guest.send(&PLAIN, &frame(60));
        }
        assert!(!guest.is_link_up() && guest.machine.port.take_interrupts().config);
        assert_eq!(guest.watched(), 0);
        assert_eq!(guest.notices().len(), 1);
        assert_eq!(guest.used(1).len(), 3);
        // Another driver finds it lost, too.
        guest.restart(u64::MAX);
        wire.deliver(PLAIN, frame(60));
        guest.give(0, &[200]);
        guest.send(&PLAIN, &frame(60));
        assert!(!guest.is_link_up() && wire.line().sent.is_empty());
        assert_eq!((guest.notices().len(), guest.watched()), (1, 0));
        assert!(guest.machine.failures.is_empty());
    }
}

#[test]
fn frames_that_the_host_refuses_are_dropped_and_told_once() {
    let wire = Wire::new();
    let mut guest = Guest::one(&wire, u64::MAX);
    guest.give(0, &[200]);
    for _ in 0..3 {
        wire.line()
            .send_faults
            .push_back(LinkError::Refused(error()));
        guest.send(&PLAIN, &frame(60));
    }
    guest.send(&PLAIN, &frame(61));
    assert_eq!(wire.line().sent, [(PLAIN, frame(61))]);
    assert_eq!(
        (guest.counters.sent(), guest.counters.sent_dropped()),
        (1, 3)
    );
    assert_eq!((guest.notices().len(), guest.is_link_up()), (1, true));
    for _ in 0..3 {
        let refused = LinkError::Refused(error());
        wire.line().receive_faults.push_back(refused);
    }
    // It is not asked again before its source is ready.
    guest.give(0, &[200]);
    assert_eq!(guest.counters.received_dropped(), 1);
    wire.deliver(PLAIN, frame(62));
    guest.machine.pump();
    assert_eq!(guest.counters.received_dropped(), 3);
    assert_eq!(guest.received().len(), 1);
}

#[test]
fn the_link_does_what_the_driver_accepted() {
    for (wanted, offloads) in [
        (u64::MAX, (true, true, true)),
        (!GUEST_TSO4, (true, false, true)),
        (!GUEST_TSO6, (true, true, false)),
        (
            !(GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6),
            (false, false, false),
        ),
    ] {
        let wire = Wire::new();
        let mut guest = Guest::one(&wire, 0);
        assert_eq!(wire.line().offloads, Some(Offloads::default()));
        guest.restart(wanted);
        let (csum, tso4, tso6) = offloads;
        assert_eq!(wire.line().offloads, Some(Offloads { csum, tso4, tso6 }));
    }
}

#[test]
fn an_alarm_tells_of_frames_while_the_driver_waits_for_some() {
    let wires = [Wire::with_alarm(), Wire::with_alarm()];
    let mut guest = Guest::new(&wires, u64::MAX);
    wires[0].ring(frame(60));
    guest.machine.pump();
    assert_eq!(wires[0].line().receives, 0, "there is no buffer");
    for _ in 0..2 {
        guest.give(0, &[200]);
    }
    assert_eq!(guest.received().len(), 1);
    wires[0].ring(frame(61));
    guest.machine.pump();
    assert_eq!(guest.received().len(), 1);
    // The other pair has an alarm of its own.
    guest.command(4, &[4, 0, 2, 0]);
    guest.give(2, &[200]);
    wires[1].ring(frame(62));
    guest.machine.pump();
    assert_eq!(guest.used(2).len(), 1);
    guest.restart(u64::MAX);
    assert_eq!(guest.watched(), 0);
    guest.give(0, &[200]);
    wires[0].ring(frame(63));
    guest.machine.pump();
    assert_eq!(guest.received().len(), 1);
}

#[test]
fn a_link_that_can_not_be_set_up_needs_a_reset() {
    let wire = Wire::new();
    wire.line()
        .configure_faults
        .push_back(LinkError::Refused(error()));
    let mut guest = Guest::one(&wire, u64::MAX);
    assert_ne!(guest.machine.port.status() & NEEDS_RESET, 0);
    assert_eq!(guest.watched(), 0);
    guest.machine.failures.clear();
    guest.restart(u64::MAX);
    guest.send(&PLAIN, &frame(60));
    assert_eq!(wire.line().sent.len(), 1);
    // One that is lost is only that.
    let wire = Wire::new();
    wire.line()
        .configure_faults
        .push_back(LinkError::Lost(error()));
    let guest = Guest::one(&wire, u64::MAX);
    assert!(!guest.is_link_up() && guest.machine.failures.is_empty());
}

/// A guest whose link is a socket, and the other end.
fn stream() -> (Guest, UnixStream) {
    let (ours, peer) = UnixStream::pair().expect("a socket pair");
    peer.set_nonblocking(true).expect("a socket");
    let link = Stream::new(ours.into()).expect("a socket");
    let guest = Guest::on(config(), vec![Box::new(link)], u64::MAX, (None, None));
    (guest, peer)
}

/// A frame with its length.
fn packed(len: usize) -> Vec<u8> {
    [&(len as u32).to_be_bytes()[..], &frame(len)].concat()
}

#[test]
fn frames_come_from_a_stream_in_any_pieces() {
    for piece in [1, 3, 5, 100, 5000] {
        let (mut guest, mut peer) = stream();
        let bytes = [packed(60), packed(1514), packed(1), packed(14)].concat();
        for _ in 0..6 {
            guest.give(0, &[1526]);
        }
        for piece in bytes.chunks(piece) {
            peer.write_all(piece).expect("space");
            guest.machine.pump();
        }
        let received: Vec<_> = guest
            .received()
            .into_iter()
            .map(|(_, frame)| frame)
            .collect();
        assert_eq!(received, [60, 1514, 1, 14].map(frame));
    }
}

#[test]
fn frames_in_the_devices_memory_are_not_forgotten() {
    let (mut guest, mut peer) = stream();
    for _ in 0..5 {
        peer.write_all(&packed(100)).expect("space");
    }
    guest.machine.pump();
    for _ in 0..5 {
        guest.give(0, &[200]);
        assert_eq!(guest.received().len(), 1);
        assert_eq!(guest.watched(), 0);
    }
    // More than one turn's.
    for _ in 0..150 {
        guest.post(0, &[200]);
        peer.write_all(&packed(50)).expect("space");
    }
    guest.machine.kick(0);
    guest.machine.pump();
    assert_eq!(guest.received().len(), 150);
}

#[test]
fn frames_go_to_a_stream_even_if_it_is_full() {
    let (mut guest, mut peer) = stream();
    let mut wanted = Vec::new();
    for round in 0..100 {
        let len = 60_000 + round;
        guest.queue(1, &[&PLAIN[..], &frame(len)].concat(), &[], 0);
        guest.machine.kick(1);
        guest.machine.pump();
        wanted.extend(packed(len));
        if !guest.used(1).is_empty() {
            continue;
        }
        // It is full, and a part of a frame is sent. A reset doesn't change that.
        assert_eq!(guest.watched(), 1);
        let mut sent = Vec::new();
        guest.machine.pump_until(|_| {
            let _ = peer.read_to_end(&mut sent);
            sent.len() == wanted.len()
        });
        assert!(sent == wanted, "the bytes are in order");
        assert_eq!(guest.used(1), [Vec::<u8>::new()]);
        assert_eq!(guest.counters.sent_dropped(), 0);
        return;
    }
    panic!("a socket that is never full");
}

#[test]
fn a_peer_that_goes_is_a_lost_link() {
    for how in 0..3 {
        let (mut guest, mut peer) = stream();
        guest.give(0, &[200]);
        match how {
            0 => {}
            1 => peer.write_all(&[0, 0, 0, 9, 1]).expect("space"),
            _ => {
                peer.write_all(&packed(60)).expect("space");
                guest.machine.pump();
                assert_eq!(guest.received().len(), 1);
            }
        }
        drop(peer);
        guest.give(0, &[200]);
        assert!(!guest.is_link_up());
        assert_eq!((guest.watched(), guest.notices().len()), (0, 1));
        guest.send(&PLAIN, &frame(60));
        guest.send(&PLAIN, &frame(60));
        assert_eq!((guest.used(1).len(), guest.notices().len()), (2, 1));
        assert!(guest.machine.failures.is_empty());
    }
}

#[test]
fn a_peer_that_is_gone_when_the_guest_sends_is_a_lost_link() {
    let (mut guest, peer) = stream();
    drop(peer);
    guest.send(&PLAIN, &frame(60));
    assert!(!guest.is_link_up() && guest.notices().len() == 1);
}

#[test]
fn a_peer_that_breaks_the_protocol_is_a_lost_link() {
    for len in [0, 70_000, u32::MAX] {
        let (mut guest, mut peer) = stream();
        guest.give(0, &[200]);
        peer.write_all(&len.to_be_bytes()).expect("space");
        peer.write_all(&[0; 100]).expect("space");
        guest.machine.pump();
        assert!(!guest.is_link_up());
        let text = guest.notices().concat();
        assert!(text.contains(&format!("a frame of {len} bytes")), "{text}");
    }
}

#[test]
fn an_answer_that_comes_at_once_needs_no_event() {
    let wire = Wire::new();
    wire.line().is_mirror = true;
    let mut guest = Guest::one(&wire, u64::MAX);
    for _ in 0..200 {
        guest.give(0, &[2000]);
        guest.send(&[0; HEADER], &frame(60));
        assert_eq!((guest.used(0).len(), guest.used(1).len()), (1, 1));
    }
}

#[test]
fn where_nobody_answers_it_seldom_looks() {
    let wire = Wire::new();
    let mut guest = Guest::one(&wire, u64::MAX);
    guest.give(0, &[2000]);
    let before = wire.line().receives;
    for _ in 0..650 {
        guest.send(&[0; HEADER], &frame(60));
        assert_eq!(guest.used(1).len(), 1);
    }
    assert_eq!(wire.line().receives - before, 10);
    // A later answer is one event, as ever.
    wire.deliver([0; HEADER], frame(60));
    guest.machine.pump();
    assert_eq!(guest.used(0).len(), 1);
}

#[test]
fn a_limit_is_no_reason_to_doubt_an_answer() {
    let wires = [Wire::new(), Wire::new()];
    let (rx, clock) = limiter(1_000_000);
    let mut guest = Guest::with(config(), &wires, u64::MAX, (rx, None));
    assert_eq!(guest.command(4, &[4, 0, 2, 0]), 0);
    guest.give(0, &[2000]);
    guest.give(2, &[2000]);
    let counters = Arc::clone(&guest.counters);
    // The other pair receives the only frame that is allowed now.
    wires[1].deliver([0; HEADER], frame(60));
    guest.machine.pump_until(|_| counters.received() == 1);
    guest.queue(1, &[&[0; HEADER][..], &frame(60)].concat(), &[], 0);
    guest.machine.kick(1);
    guest.machine.pump_until(|_| counters.sent() == 1);
    clock.fetch_add(10_000, Ordering::Relaxed);
    guest.machine.pump();
    wires[0].line().is_mirror = true;
    guest.send(&[0; HEADER], &frame(60));
    assert_eq!(guest.used(0).len(), 1);
}
