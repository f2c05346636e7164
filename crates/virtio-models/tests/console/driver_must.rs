// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The "driver MUST" sentences of virtio 1.4, section 5.3, and what happens if a driver violates them.

use crate::support::*;

/// A rule, and a driver that violates it.
type Rule = (&'static str, fn());

/// A driver that gives the wrong kind of buffer breaks the device, and starts it again.
fn breaks(queue: u16, readable: Vec<u8>, writable: u32) {
    let place = Place::new();
    let mut guest = Guest::with_port(place.server());
    guest.queue(queue, readable, writable);
    let failure = guest
        .machine
        .failures
        .pop()
        .expect("a broken rule")
        .to_string();
    assert!(
        failure.contains("buffer of the console is device-"),
        "{failure}"
    );
}

const RULES: &[Rule] = &[
    (
        "5.3.6.1: a device-readable buffer MUST NOT be put in a receiveq",
        || {
            breaks(RX, vec![1], 0);
        },
    ),
    (
        "5.3.6.1: a device-writable buffer MUST NOT be put in a transmitq",
        || {
            breaks(TX, vec![1], 1);
        },
    ),
    ("5.3.6.2.2: a DEVICE_READY message MUST be sent", || {
        let mut guest = Guest::new(device(None, vec![port("x", silent())]));
        guest.tell(1, PORT_READY, 1);
        guest.tell(1, PORT_OPEN, 1);
        assert!(guest.messages().is_empty());
    }),
    (
        "5.3.6.2.2: CONSOLE_PORT MUST be answered by PORT_OPEN with value 1",
        || {
            // Without it the guest gets no data, and all of it after it.
            let place = Place::new();
            let mut guest = Guest::new(device(Some(place.server()), vec![port("x", silent())]));
            let client = place.client();
            write(&client, b"data");
            guest.tell(0, DEVICE_READY, 1);
            guest.messages();
            guest.tell(0, PORT_READY, 1);
            guest.queue(0, Vec::new(), 64);
            guest.tell(0, PORT_OPEN, 0);
            assert!(guest.data(0).is_empty());
            guest.tell(0, PORT_OPEN, 1);
            assert_eq!(guest.data(0), b"data");
        },
    ),
];

#[test]
fn drivers_that_break_the_rules_harm_nobody() {
    for (rule, violate) in RULES {
        eprintln!("{rule}");
        violate();
    }
}
