// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Connections: lost, doubled and reordered segments, windows, ends.

use std::time::Duration;

use serde_json::json;

use super::super::packet::{ACK, FIN, PORT, PSH, RST, SYN};
use super::super::playground::Playground;
use super::super::stack::MAX_CONNECTIONS;
use super::super::{ADDRESS, Version};
use super::guest::{Client, IP, MAC, frame, parse, receive, service, store};

const GET: &[u8] = b"GET /latest HTTP/1.1\r\n\r\n";
const TICK: Duration = Duration::from_millis(200);

/// An answer of many segments.
fn large() -> (Playground, String) {
    let text = "0123456789".repeat(3000);
    let store = store(json!({ "a": text }));
    (Playground::new(Version::V1, false, store), text)
}

fn arp(operation: u8, target: [u8; 4]) -> Vec<u8> {
    let mut frame = [
        &[0xff; 6][..],
        &MAC,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation],
    ]
    .concat();
    frame.extend(MAC);
    frame.extend(IP.octets());
    frame.extend([0; 6]);
    frame.extend(target);
    frame
}

#[test]
fn the_guest_learns_our_ethernet_address() {
    let mut service = service(Version::V1);
    assert!(service.send(&arp(1, ADDRESS.octets()), 0));
    let answer = service.receive(0).unwrap();
    assert_eq!(answer[..6], MAC);
    assert_eq!(answer[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    assert_eq!(answer[22..28], answer[6..12]);
    assert_eq!(answer[28..32], ADDRESS.octets());
    assert_eq!(answer[32..38], MAC);
    assert_eq!(answer[38..42], IP.octets());
    assert_eq!((answer.len(), service.receive(0)), (42, None));
    // An answer is not answered, but is ours, too.
    assert!(service.send(&arp(2, ADDRESS.octets()), 0));
    assert_eq!(service.receive(0), None);
}

#[test]
fn other_frames_go_to_the_network() {
    let mut service = service(Version::V1);
    let syn = frame(4000, PORT, 1, 0, SYN, &[]);
    let change = |at: usize, byte: u8| {
        let mut frame = syn.clone();
        frame[at] = byte;
        frame
    };
    for frame in [
        arp(1, [169, 254, 169, 253]),
        arp(1, ADDRESS.octets())[..41].to_vec(),
        // Another address; IPv6; a VLAN.
        change(33, 253),
        change(12, 0x86),
        change(12, 0x81),
        syn[..33].to_vec(),
        Vec::new(),
    ] {
        assert!(!service.send(&frame, 0), "{frame:?}");
    }
    // Fragments, UDP, other versions and impossible lengths are ours, and get no answer.
    let wrong = [
        (20, 0x20),
        (21, 1),
        (23, 17),
        (14, 0x65),
        (14, 0x44),
        (17, 10),
        (46, 0xf0),
    ];
    for (at, byte) in wrong {
        assert!(service.send(&change(at, byte), 0), "{at}");
        assert_eq!(service.receive(0), None, "{at} {byte}");
    }
    assert!(service.send(&syn[..50], 0));
    assert_eq!((service.receive(0), service.connections()), (None, 0));
}

#[test]
fn what_has_no_connection_is_reset() {
    let mut service = service(Version::V1);
    for (to, flags, data, wanted) in [
        (81, SYN, &b""[..], (0, 6, RST | ACK)),
        (PORT, ACK | PSH, b"data", (9, 0, RST)),
        (PORT, FIN | ACK, b"", (9, 0, RST)),
        (PORT, SYN | ACK, b"", (9, 0, RST)),
        (PORT, 0, b"ab", (0, 7, RST | ACK)),
        (PORT, FIN, b"ab", (0, 8, RST | ACK)),
    ] {
        service.send(&frame(4000, to, 5, 9, flags, data), 0);
        let answer = receive(&mut service);
        assert_eq!((answer.seq, answer.ack, answer.flags), wanted, "{flags}");
        assert_eq!((answer.from, answer.to.port), (to, 4000));
    }
    service.send(&frame(4000, 81, 5, 9, RST, &[]), 0);
    assert_eq!((service.receive(0), service.connections()), (None, 0));
}

#[test]
fn an_answer_travels_in_segments_that_the_guest_takes() {
    let (mut service, text) = large();
    let mut client = Client::open(&mut service, 4000);
    client.send(&mut service, ACK, b"GET /a HTTP/1.1\r\n\r\n");
    // The guest's largest segment, and its window.
    let mut sent = 0;
    while let Some(frame) = service.receive(0) {
        let answer = parse(&frame);
        assert!(answer.data.len() <= 0x218, "{}", answer.data.len());
        sent += answer.data.len();
    }
    assert_eq!(sent, 0x4000);
    // All of it is lost. The service sends it again.
    service.wait(TICK);
    let answer = String::from_utf8(client.receive_all(&mut service)).unwrap();
    assert!(answer.ends_with(&format!("\r\n\r\n{text}")));
    assert_eq!(service.next_in(0), None, "nothing is left to do");
}

#[test]
fn lost_segments_are_sent_again_and_doubled_ones_taken_once() {
    let mut service = service(Version::V1);
    service.send(&frame(4000, PORT, 100, 0, SYN, &[]), 0);
    let first = receive(&mut service);
    // The SYN again, before and after ours was repeated.
    service.send(&frame(4000, PORT, 100, 0, SYN, &[]), 0);
    assert_eq!(receive(&mut service), first);
    service.wait(TICK);
    assert_eq!(receive(&mut service), first);
    let mut client = Client {
        port: 4000,
        seq: 101,
        ack: first.seq + 1,
    };
    let (start, end) = GET.split_at(7);
    client.ack -= 1;
    client.send(&mut service, ACK, start);
    assert_eq!(service.receive(0), None, "the connection is not open");
    // The end before the start: only the start is taken, and the guest is told so.
    (client.seq, client.ack) = (101, first.seq + 1);
    client.send(&mut service, ACK, &[]);
    client.seq += 7;
    client.send(&mut service, ACK, end);
    assert_eq!(receive(&mut service).ack, 101);
    client.seq = 101;
    client.send(&mut service, ACK, start);
    assert_eq!(receive(&mut service).ack, 108);
    // All of it again, with the rest.
    client.seq = 101;
    client.send(&mut service, ACK | PSH, GET);
    let answer = receive(&mut service);
    assert_eq!(answer.ack, client.seq);
    assert!(answer.data.ends_with(b"meta-data/"));
    client.seq = 101;
    client.send(&mut service, ACK | PSH, GET);
    assert_eq!(receive(&mut service).data, b"", "it was answered");
    // The answer is lost, and comes again, later each time.
    let mut wait = TICK;
    for _ in 0..7 {
        assert_eq!(service.next_in(0), Some(wait));
        service.wait(wait);
        assert_eq!(receive(&mut service), answer);
        wait *= 2;
    }
    service.wait(wait);
    assert_eq!((service.receive(0), service.connections()), (None, 0));
}

#[test]
fn a_closed_window_is_probed() {
    let (mut service, text) = large();
    let mut client = Client::open(&mut service, 4000);
    let closed = |client: &Client, data: &[u8]| {
        let mut frame = frame(4000, PORT, client.seq, client.ack, ACK, data);
        frame[48] = 0;
        frame
    };
    service.send(&closed(&client, b"GET /a HTTP/1.1\r\n\r\n"), 0);
    client.seq = client.seq.wrapping_add(19);
    assert_eq!(receive(&mut service).data, b"");
    assert_eq!(service.next_in(0), Some(TICK));
    for _ in 0..20 {
        service.wait(TICK * 2);
        assert_eq!(receive(&mut service).data, b"H");
        assert_eq!(service.receive(0), None);
        service.send(&closed(&client, b""), 0);
        assert_eq!(service.receive(0), None);
    }
    client.send(&mut service, ACK, &[]);
    let answer = String::from_utf8(client.receive_all(&mut service)).unwrap();
    assert!(answer.ends_with(&text));
}

#[test]
fn both_sides_may_end_first() {
    let mut service = service(Version::V1);
    // The guest ends with its request, and still gets the answer.
    let mut client = Client::open(&mut service, 4000);
    client.send(&mut service, ACK | FIN, GET);
    let answer = client.receive_all(&mut service);
    assert!(answer.ends_with(b"meta-data/"));
    assert_eq!(service.connections(), 0);
    // The guest ends without one.
    let mut client = Client::open(&mut service, 4001);
    client.send(&mut service, ACK | FIN, &[]);
    assert_eq!(client.receive_all(&mut service), b"");
    assert_eq!(service.connections(), 0);
    // The service ends. What the guest sends later has no meaning.
    let mut client = Client::open(&mut service, 4002);
    client.send(&mut service, ACK, b"GET /latest HTTP/1.0\r\n\r\n");
    assert!(client.receive_all(&mut service).ends_with(b"meta-data/"));
    client.send(&mut service, ACK, &[b'x'; 5000]);
    assert_eq!(receive(&mut service).ack, client.seq);
    client.send(&mut service, ACK | FIN, &[]);
    assert_eq!(receive(&mut service).ack, client.seq);
    assert_eq!((service.connections(), service.next_in(0)), (0, None));
    // The guest breaks off.
    let mut client = Client::open(&mut service, 4003);
    client.send(&mut service, RST, &[]);
    assert_eq!(service.connections(), 0);
}

#[test]
fn an_old_connection_makes_room() {
    let mut service = service(Version::V1);
    let count = MAX_CONNECTIONS as u16;
    let mut clients: Vec<_> = (0..count)
        .map(|port| Client::open(&mut service, 4000 + port))
        .collect();
    clients[0].ask(&mut service, "GET / HTTP/1.1\r\n\r\n");
    Client::open(&mut service, 5000);
    assert_eq!(service.connections(), MAX_CONNECTIONS);
    // The second one was not used for longest.
    clients[1].send(&mut service, ACK, GET);
    assert_eq!(receive(&mut service).flags, RST);
    for client in [0, 2] {
        let answer = clients[client].ask(&mut service, "GET / HTTP/1.1\r\n\r\n");
        assert!(answer.ends_with("latest/"));
    }
    // A guest that starts again uses the same port.
    let again = frame(4000, PORT, 77, 0, SYN, &[]);
    service.send(&again, 0);
    assert_eq!(receive(&mut service).ack, 78);
    assert_eq!(service.connections(), MAX_CONNECTIONS);
}

#[test]
fn answers_go_to_the_queues_that_the_guest_used_last() {
    let mut service = service(Version::V1);
    service.send(&frame(4000, PORT, 100, 0, SYN, &[]), 1);
    assert_eq!((service.next_in(0), service.receive(0)), (None, None));
    let opened = parse(&service.receive(1).unwrap());
    service.send(&frame(4000, PORT, 101, opened.seq + 1, ACK, GET), 2);
    assert_eq!((service.receive(0), service.receive(1)), (None, None));
    assert!(
        parse(&service.receive(2).unwrap())
            .data
            .ends_with(b"meta-data/")
    );
    service.wait(TICK);
    assert_eq!((service.receive(1), service.next_in(1)), (None, None));
    assert!(service.receive(2).is_some());
    service.send(&arp(1, ADDRESS.octets()), 3);
    assert_eq!(service.receive(2), None);
    assert!(service.receive(3).is_some());
}

/// A driver may leave a long segment to the device, to be cut.
#[test]
fn a_segment_longer_than_a_frame_is_taken_whole() {
    let mut service = service(Version::V1);
    let mut client = Client::open(&mut service, 4000);
    let name = "a".repeat(3000);
    let request = format!("GET /latest HTTP/1.1\r\nx: {name}\r\n\r\n");
    assert!(client.ask(&mut service, &request).ends_with("meta-data/"));
    // As much as fits into the window. The guest sends the rest again.
    client.send(&mut service, ACK, &[b'a'; 60_000]);
    let answer = receive(&mut service);
    assert!(answer.data.starts_with(b"HTTP/1.1 431 "));
    assert_eq!(answer.ack, client.seq.wrapping_sub(60_000 - 4096));
}
