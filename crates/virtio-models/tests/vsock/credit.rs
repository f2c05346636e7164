// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Credit, both ways.

use virtio_models::vsock::{BUFFER, LITTLE, MAX_PACKET};

use crate::support::*;

#[test]
fn the_host_sends_no_more_than_the_guests_credit() {
    let mut guest = Guest::new();
    let socket = guest.connect();
    write(&socket, &bytes(100_000));
    let credit = |alloc, taken| Packet {
        buf_alloc: alloc,
        fwd_cnt: taken,
        ..packet(UPDATE)
    };
    // Each credit, and how much may come by then in all. The last ones are lies: less than before, or more than was sent.
    assert!(guest.sends(&credit(0, 0)));
    guest.give(20, 4096);
    assert_eq!(guest.ops(), [QUERY]);
    let mut received = 0;
    for (alloc, taken, most) in [
        (10, 0, 10),
        (10, 5, 15),
        (5000, 15, 5015),
        (100, 5015, 5115),
        (50, 5100, 5150),
        (20, 5100, 5150),
        (0, 5150, 5150),
        (1000, 9000, 5150),
        (1000, 5150, 6150),
    ] {
        assert!(guest.sends(&credit(alloc, taken)));
        let packets = guest.packets();
        received += packets
            .iter()
            .map(|packet| packet.data.len())
            .sum::<usize>();
        assert_eq!(received, most, "{alloc} {taken}");
        let queries = packets.iter().filter(|packet| packet.op == QUERY).count();
        assert!(queries <= 1, "it asks once");
        guest.give(packets.len(), 4096);
    }
}

#[test]
fn a_guest_without_credit_is_asked_once() {
    let mut guest = Guest::new();
    let socket = guest.connect();
    let poor = Packet {
        buf_alloc: 4,
        ..packet(UPDATE)
    };
    assert!(guest.sends(&poor));
    guest.give(8, 100);
    write(&socket, b"12345678");
    assert_eq!(guest.ops(), [RW, QUERY]);
    for _ in 0..3 {
        write(&socket, b"more");
        assert!(guest.packets().is_empty());
    }
    // The same again is no credit.
    assert!(guest.sends(&poor));
    assert!(guest.packets().is_empty());
    assert!(guest.sends(&Packet { fwd_cnt: 4, ..poor }));
    let packets = guest.packets();
    assert_eq!((packets[0].op, &packets[0].data[..]), (RW, &b"5678"[..]));
    assert_eq!(packets[1].op, QUERY);
}

#[test]
fn a_guest_is_told_of_space_when_it_knows_of_little() {
    assert_eq!((BUFFER, LITTLE), (65_536, 4096));
    let mut guest = Guest::new();
    let socket = guest.connect();
    guest.give(4, 64);
    let mut sent = 0;
    let threshold = (BUFFER - LITTLE) as usize;
    while sent + 1024 < threshold {
        assert!(guest.sends(&packet(RW).with(&bytes(1024))));
        sent += read(&socket).0.len();
        assert!(guest.packets().is_empty(), "{sent}");
    }
    assert!(guest.sends(&packet(RW).with(&bytes(threshold - sent))));
    let update = guest.packet();
    assert_eq!((update.op, update.buf_alloc), (UPDATE, BUFFER));
    assert_eq!(update.fwd_cnt as usize, threshold);
}

#[test]
fn a_guest_that_asks_is_told() {
    let mut guest = Guest::new();
    let socket = guest.connect();
    guest.give(2, 64);
    assert!(guest.sends(&packet(RW).with(b"abc")));
    assert!(guest.packets().is_empty());
    assert!(guest.sends(&packet(QUERY)));
    let update = guest.packet();
    assert_eq!(
        (update.op, update.fwd_cnt, update.buf_alloc),
        (UPDATE, 3, BUFFER)
    );
    drop(socket);
}

#[test]
fn a_process_that_takes_nothing_stops_the_guest_at_its_credit() {
    let mut guest = Guest::new();
    let socket = guest.connect();
    let packet_of = |len| packet(RW).with(&bytes(len));
    // Whatever the socket takes; then the device's buffer.
    let mut taken = 0;
    loop {
        assert!(guest.sends(&packet_of(4096)));
        assert!(guest.sends(&packet(QUERY)));
        guest.give(1, 64);
        let update = guest.packet();
        assert_eq!(update.op, UPDATE);
        if update.fwd_cnt == taken {
            break;
        }
        taken = update.fwd_cnt;
    }
    let mut kept = 4096;
    while kept + 4096 <= BUFFER as usize {
        if !guest.packets().is_empty() {
            panic!("a reset below {BUFFER} bytes");
        }
        let fits = kept + 4096 < BUFFER as usize;
        if !fits {
            break;
        }
        assert!(guest.sends(&packet_of(4096)));
        kept += 4096;
    }
    assert_eq!(guest.counters.removed(), 0);
    // One that lies about its credit is reset.
    guest.give(2, 64);
    for _ in 0..2 {
        assert!(guest.sends(&packet_of(4096)));
    }
    assert!(guest.ops().contains(&RST));
    assert_eq!(guest.counters.removed(), 1);
    drop(socket);
}

#[test]
fn a_packet_has_at_most_64_kib() {
    assert_eq!(MAX_PACKET, 65_536);
    let mut guest = Guest::new();
    let socket = guest.connect();
    let rich = Packet {
        buf_alloc: u32::MAX,
        ..packet(UPDATE)
    };
    assert!(guest.sends(&rich));
    guest.give(1, 200_000);
    write(&socket, &bytes(150_000));
    let mut lens = Vec::new();
    for _ in 0..8 {
        lens.extend(guest.packets().iter().map(|packet| packet.data.len()));
        guest.give(1, 200_000);
    }
    assert!(lens.iter().all(|len| *len <= MAX_PACKET), "{lens:?}");
    assert!(lens.contains(&MAX_PACKET), "{lens:?}");
    assert_eq!(lens.iter().sum::<usize>(), 150_000);
    // And of the guest.
    assert!(guest.sends(&packet(RW).with(&bytes(MAX_PACKET + 1))));
    assert_eq!(guest.ops(), [RST]);
}

#[test]
fn counters_wrap() {
    let mut guest = Guest::new();
    let socket = guest.connect();
    // The guest has taken almost all numbers already, says it.
    let far = Packet {
        fwd_cnt: u32::MAX - 9,
        buf_alloc: 100,
        ..packet(UPDATE)
    };
    assert!(guest.sends(&far));
    write(&socket, &bytes(200));
    guest.give(2, 4096);
    assert_eq!(guest.packets()[0].data.len(), 90);
}
