// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A restore: no connection hangs.

use serde_json::json;
use virtio_models::vsock::{Patience, VsockState};
use virtio_transport::testing::{Machine, MmioPort};

use crate::support::*;

/// A machine with one connection each way, saved and restored.
fn restored(patience: Patience, buffers: usize) -> (Guest, [Packet; 2]) {
    let mut guest = Guest::new();
    let from = guest.connect();
    let (to, request) = guest.accept();
    for _ in 0..buffers {
        guest.queue(EVENTS, Vec::new(), 4);
    }
    guest.machine.pause().expect("a device that stops");
    let guest = guest.restored(Place::new(), patience);
    drop((from, to));
    (guest, [packet(RW), request.answer(RW)])
}

#[test]
fn the_guest_is_told_by_an_event_and_by_resets() {
    let (mut guest, known) = restored(LONG, 2);
    let events = guest.replies(EVENTS);
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].len, &events[0].bytes[..]), (4, &[0; 4][..]));
    guest.give(8, 64);
    let resets = guest.packets();
    let told: Vec<_> = resets
        .iter()
        .map(|packet| (packet.op, packet.src_port))
        .collect();
    for packet in &known {
        assert!(told.contains(&(RST, packet.dst_port)), "{told:?}");
    }
    assert_eq!(told.len(), 2);
    // A packet of an old connection, on its way at the save.
    for packet in known {
        assert!(guest.sends(&packet.with(b"data")));
    }
    assert_eq!(guest.ops(), [RST, RST]);
}

#[test]
fn an_event_waits_for_a_buffer() {
    let (mut guest, _) = restored(LONG, 0);
    assert!(guest.replies(EVENTS).is_empty());
    guest.queue(EVENTS, Vec::new(), 4);
    assert_eq!(guest.replies(EVENTS).len(), 1);
}

#[test]
fn the_event_is_sent_once() {
    let (mut guest, _) = restored(LONG, 2);
    assert_eq!(guest.replies(EVENTS).len(), 1);
    guest.queue(EVENTS, Vec::new(), 4);
    guest.machine.pause().unwrap();
    guest.machine.resume();
    assert!(guest.replies(EVENTS).is_empty());
    // Unless it is restored again.
    guest.machine.pause().unwrap();
    let mut guest = guest.restored(Place::new(), LONG);
    assert_eq!(guest.replies(EVENTS).len(), 1);
}

#[test]
fn no_process_is_accepted_before_the_guest_has_heard() {
    let (mut guest, _) = restored(LONG, 2);
    guest.give(3, 64);
    assert_eq!(guest.ops(), [RST, RST]);
    let _client = guest.place.client("CONNECT 9\n");
    assert!(guest.packets().is_empty());
    // The driver has acted, and returns the buffer.
    assert_eq!(guest.replies(EVENTS).len(), 1);
    guest.queue(EVENTS, Vec::new(), 4);
    assert_eq!(guest.packet().op, REQUEST);
}

#[test]
fn a_driver_without_event_buffers_delays_only_for_a_while() {
    for buffers in [0, 1] {
        let (mut guest, _) = restored(SHORT, buffers);
        guest.give(4, 64);
        let client = guest.place.client("CONNECT 9\n");
        let (driver, mut ops) = (&mut guest.driver, Vec::new());
        guest.machine.pump_until(|machine| {
            while let Some((_, reply)) = driver.receive(machine, RX) {
                ops.push(u16::from(reply.bytes[30]));
            }
            ops.contains(&REQUEST)
        });
        drop(client);
    }
}

#[test]
fn the_hosts_ports_go_on() {
    let (mut guest, known) = restored(LONG, 2);
    guest.replies(EVENTS);
    guest.queue(EVENTS, Vec::new(), 4);
    guest.give(2, 64);
    guest.packets();
    let (_, request) = guest.accept();
    assert_eq!(request.src_port, known[1].dst_port + 1);
}

#[test]
fn a_request_that_the_guest_never_saw_is_not_reset() {
    let mut guest = Guest::new();
    let _client = guest.place.client("CONNECT 9\n");
    guest.machine.pump();
    guest.machine.pause().unwrap();
    let mut guest = guest.restored(Place::new(), LONG);
    guest.give(1, 64);
    assert!(guest.packets().is_empty());
}

#[test]
fn a_state_with_too_many_connections_is_refused() {
    let mut guest = Guest::new();
    guest.machine.pause().unwrap();
    let (port, mut worker) = guest.machine.save();
    let state = VsockState {
        last_port: 0,
        connections: vec![[1, 2]; 5000],
    };
    worker.device.state = json!(state);
    let place = Place::new();
    let memory = virtio_transport::testing::memory(1 << 20);
    let device = Box::new(place.device(LONG));
    let mut other = Machine::<MmioPort>::new(device, &memory);
    let error = other.restore(&(port, worker)).unwrap_err();
    assert!(error.to_string().contains("too many"), "{error}");
}
