// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests that break the protocol's rules.

use virtio_models::vsock::HEADER;

use crate::support::*;

#[test]
fn packets_of_or_for_others_are_ignored() {
    let mut guest = Guest::new();
    let _listener = guest.place.listen(52);
    guest.give(1, 64);
    for (src_cid, dst_cid) in [
        (CID, 0),
        (CID, 1),
        (CID, 4),
        (CID, CID),
        (4, HOST),
        (HOST, HOST),
    ] {
        for high in [0, 1 << 32] {
            let strange = Packet {
                src_cid: src_cid | high,
                dst_cid,
                ..packet(REQUEST)
            };
            assert!(guest.sends(&strange));
        }
    }
    let high = Packet {
        dst_cid: HOST | 1 << 32,
        ..packet(REQUEST)
    };
    assert!(guest.sends(&high));
    assert!(guest.packets().is_empty());
    assert_eq!(guest.counters.refused(), 13);
}

#[test]
fn unknown_types_are_reset_as_such() {
    let mut guest = Guest::new();
    let socket = guest.connect();
    for kind in [0, 2, 3, u16::MAX] {
        for op in [REQUEST, RW, SHUTDOWN, UPDATE] {
            guest.give(1, 64);
            assert!(guest.sends(&Packet { kind, ..packet(op) }));
            let reset = guest.packet();
            assert_eq!((reset.op, reset.kind), (RST, kind));
        }
        assert!(guest.sends(&Packet {
            kind,
            ..packet(RST)
        }));
    }
    assert!(guest.packets().is_empty());
    // The connection with the same ports is another one.
    assert!(guest.sends(&packet(RW).with(b"still")));
    assert_eq!(read(&socket), (b"still".to_vec(), false));
}

#[test]
fn packets_of_no_connection_are_reset() {
    let mut guest = Guest::new();
    for op in [0, RESPONSE, SHUTDOWN, RW, UPDATE, QUERY, 8, u16::MAX] {
        guest.give(1, 64);
        assert!(guest.sends(&packet(op)));
        assert_eq!(guest.ops(), [RST], "{op}");
    }
    guest.give(1, 64);
    assert!(guest.sends(&packet(RST)));
    assert!(guest.packets().is_empty());
}

#[test]
fn a_connection_that_breaks_a_rule_is_reset() {
    let lying = |len| Packet {
        len,
        ..packet(RW).with(b"short")
    };
    let shut = Packet {
        flags: SEND,
        ..packet(SHUTDOWN)
    };
    let late = Packet {
        len: 0,
        ..packet(RW)
    };
    for wrong in [
        vec![packet(REQUEST)],
        vec![packet(RESPONSE)],
        vec![packet(0)],
        vec![packet(8)],
        vec![packet(u16::MAX)],
        vec![lying(6)],
        vec![lying(65_536)],
        vec![lying(u32::MAX)],
        vec![shut, late],
    ] {
        let mut guest = Guest::new();
        let socket = guest.connect();
        guest.give(2, 64);
        for packet in &wrong {
            assert!(guest.sends(packet));
        }
        assert_eq!(guest.ops(), [RST], "{wrong:?}");
        assert!(is_closed(&socket));
        assert_eq!(guest.counters.removed(), 1);
    }
}

#[test]
fn a_packet_may_be_shorter_than_its_buffers() {
    let mut guest = Guest::new();
    let socket = guest.connect();
    let long = Packet {
        len: 3,
        ..packet(RW).with(b"abcdefgh")
    };
    assert!(guest.sends(&long));
    assert_eq!(read(&socket), (b"abc".to_vec(), false));
    guest.give(1, 64);
    assert!(guest.sends(&packet(RW)), "no data at all");
    assert!(guest.packets().is_empty());
}

#[test]
fn answers_before_a_question_are_reset() {
    let mut guest = Guest::new();
    let client = guest.place.client("CONNECT 1000\n");
    guest.machine.pump();
    // The request has no buffer yet, so that the guest guesses its port.
    for op in [RESPONSE, RW, UPDATE] {
        let guess = Packet {
            dst_port: 1 << 30 | 1,
            ..packet(op)
        };
        assert!(guest.sends(&guess));
    }
    assert!(is_closed(&client));
    guest.give(4, 64);
    let ops = guest.ops();
    assert!(ops.iter().all(|op| *op == RST), "{ops:?}");
}

#[test]
fn headers_that_are_too_short_are_ignored() {
    let mut guest = Guest::new();
    guest.give(1, 64);
    let request = packet(REQUEST).bytes();
    for len in [1, 4, 43] {
        guest.queue(TX, request[..len].to_vec(), 0);
        assert_eq!(guest.replies(TX).len(), 1);
    }
    guest.queue(TX, Vec::new(), HEADER as u32);
    assert_eq!(guest.replies(TX).len(), 1);
    assert!(guest.packets().is_empty());
    assert_eq!(guest.counters.refused(), 4);
}

#[test]
fn a_receive_buffer_without_room_for_data_breaks_the_device() {
    for len in [1, 43, 44] {
        let mut guest = Guest::new();
        guest.queue(RX, Vec::new(), len);
        let failures = guest.machine.failures;
        assert_eq!(failures.len(), 1, "{len}");
        assert!(failures[0].to_string().contains("no room for data"));
    }
}

#[test]
fn a_guest_that_takes_no_resets_sends_no_more() {
    let mut guest = Guest::new();
    let strange = |port| Packet {
        src_port: port,
        ..packet(RW)
    };
    let mut taken = 0;
    for port in 0..300 {
        taken += u32::from(guest.sends(&strange(port)));
        // The ring has room for as many.
        if taken as usize + 40 < port as usize {
            break;
        }
    }
    assert_eq!(taken, 256);
    // Each that it takes lets it send another one.
    let mut resets = Vec::new();
    while resets.len() < 256 {
        guest.give(8, 64);
        resets.extend(guest.packets());
    }
    assert!(resets.iter().all(|packet| packet.op == RST));
    let ports: Vec<_> = resets.iter().map(|packet| packet.dst_port).collect();
    assert_eq!(ports, (0..256).collect::<Vec<_>>());
    let rest = guest.replies(TX).len();
    assert!(rest > 0);
}

#[test]
fn a_guest_may_connect_and_reset_for_ever() {
    let mut guest = Guest::new();
    let listener = guest.place.listen(52);
    rustix::net::listen(&listener, 4096).unwrap();
    listener.set_nonblocking(true).unwrap();
    // No receive buffer, so nothing is ever told.
    for _ in 0..2000 {
        assert!(guest.sends(&packet(REQUEST)));
        assert!(guest.sends(&packet(RST)));
        while listener.accept().is_ok() {}
    }
    assert_eq!(
        (guest.counters.added(), guest.counters.removed()),
        (2000, 2000)
    );
    guest.give(1, 64);
    assert!(guest.packets().is_empty());
}
