// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A network device with the service, driven through its rings. The backend is a socket, as with passt.

use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use serde_json::json;
use virtio_models::net::{Mac, Net, NetConfig, Stream};
use virtio_transport::testing::{
    Driver, MEMORY, Machine, Memory, MmioPort, Reply, Request, memory,
};

use super::super::lent::Home;
use super::*;
use crate::mmds::{ADDRESS, MmdsSpec, Service, Store, Version};

const HEADERS: usize = HEADER + 14 + 20 + 20;
const FIN: u8 = 1;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// A machine whose guest has a device with some pairs of queues, and the other ends of their links.
struct Guest {
    machine: Machine<MmioPort>,
    driver: Driver,
    backends: Vec<UnixStream>,
}

/// The service, with a short and a long text.
fn stack() -> Arc<Shared> {
    let store = Store::new(100_000);
    store
        .put(json!({"a": "b", "large": "0123456789".repeat(5000)}))
        .unwrap();
    let service = Service::new(&MmdsSpec {
        version: Version::V1,
        nets: vec![0],
        address: ADDRESS,
        imds_compat: false,
        store,
    });
    Shared::new(Stack::new(Arc::new(service), ADDRESS))
}

impl Guest {
    fn new(pairs: usize) -> Self {
        let stack = stack();
        let (mut links, mut backends) = (Vec::new(), Vec::new());
        for pair in 0..pairs {
            let (ours, theirs) = UnixStream::pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            let stream = Stream::new(ours.into()).unwrap();
            let link = WithMmds::new(stream, pair, Arc::clone(&stack)).unwrap();
            links.push(Box::new(link) as Box<dyn Link>);
            backends.push(theirs);
        }
        let config = NetConfig::new(Mac([2, 0, 0, 0, 0, 7]));
        let net = Net::<Memory>::new(config, links, Box::new(|_| ()));
        let mut machine = Machine::new(Box::new(net), &memory(MEMORY));
        let driver = Driver::start(&mut machine, u64::MAX);
        machine.pump();
        Guest {
            machine,
            driver,
            backends,
        }
    }

    fn give(&mut self, pair: u16, buffers: usize) {
        for _ in 0..buffers {
            self.request(2 * pair, Vec::new(), 2000);
        }
    }

    fn request(&mut self, queue: u16, readable: Vec<u8>, writable: u32) {
        let request = Request {
            queue,
            readable,
            writable,
        };
        self.driver.send(&self.machine, &request);
        self.machine.kick(queue);
        self.machine.pump();
    }

    fn send(&mut self, pair: u16, frame: &[u8]) {
        let frame = [&[0; HEADER], frame].concat();
        self.request(2 * pair + 1, frame, 0);
        assert!(self.driver.receive(&self.machine, 2 * pair + 1).is_some());
    }

    /// The frames that came by a pair of queues.
    fn received(&mut self, pair: u16) -> Vec<Vec<u8>> {
        let next = || self.driver.receive(&self.machine, 2 * pair);
        let replies = std::iter::from_fn(next);
        replies.map(|(_, reply)| written(reply)).collect()
    }

    /// Waits for a frame.
    fn await_frame(&mut self) -> Vec<u8> {
        let mut reply = None;
        self.machine.pump_until(|machine| {
            reply = self.driver.receive(machine, 0);
            reply.is_some()
        });
        written(reply.unwrap().1)
    }

    /// Whether anything has reached the network.
    fn reached_network(&mut self) -> bool {
        self.backends.iter_mut().any(|backend| {
            let read = backend.read(&mut [0; 4096]);
            !matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
        })
    }
}

fn written(mut reply: Reply) -> Vec<u8> {
    reply.bytes.truncate(reply.len as usize);
    reply.bytes
}

/// A frame to the service with a segment.
fn segment(seq: u32, ack: u32, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 7, 8, 0, 0x45, 0]].concat();
    frame.extend((40 + data.len() as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2]);
    frame.extend(ADDRESS.octets());
    frame.extend([0x10, 0, 0, 80]);
    frame.extend(seq.to_be_bytes());
    frame.extend(ack.to_be_bytes());
    frame.extend([0x50, flags, 0x40, 0, 0, 0, 0, 0]);
    frame.extend(data);
    frame
}

/// The sequence number, the flags and the data of a frame that was received.
fn parse(received: &[u8]) -> (u32, u8, &[u8]) {
    let at = HEADER + 14 + 20 + 4;
    let seq = u32::from_be_bytes(received[at..at + 4].try_into().unwrap());
    let options = usize::from(received[HEADER + 46] >> 4) * 4 - 20;
    (seq, received[HEADER + 47], &received[HEADERS + options..])
}

#[test]
fn a_guest_reads_a_value_and_nothing_reaches_the_network() {
    let mut guest = Guest::new(1);
    guest.give(0, 2);
    guest.send(0, &segment(100, 0, SYN, &[]));
    let received = guest.received(0);
    let (seq, flags, data) = parse(&received[0]);
    assert_eq!((received.len(), flags, data), (1, SYN | ACK, &b""[..]));
    let get = b"GET /a HTTP/1.1\r\nConnection: close\r\n\r\n";
    guest.send(0, &segment(101, seq + 1, ACK, get));
    let received = guest.received(0);
    let (_, _, data) = parse(&received[0]);
    assert!(data.ends_with(b"\r\n\r\nb"), "{}", data.escape_ascii());
    // There was one buffer left. The end follows as soon as there is another one.
    assert_eq!(received.len(), 1);
    guest.give(0, 1);
    let received = guest.received(0);
    assert_eq!(parse(&received[0]).1, ACK | FIN);
    assert!(!guest.reached_network());
    // Others are the network's, both ways.
    guest.send(0, &[7; 60]);
    assert!(guest.reached_network());
}

#[test]
fn an_answer_waits_for_buffers_and_is_repeated() {
    let mut guest = Guest::new(1);
    guest.send(0, &segment(100, 0, SYN, &[]));
    assert_eq!(guest.received(0).len(), 0);
    guest.give(0, 1);
    let seq = parse(&guest.received(0)[0]).0.wrapping_add(1);
    guest.give(0, 1);
    guest.send(0, &segment(101, seq, ACK, b"GET /large HTTP/1.1\r\n\r\n"));
    let mut text = Vec::new();
    let mut next = seq;
    // The guest never hears of one segment: the timer brings it again.
    let mut is_lost = false;
    while text.len() < 50_000 {
        guest.give(0, 1);
        let frame = guest.await_frame();
        let (seq, _, data) = parse(&frame);
        if text.len() > 1000 && !is_lost {
            is_lost = true;
        } else if seq == next {
            text.extend(data);
            next = next.wrapping_add(data.len() as u32);
            guest.send(0, &segment(124, next, ACK, &[]));
        }
    }
    assert!(is_lost && text.ends_with(b"0123456789"));
    assert!(!guest.reached_network());
}

/// A pause isn't another driver.
#[test]
fn an_answer_goes_on_after_a_pause() {
    let mut guest = Guest::new(1);
    guest.give(0, 1);
    guest.send(0, &segment(100, 0, SYN, &[]));
    let start = parse(&guest.received(0)[0]).0.wrapping_add(1);
    guest.give(0, 1);
    guest.send(0, &segment(101, start, ACK, b"GET /large HTTP/1.1\r\n\r\n"));
    let mut text = parse(&guest.await_frame()).2.to_vec();
    guest.machine.pause().unwrap();
    guest.machine.resume();
    while text.len() < 50_000 {
        guest.give(0, 1);
        let received = guest.await_frame();
        let (seq, flags, data) = parse(&received);
        assert_eq!(flags & 4, 0, "a reset");
        if seq == start.wrapping_add(text.len() as u32) {
            text.extend(data);
            let ack = start.wrapping_add(text.len() as u32);
            guest.send(0, &segment(124, ack, ACK, &[]));
        }
    }
    assert!(text.ends_with(b"0123456789"));
}

#[test]
fn each_pair_gets_its_own_answers() {
    let mut guest = Guest::new(2);
    // VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
    guest.request(4, vec![4, 0, 2, 0], 1);
    guest.driver.receive_all(&guest.machine);
    guest.give(0, 2);
    guest.give(1, 2);
    guest.send(1, &segment(100, 0, SYN, &[]));
    assert_eq!(guest.received(1).len(), 1);
    guest.send(0, &segment(100, 0, SYN, &[]));
    assert_eq!(guest.received(0).len(), 1);
    assert!(!guest.reached_network());
}

#[test]
fn an_answer_goes_on_when_its_pair_is_switched_off() {
    let mut guest = Guest::new(2);
    let set_pairs = |guest: &mut Guest, pairs| {
        guest.request(4, vec![4, 0, pairs, 0], 1);
        guest.driver.receive_all(&guest.machine);
    };
    set_pairs(&mut guest, 2);
    guest.give(1, 2);
    guest.send(1, &segment(100, 0, SYN, &[]));
    let seq = parse(&guest.received(1)[0]).0.wrapping_add(1);
    guest.send(1, &segment(101, seq, ACK, b"GET /large HTTP/1.1\r\n\r\n"));
    assert!(!parse(&guest.received(1)[0]).2.is_empty());
    set_pairs(&mut guest, 1);
    guest.give(0, 1);
    assert!(!parse(&guest.await_frame()).2.is_empty());
}

/// Each machine of a run borrows the link.
#[test]
fn a_link_that_is_lent_has_its_alarm() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let link = Stream::new(ours.into()).unwrap();
    assert!(link.alarm().is_none());
    let link = WithMmds::new(link, 0, stack()).unwrap();
    let number = link.alarm.timer.as_raw_fd();
    let lent = Home::new(link).lend().unwrap();
    assert_eq!(lent.alarm().map(|alarm| alarm.as_raw_fd()), Some(number));
}

#[test]
fn another_driver_finds_no_old_connections() {
    let mut guest = Guest::new(1);
    guest.send(0, &segment(100, 0, SYN, &[]));
    guest.driver = Driver::start(&mut guest.machine, u64::MAX);
    guest.machine.pump();
    guest.give(0, 1);
    assert_eq!(guest.received(0).len(), 0);
    guest.send(0, &segment(101, 1, ACK, &[]));
    assert_eq!(parse(&guest.received(0)[0]).1, 4, "a reset");
}
