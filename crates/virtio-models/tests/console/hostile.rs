// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Drivers that say anything.

use proptest::prelude::*;

use crate::support::*;

#[test]
fn messages_about_nothing_are_taken() {
    let mut guest = Guest::with_port(silent());
    for id in [0, 2, 31, 32, u32::MAX] {
        for event in 0..10 {
            guest.tell(id, event, 1);
        }
    }
    for len in [0, 1, 7, 9, 4096] {
        guest.queue(FROM_DRIVER, vec![0xff; len.max(1)], 0);
    }
    assert_eq!(guest.replies(FROM_DRIVER).len(), 5);
    assert!(guest.machine.failures.is_empty());
    assert!(guest.messages().is_empty());
}

#[test]
fn a_flood_of_messages_is_answered_once() {
    let mut guest = Guest::new(device(None, vec![port("x", silent()), port("y", silent())]));
    for _ in 0..500 {
        guest.tell(0, DEVICE_READY, 1);
        guest.tell(1, PORT_READY, 1);
        guest.tell(2, PORT_OPEN, 1);
    }
    assert_eq!(guest.messages().len(), 2, "two ports");
    for _ in 0..500 {
        guest.tell(1, PORT_READY, 1);
    }
    assert_eq!(guest.messages(), [(1, PORT_NAME, 1, b"x".to_vec())]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a driver and a client do, a port passes the bytes in order, and the client's end is told.
    #[test]
    fn bytes_stay_in_order(steps in prop::collection::vec((0..7_u8, 1..5000_u32), 1..60)) {
        let place = Place::new();
        let mut guest = Guest::with_port(place.server());
        let client = place.client();
        let stream = bytes(1 << 20);
        let (mut to_guest, mut from_guest) = (0, 0);
        let (mut at_guest, mut at_client) = (Vec::new(), Vec::new());
        for (what, len) in steps {
            let free = |guest: &Guest, queue: u16| guest.waiting[usize::from(queue)] < 60;
            match what {
                0 if free(&guest, TX) => {
                    let piece = &stream[from_guest..from_guest + len as usize];
                    from_guest += len as usize;
                    guest.queue(TX, piece.to_vec(), 0);
                }
                1 if free(&guest, RX) => guest.queue(RX, Vec::new(), len),
                2 => to_guest += write(&client, &stream[to_guest..to_guest + len as usize]),
                3 => at_client.extend(read(&client).0),
                4 => guest.tell(1, PORT_OPEN, (len % 2) as u16),
                5 => {
                    guest.machine.pause().expect("a device that stops");
                    guest.machine.resume();
                }
                _ => at_guest.extend(guest.data(RX)),
            }
        }
        at_client.extend(read(&client).0);
        at_guest.extend(guest.data(RX));
        prop_assert!(at_client == stream[..at_client.len()] && at_client.len() <= from_guest);
        prop_assert!(at_guest == stream[..at_guest.len()] && at_guest.len() <= to_guest);
        guest.replies(TX);
        while at_client.len() < from_guest {
            at_client.extend(read(&client).0);
            guest.replies(TX);
        }
        prop_assert!(at_client == stream[..from_guest]);
    }
}
