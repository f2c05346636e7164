// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Data in both directions, with slow and absent peers.

use std::fs::File;
use std::net::Shutdown;

use virtio_models::console::Stream;

use crate::support::*;

#[test]
fn a_slow_reader_gets_everything() {
    let (reader, writer) = small_pipe();
    let mut guest = Guest::with_port(shared(Stream::new(None, Some(writer.into()))));
    let sent = bytes(300_000);
    let mut got = Vec::new();
    for piece in sent.chunks(30_000) {
        guest.queue(TX, piece.to_vec(), 0);
    }
    assert!(guest.replies(TX).len() < 10, "the rest waits in the guest");
    while got.len() < sent.len() {
        let (some, _) = read(&reader);
        got.extend(some);
        guest.replies(TX);
    }
    assert!(got == sent);
    assert_eq!(guest.waiting[usize::from(TX)], 0);
}

#[test]
fn a_slow_guest_gets_everything() {
    let place = Place::new();
    let mut guest = Guest::with_port(place.server());
    let client = place.client();
    let sent = bytes(1 << 20);
    let (mut at, mut got, mut round) = (0, Vec::new(), 0);
    while got.len() < sent.len() {
        at += write(&client, &sent[at..]);
        round += 1;
        guest.queue(RX, Vec::new(), 1 + round * 977 % 30_000);
        got.extend(guest.data(RX));
    }
    assert!(got == sent);
}

#[test]
fn a_reader_that_vanishes_and_comes_back() {
    let place = Place::new();
    let mut guest = Guest::with_port(place.server());
    guest.queue(TX, b"nobody yet ".to_vec(), 0);
    assert!(guest.replies(TX).is_empty());
    let first = place.client();
    assert_eq!(guest.messages(), [(1, PORT_OPEN, 1, vec![])]);
    assert_eq!(guest.replies(TX).len(), 1);
    assert_eq!(read(&first).0, b"nobody yet ");
    guest.queue(RX, Vec::new(), 64);
    write(&first, b"bye");
    drop(first);
    assert_eq!(
        guest.messages(),
        [],
        "its data comes first, for which there is one buffer"
    );
    assert_eq!(guest.data(RX), b"bye");
    guest.queue(RX, Vec::new(), 64);
    assert_eq!(guest.messages(), [(1, PORT_OPEN, 0, vec![])]);
    guest.queue(TX, b"waits".to_vec(), 0);
    assert!(guest.replies(TX).is_empty());
    let second = place.client();
    assert_eq!(guest.messages(), [(1, PORT_OPEN, 1, vec![])]);
    assert_eq!(read(&second).0, b"waits");
    // The next one waits for its turn.
    let third = place.client();
    write(&third, b"third");
    assert!(guest.data(RX).is_empty());
    drop(second);
    let told = guest.messages();
    assert_eq!(told, [(1, PORT_OPEN, 0, vec![]), (1, PORT_OPEN, 1, vec![])]);
    assert_eq!(guest.data(RX), b"third");
}

#[test]
fn a_client_may_end_its_own_direction() {
    let place = Place::new();
    let mut guest = Guest::with_port(place.server());
    let client = place.client();
    client.shutdown(Shutdown::Write).expect("a socket");
    guest.queue(RX, Vec::new(), 64);
    guest.queue(TX, b"still".to_vec(), 0);
    assert_eq!(guest.messages(), [(1, PORT_OPEN, 1, vec![])]);
    assert_eq!(read(&client).0, b"still");
    drop(client);
    assert_eq!(guest.messages(), [(1, PORT_OPEN, 0, vec![])]);
    assert_eq!(guest.machine.poller.watched(), 1, "the listener only");
}

#[test]
fn the_end_of_a_file_closes_the_port() {
    let place = Place::new();
    let path = place.dir.path().join("file");
    std::fs::write(&path, bytes(5000)).expect("a file");
    let file = File::open(&path).expect("a file");
    let mut guest = Guest::with_port(shared(Stream::new(Some(file.into()), None)));
    for _ in 0..5 {
        guest.queue(RX, Vec::new(), 2000);
    }
    assert!(guest.data(RX) == bytes(5000));
    assert_eq!(guest.messages(), [(1, PORT_OPEN, 0, vec![])]);
    assert_eq!(guest.machine.poller.watched(), 0);
}

#[test]
fn a_pipe_without_a_reader_takes_everything() {
    let (reader, writer) = small_pipe();
    let mut guest = Guest::with_port(shared(Stream::new(None, Some(writer.into()))));
    drop(reader);
    for _ in 0..3 {
        guest.queue(TX, bytes(100_000), 0);
    }
    assert_eq!(guest.replies(TX).len(), 3);
    assert_eq!(guest.messages(), [(1, PORT_OPEN, 0, vec![])]);
}

#[test]
fn descriptors_that_block_are_never_waited_for() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let (input, typist) = std::io::pipe().expect("a pipe");
    let mut guest = Guest::with_port(shared(Stream::new(Some(input.into()), Some(writer.into()))));
    guest.queue(RX, Vec::new(), 64);
    for _ in 0..4 {
        guest.queue(TX, bytes(30_000), 0);
    }
    assert!(guest.replies(TX).len() < 4);
    write(&typist, b"key");
    assert_eq!(guest.data(RX), b"key");
    rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::NONBLOCK).expect("a pipe");
    let mut got = 0;
    while got < 120_000 {
        got += read(&reader).0.len();
        guest.machine.pump();
    }
}

/// A stream of bytes that differ by place, without keeping it.
struct Counting(u64);

impl Counting {
    fn next(&mut self, len: usize) -> Vec<u8> {
        let from = self.0;
        self.0 += len as u64;
        (from..self.0).map(|at| (at * 7 + at / 251) as u8).collect()
    }

    fn check(&mut self, got: &[u8]) {
        let expected = self.next(got.len());
        assert!(got == expected, "after {} bytes", self.0);
    }
}

/// How much goes each way.
const LARGE: u64 = 64 << 20;

/// The host's process reads slowly, goes away in between, and comes back. The guest takes data slowly, too.
#[test]
fn a_large_stream_each_way_with_a_client_that_comes_and_goes() {
    let place = Place::new();
    let mut guest = Guest::with_port(place.server());
    let mut client = Some(place.client());
    let [mut sent, mut got, mut typed, mut heard] = [0; 4].map(Counting);
    let mut rest: Vec<u8> = Vec::new();
    let mut round = 0_usize;
    while got.0 < LARGE || heard.0 < LARGE {
        round += 1;
        while sent.0 < LARGE && guest.waiting[usize::from(TX)] < 4 {
            let piece = sent.next(12_000.min((LARGE - sent.0) as usize));
            guest.queue(TX, piece, 0);
        }
        while guest.waiting[usize::from(RX)] < 4 {
            guest.queue(RX, Vec::new(), 12_000);
        }
        if let Some(client) = &client {
            if rest.is_empty() && typed.0 < LARGE {
                rest = typed.next(40_000.min((LARGE - typed.0) as usize));
            }
            let written = if rest.is_empty() {
                0
            } else {
                write(client, &rest)
            };
            rest.drain(..written);
            if !round.is_multiple_of(3) {
                got.check(&read(client).0);
            }
        }
        if round.is_multiple_of(100) {
            // It reads what it was sent, and goes at once. What it sent is still there for the guest.
            if let Some(client) = client.take() {
                got.check(&read(&client).0);
            }
            guest.machine.pump();
        } else if round % 100 == 3 {
            client.get_or_insert_with(|| place.client());
            guest.machine.pump();
        }
        guest.replies(TX);
        heard.check(&guest.data(RX));
    }
    assert_eq!([sent.0, got.0, typed.0, heard.0], [LARGE; 4]);
}
