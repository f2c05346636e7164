// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest's end of the service's network, made by hand.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::super::packet::{ACK, FIN, PSH, Peer, RST, SYN, Segment, checksum, read, sum};
use super::super::packet::{Incoming, PORT};
use super::super::playground::Playground;
use super::super::{ADDRESS, Store, Version};

pub(super) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
pub(super) const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

pub(super) fn document() -> Value {
    json!({"latest": {"meta-data": {"ami-id": "ami-1", "count": 7, "macs": {"02:29:96": {"a": "b"}}, "list": ["x"]}}})
}

pub(super) fn store(value: Value) -> Store {
    let store = Store::new(51_200);
    store.put(value).unwrap();
    store
}

pub(super) fn service(version: Version) -> Playground {
    Playground::new(version, false, store(document()))
}

/// A frame with a segment, whose checksums are left to the device.
pub(super) fn frame(port: u16, to: u16, seq: u32, ack: u32, flags: u8, data: &[u8]) -> Vec<u8> {
    let options: &[u8] = match flags & SYN {
        0 => &[],
        _ => &[1, 3, 3, 7, 2, 4, 0x02, 0x18],
    };
    let length = 40 + options.len() + data.len();
    let mut frame = [&[0xff; 6][..], &MAC, &[8, 0, 0x45, 0]].concat();
    frame.extend((length as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend(IP.octets());
    frame.extend(ADDRESS.octets());
    frame.extend(port.to_be_bytes());
    frame.extend(to.to_be_bytes());
    frame.extend(seq.to_be_bytes());
    frame.extend(ack.to_be_bytes());
    frame.extend([(20 + options.len()) as u8 * 4, flags, 0x40, 0, 0, 0, 0, 0]);
    frame.extend(options);
    frame.extend(data);
    frame
}

/// A segment of the service's: who it is for, its numbers and its data. Checks its checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub to: Peer,
    pub from: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub data: Vec<u8>,
}

pub(super) fn parse(frame: &[u8]) -> Answer {
    assert_eq!(checksum(sum(&frame[14..34])), 0, "IPv4's checksum");
    let tcp = &frame[34..];
    let pseudo = sum(&frame[26..34]) + 6 + tcp.len() as u64;
    assert_eq!(checksum(pseudo + sum(tcp)), 0, "TCP's checksum");
    let Some(Incoming::Segment(segment)) = read(frame) else {
        panic!("{frame:?}");
    };
    let Segment {
        from,
        to,
        seq,
        ack,
        flags,
        window,
        data,
        ..
    } = segment;
    assert_eq!((from.ip, from.mac), (ADDRESS, [6, 1, 0x23, 0x45, 0x67, 1]));
    let to = Peer {
        mac: frame[..6].try_into().unwrap(),
        ip: IP,
        port: to,
    };
    assert_eq!(frame[30..34], IP.octets());
    Answer {
        to,
        from: from.port,
        seq,
        ack,
        flags,
        window,
        data: data.to_vec(),
    }
}

/// The guest's end of a connection that loses nothing.
pub(super) struct Client {
    pub port: u16,
    pub seq: u32,
    pub ack: u32,
}

impl Client {
    /// Opens a connection.
    pub(super) fn open(service: &mut Playground, port: u16) -> Self {
        let mut client = Client {
            port,
            seq: u32::MAX - 10,
            ack: 0,
        };
        client.send(service, SYN, &[]);
        let opened = receive(service);
        assert_eq!((opened.flags, opened.ack), (SYN | ACK, client.seq));
        client.ack = opened.seq.wrapping_add(1);
        client.send(service, ACK, &[]);
        assert_eq!(service.receive(0), None);
        client
    }

    pub(super) fn send(&mut self, service: &mut Playground, flags: u8, data: &[u8]) {
        let frame = frame(self.port, PORT, self.seq, self.ack, flags, data);
        assert!(service.send(&frame, 0));
        let control = u32::from(flags & (SYN | 1) != 0);
        self.seq = self.seq.wrapping_add(data.len() as u32 + control);
    }

    /// Takes all that the service sends, and acknowledges it.
    pub(super) fn receive_all(&mut self, service: &mut Playground) -> Vec<u8> {
        let mut data = Vec::new();
        while let Some(frame) = service.receive(0) {
            let answer = parse(&frame);
            assert_eq!(answer.flags & RST, 0, "{answer:?}");
            assert_eq!((answer.to.port, answer.seq), (self.port, self.ack));
            let end = u32::from(answer.flags & 1);
            self.ack = self.ack.wrapping_add(answer.data.len() as u32 + end);
            data.extend(&answer.data);
            if !answer.data.is_empty() || end != 0 {
                self.send(service, ACK, &[]);
            }
        }
        data
    }

    /// Ends the connection.
    pub(super) fn end(&mut self, service: &mut Playground) {
        self.send(service, ACK | FIN, &[]);
        self.receive_all(service);
        assert_eq!(service.connections(), 0);
    }

    /// Sends a request, and returns the answer.
    pub(super) fn ask(&mut self, service: &mut Playground, request: &str) -> String {
        self.send(service, ACK | PSH, request.as_bytes());
        String::from_utf8(self.receive_all(service)).unwrap()
    }
}

/// The service's next segment.
#[track_caller]
pub(super) fn receive(service: &mut Playground) -> Answer {
    parse(&service.receive(0).expect("a frame"))
}
