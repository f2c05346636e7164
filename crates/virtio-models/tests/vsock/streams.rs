// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Connections, and data both ways.

use std::io::Write;
use std::os::unix::net::UnixStream;

use crate::support::*;

#[test]
fn a_process_of_the_host_connects_and_data_goes_both_ways() {
    let mut guest = Guest::new();
    let (client, request) = guest.accept();
    assert_eq!(request.src_port >> 30, 1, "a port of the host's own");
    write(&client, b"from the host");
    guest.give(1, 4096);
    let packet = guest.packet();
    assert_eq!((packet.op, &packet.data[..]), (RW, &b"from the host"[..]));
    assert_eq!((packet.src_port, packet.dst_port), (request.src_port, 1000));
    let answer = request.answer(RW).with(b"from the guest");
    assert!(guest.sends(&answer));
    assert_eq!(read(&client), (b"from the guest".to_vec(), false));
    assert_eq!(guest.counters.sent_bytes(), 14);
    assert_eq!(guest.counters.received_bytes(), 13);
}

#[test]
fn what_follows_the_command_at_once_is_data() {
    let mut guest = Guest::new();
    let _client = guest.place.client("CONNECT 7\nhello");
    guest.give(2, 100);
    let request = guest.packet();
    assert_eq!(request.op, REQUEST);
    guest.send(&request.answer(RESPONSE));
    assert_eq!(guest.packet().data, b"hello");
}

#[test]
fn a_process_of_the_guest_connects_and_data_goes_both_ways() {
    let mut guest = Guest::new();
    let socket = guest.connect();
    assert!(guest.sends(&packet(RW).with(&bytes(5000))));
    assert_eq!(read(&socket), (bytes(5000), false));
    write(&socket, b"answer");
    guest.give(1, 4096);
    let answer = guest.packet();
    assert_eq!((answer.op, &answer.data[..]), (RW, &b"answer"[..]));
    assert_eq!((answer.src_port, answer.dst_port), (52, 1000));
    assert_eq!(answer.fwd_cnt, 5000, "each packet tells what was taken");
}

#[test]
fn a_port_without_a_process_is_reset() {
    let mut guest = Guest::new();
    guest.give(3, 64);
    assert!(guest.sends(&packet(REQUEST)));
    let reset = guest.packet();
    assert_eq!((reset.op, reset.src_port, reset.dst_port), (RST, 52, 1000));
    // A file that is no socket, and a socket that nobody serves.
    std::fs::write(guest.place.path(52), "").unwrap();
    assert!(guest.sends(&packet(REQUEST)));
    assert_eq!(guest.ops(), [RST]);
    std::fs::remove_file(guest.place.path(52)).unwrap();
    drop(guest.place.listen(52));
    assert!(guest.sends(&packet(REQUEST)));
    assert_eq!(guest.ops(), [RST]);
}

#[test]
fn a_process_with_a_full_queue_is_reset_at_once() {
    let mut guest = Guest::new();
    let listener = guest.place.listen(52);
    rustix::net::listen(&listener, 0).unwrap();
    let waiting = UnixStream::connect(guest.place.path(52)).unwrap();
    // A connect that waits would wait for ever.
    guest.give(1, 64);
    assert!(guest.sends(&packet(REQUEST)));
    assert_eq!(guest.ops(), [RST]);
    drop((waiting, listener));
}

#[test]
fn a_host_that_doesnt_connect_resets() {
    let place = Place::with(|host| host.only_to_guest());
    let _listener = place.listen(52);
    let mut guest = Guest::on(place, LONG);
    guest.give(1, 64);
    assert!(guest.sends(&packet(REQUEST)));
    assert_eq!(guest.ops(), [RST]);
    guest.accept();
}

#[test]
fn small_writes_share_a_packet_and_long_ones_fill_all_buffers() {
    let mut guest = Guest::new();
    let socket = guest.connect();
    for _ in 0..100 {
        write(&socket, b"tiny.");
    }
    guest.give(2, 4096);
    let packet = guest.packet();
    assert_eq!(packet.data, b"tiny.".repeat(100));
    // One buffer is left. The others come after the data.
    let data = bytes(40_000);
    assert_eq!(write(&socket, &data), data.len());
    guest.give(12, 3776);
    let packets = guest.packets();
    let (last, full) = packets.split_last().unwrap();
    let lens: Vec<_> = full.iter().map(|packet| packet.data.len()).collect();
    assert_eq!(lens, [&[4096][..], &[3776; 9]].concat());
    assert_eq!(last.data.len(), 40_000 - 4096 - 9 * 3776);
    let all: Vec<u8> = packets.into_iter().flat_map(|packet| packet.data).collect();
    assert_eq!(all, data);
}

#[test]
fn a_long_stream_of_the_host_arrives_whole() {
    let mut guest = Guest::new();
    let socket = guest.connect();
    let data = bytes(1 << 20);
    let (mut written, mut received) = (0, Vec::new());
    while received.len() < data.len() {
        written += write(&socket, &data[written..]);
        guest.give(3, 1 + received.len() as u32 % 9000);
        for packet in guest.packets() {
            received.extend(packet.data);
        }
        let update = Packet {
            fwd_cnt: received.len() as u32,
            ..packet(UPDATE)
        };
        assert!(guest.sends(&update));
    }
    assert!(received == data);
}

#[test]
fn a_long_stream_of_the_guest_arrives_whole() {
    let mut guest = Guest::new();
    let socket = guest.connect();
    let data = bytes(1 << 20);
    let (mut sent, mut taken, mut received) = (0, 0, Vec::new());
    while sent < data.len() {
        let credit = (64 << 10) - (sent - taken);
        let len = credit.min(data.len() - sent).min(1 + sent % 20_000);
        if len != 0 {
            assert!(guest.sends(&packet(RW).with(&data[sent..sent + len])));
            sent += len;
            continue;
        }
        received.extend(read(&socket).0);
        guest.give(1, 10);
        let update = guest.packet();
        assert_eq!(update.op, UPDATE);
        taken = update.fwd_cnt as usize;
    }
    while received.len() < data.len() {
        guest.machine.pump();
        received.extend(read(&socket).0);
    }
    assert!(received == data);
}

#[test]
fn data_in_many_pieces_of_memory_is_forwarded() {
    let mut guest = Guest::wanting(Place::new(), LONG, !(1 << 28));
    let socket = guest.connect();
    let message = packet(RW).with(&bytes(200)).bytes();
    // Seventy descriptors, some of them in the header.
    let memory = guest.machine.memory.clone();
    let at = 0x9_0000;
    vm_memory::Bytes::write_slice(&*memory, &message, vm_memory::GuestAddress(at)).unwrap();
    let lens = [&[1, 7, 36, 130][..], &[1; 70]].concat();
    let mut from = at;
    let pieces = lens.into_iter().map(|len| {
        from += u64::from(len);
        (from - u64::from(len), len)
    });
    let buffers = virtio_transport::testing::Buffers {
        readable: pieces.collect(),
        writable: Vec::new(),
    };
    guest.driver.rings[usize::from(TX)].send(&buffers);
    guest.machine.kick(TX);
    guest.machine.pump();
    assert_eq!(read(&socket), (bytes(200), false));
}

#[test]
fn connections_take_turns() {
    let mut guest = Guest::new();
    let (first, request) = guest.accept();
    let (second, other) = guest.accept();
    assert_ne!(request.src_port, other.src_port);
    for socket in [&first, &second] {
        write(socket, &bytes(60_000));
    }
    guest.give(8, 4096);
    let ports: Vec<_> = guest
        .packets()
        .iter()
        .map(|packet| packet.src_port)
        .collect();
    for port in [request.src_port, other.src_port] {
        assert!(
            ports.iter().filter(|from| **from == port).count() >= 2,
            "{ports:?}"
        );
    }
}

#[test]
fn a_paused_device_keeps_its_connections() {
    let mut guest = Guest::new();
    let mut socket = guest.connect();
    guest.give(1, 100);
    guest.machine.pause().expect("a device that stops at once");
    assert_eq!(guest.machine.poller.watched(), 0);
    socket.write_all(b"meanwhile").unwrap();
    guest.machine.pump();
    assert!(guest.packets().is_empty());
    guest.machine.resume();
    assert_eq!(guest.packet().data, b"meanwhile");
    assert!(guest.sends(&packet(RW).with(b"after")));
    assert_eq!(read(&socket), (b"after".to_vec(), false));
}

#[test]
fn a_reset_of_the_device_ends_all_connections() {
    let mut guest = Guest::new();
    let (first, second) = (guest.connect(), guest.accept().0);
    guest.machine.set_status(0);
    guest.machine.pump();
    assert!(is_closed(&first) && is_closed(&second));
    assert_eq!(guest.counters.added(), guest.counters.removed());
    assert_eq!(guest.machine.poller.watched(), 0);
}
