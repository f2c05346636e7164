// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How connections end.

use std::net::Shutdown;

use crate::support::*;

fn shutdown(flags: u32) -> Packet {
    Packet {
        flags,
        ..packet(SHUTDOWN)
    }
}

#[test]
fn a_process_that_sends_no_more_still_receives() {
    let mut guest = Guest::new();
    let socket = guest.connect();
    guest.give(3, 100);
    write(&socket, b"last");
    socket.shutdown(Shutdown::Write).unwrap();
    let packets = guest.packets();
    let seen: Vec<_> = packets
        .iter()
        .map(|packet| (packet.op, packet.flags))
        .collect();
    assert_eq!(seen, [(RW, 0), (SHUTDOWN, SEND)]);
    for round in 0..3 {
        assert!(guest.sends(&packet(RW).with(&[round; 9])));
        assert_eq!(read(&socket), (vec![round; 9], false));
    }
    // The guest is done, too.
    assert!(guest.sends(&shutdown(BOTH)));
    assert_eq!(guest.ops(), [RST]);
    assert_eq!(read(&socket), (Vec::new(), true));
    assert_eq!(guest.counters.removed(), 1);
}

#[test]
fn a_guest_that_sends_no_more_still_receives() {
    let mut guest = Guest::new();
    let socket = guest.connect();
    assert!(guest.sends(&packet(RW).with(b"question")));
    assert!(guest.sends(&shutdown(SEND)));
    assert_eq!(read(&socket), (b"question".to_vec(), true));
    write(&socket, b"answer");
    guest.give(2, 100);
    assert_eq!(guest.packet().data, b"answer");
    drop(socket);
    let end = guest.packet();
    assert_eq!((end.op, end.flags), (SHUTDOWN, BOTH));
    assert!(guest.sends(&packet(RST)));
    assert_eq!(guest.counters.removed(), 1);
}

#[test]
fn a_guest_that_receives_no_more_still_sends() {
    let mut guest = Guest::new();
    let socket = guest.connect();
    guest.give(1, 100);
    assert!(guest.sends(&shutdown(RECEIVE)));
    assert!(guest.sends(&packet(RW).with(b"more")));
    assert_eq!(read(&socket).0, b"more");
    let error = std::io::Write::write(&mut &socket, b"for nobody").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    assert!(guest.packets().is_empty());
    drop(socket);
    let end = guest.packet();
    assert_eq!((end.op, end.flags), (SHUTDOWN, BOTH));
}

#[test]
fn flags_of_a_shutdown_are_permanent() {
    let mut guest = Guest::new();
    let socket = guest.connect();
    guest.give(1, 100);
    assert!(guest.sends(&shutdown(RECEIVE)));
    assert!(guest.sends(&shutdown(0)));
    assert!(guest.sends(&shutdown(SEND)));
    assert_eq!(guest.ops(), [RST]);
    assert!(is_closed(&socket));
}

#[test]
fn a_process_that_closes_is_gone_after_its_data() {
    let mut guest = Guest::new();
    let socket = guest.connect();
    write(&socket, &bytes(6000));
    drop(socket);
    // Without buffers, its end is no reason to spin.
    guest.machine.pump();
    guest.give(2, 4096);
    let mut packets = guest.packets();
    guest.give(1, 64);
    packets.extend(guest.packets());
    let seen: Vec<_> = packets
        .iter()
        .map(|packet| (packet.op, packet.flags))
        .collect();
    assert_eq!(seen, [(RW, 0), (RW, 0), (SHUTDOWN, BOTH)]);
    // Data that the guest sent before it knew is nobody's.
    guest.give(1, 64);
    assert!(guest.sends(&packet(RW).with(b"late")));
    assert!(guest.packets().is_empty());
    assert!(guest.sends(&packet(RST)));
    assert!(guest.sends(&packet(RW).with(b"too late")));
    assert_eq!(guest.ops(), [RST]);
}

#[test]
fn a_guest_that_doesnt_confirm_an_end_is_reset() {
    let mut guest = Guest::on(Place::new(), SHORT);
    let socket = guest.connect();
    guest.give(2, 64);
    drop(socket);
    let mut ops = Vec::new();
    guest.machine.pump_until(|machine| {
        while let Some((_, reply)) = guest.driver.receive(machine, RX) {
            ops.push(u16::from(reply.bytes[30]));
        }
        ops.len() == 2
    });
    assert_eq!(ops, [SHUTDOWN, RST]);
    assert_eq!((guest.counters.killed(), guest.counters.removed()), (1, 1));
}

#[test]
fn a_process_that_takes_no_more_may_have_answered() {
    let mut guest = Guest::new();
    let socket = guest.connect();
    write(&socket, b"goodbye");
    drop(socket);
    // The device learns by its write that the process is gone. The answer is still there.
    assert!(guest.sends(&packet(RW).with(b"hello?")));
    guest.give(3, 100);
    let packets = guest.packets();
    assert!(
        packets.iter().any(|packet| packet.data == b"goodbye"),
        "{packets:?}"
    );
    let last = packets.last().unwrap();
    assert_eq!((last.op, last.flags), (SHUTDOWN, BOTH));
}

#[test]
fn a_slow_process_gets_all_that_a_guest_sent_before_its_end() {
    for end in [shutdown(BOTH), packet(RST)] {
        let mut guest = Guest::new();
        let socket = guest.connect();
        // Fills the socket, and then the device's buffer.
        let (mut sent, mut told) = (0, 0);
        let data = bytes(1 << 20);
        while sent - told < 64 << 10 {
            let len = (64 << 10) - (sent - told);
            assert!(guest.sends(&packet(RW).with(&data[sent..sent + len])));
            sent += len;
            guest.give(1, 64);
            told = guest
                .packets()
                .last()
                .map_or(told, |packet| packet.fwd_cnt as usize);
        }
        guest.give(1, 64);
        assert!(guest.sends(&end));
        // The guest may use the port at once: nothing of the old connection is left for it.
        let ops = guest.ops();
        assert!(ops.iter().all(|op| *op == RST), "{ops:?}");
        guest.give(2, 64);
        assert!(guest.sends(&packet(REQUEST)));
        assert!(guest.ops().contains(&RST), "nobody listens");
        let mut received = Vec::new();
        loop {
            let (more, has_ended) = read(&socket);
            received.extend(more);
            guest.machine.pump();
            if has_ended {
                break;
            }
        }
        assert!(received == data[..sent], "{} of {sent}", received.len());
    }
}

#[test]
fn a_process_that_resets_is_an_end() {
    let mut guest = Guest::new();
    let socket = guest.connect();
    // Closing with unread data is ECONNRESET for the device.
    assert!(guest.sends(&packet(RW).with(b"unread")));
    drop(socket);
    guest.give(2, 64);
    let end = guest.packet();
    assert_eq!((end.op, end.flags), (SHUTDOWN, BOTH));
}
