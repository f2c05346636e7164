// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All of the service's connections on one network.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use super::Service;
use super::connection::Connection;
use super::packet::{
    self, ACK, FIN, Incoming, MAX_FRAME, Outgoing, PORT, RST, SYN, Segment, write_arp,
    write_segment,
};

/// The most connections. Another one replaces the one that was not used for longest.
pub(super) const MAX_CONNECTIONS: usize = 32;
/// The most frames that wait besides those of connections. More are dropped, and the guest asks again.
const MAX_REPLIES: usize = 64;
/// The distance of our first sequence numbers. Only the guest itself could profit from guessing one.
const STEP: u32 = 64_000;

/// The service's end of a network device.
#[derive(Debug)]
pub(crate) struct Stack {
    service: Arc<Service>,
    address: Ipv4Addr,
    connections: Vec<Connection>,
    /// Frames, each with its pair of queues.
    replies: VecDeque<(usize, Vec<u8>)>,
    /// Our first sequence number of the next connection.
    number: u32,
    /// How many segments have come.
    count: u64,
    /// The connection that sends first.
    first: usize,
}

impl Stack {
    pub(crate) const fn new(service: Arc<Service>, address: Ipv4Addr) -> Self {
        Stack {
            service,
            address,
            connections: Vec::new(),
            replies: VecDeque::new(),
            number: 0,
            count: 0,
            first: 0,
        }
    }

    /// The service's address.
    pub(crate) const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Forgets all connections, because the guest's driver does.
    pub(crate) fn clear(&mut self) {
        self.connections = Vec::new();
        self.replies = VecDeque::new();
    }

    /// Lets the first pair of queues have what another one can't take any more. Returns whether there was something.
    pub(crate) fn move_to_first(&mut self, pair: usize) -> bool {
        let connections = self.connections.iter_mut().map(|one| &mut one.pair);
        let replies = self.replies.iter_mut().map(|(its, _)| its);
        let moved = connections.chain(replies).filter(|its| **its == pair);
        moved.map(|its| *its = 0).count() != 0
    }

    /// Takes a frame for the service from a pair of queues.
    pub(crate) fn take(&mut self, frame: &[u8], pair: usize, now: Instant) {
        match packet::read(frame) {
            Some(Incoming::Who { mac, ip }) => {
                let address = self.address;
                self.reply(pair, |out| write_arp(out, address, mac, ip));
            }
            Some(Incoming::Segment(segment)) => self.segment(&segment, pair, now),
            None => {}
        }
    }

    fn reply(&mut self, pair: usize, write: impl FnOnce(&mut Vec<u8>)) {
        if self.replies.len() < MAX_REPLIES {
            let mut frame = Vec::new();
            write(&mut frame);
            self.replies.push_back((pair, frame));
        }
    }

    fn segment(&mut self, segment: &Segment<'_>, pair: usize, now: Instant) {
        let is_its = |known: &Connection| {
            (known.peer.ip, known.peer.port) == (segment.from.ip, segment.from.port)
        };
        let mut at = self.connections.iter().position(is_its);
        if segment.to != PORT {
            return self.refuse(segment, pair);
        }
        if let Some(old) = at.filter(|at| self.connections[*at].is_replaced(segment)) {
            self.connections.swap_remove(old);
            at = None;
        }
        self.count += 1;
        let Some(at) = at else {
            match segment.flags & (SYN | ACK | RST) {
                SYN => self.open(segment, pair, now),
                _ => self.refuse(segment, pair),
            }
            return;
        };
        let connection = &mut self.connections[at];
        (connection.peer, connection.pair) = (segment.from, pair);
        connection.used = self.count;
        let service = &self.service;
        if !connection.take(segment, now, &mut |input| service.serve(input, now)) {
            self.connections.swap_remove(at);
        }
    }

    fn open(&mut self, segment: &Segment<'_>, pair: usize, now: Instant) {
        if self.connections.len() == MAX_CONNECTIONS {
            let oldest = self.connections.iter().enumerate();
            if let Some((oldest, _)) = oldest.min_by_key(|(_, connection)| connection.used) {
                self.connections.swap_remove(oldest);
            }
        }
        self.number = self.number.wrapping_add(STEP);
        let mut connection = Connection::new(segment, self.number, pair, now);
        connection.used = self.count;
        self.connections.push(connection);
    }

    /// Answers a segment that belongs to no connection (RFC 9293, section 3.5.2).
    fn refuse(&mut self, segment: &Segment<'_>, pair: usize) {
        if segment.has(RST) {
            return;
        }
        let control = u32::from(segment.has(SYN)) + u32::from(segment.has(FIN));
        let length = segment.data.len() as u32 + control;
        let (seq, ack, flags) = match segment.has(ACK) {
            true => (segment.ack, 0, RST),
            false => (0, segment.seq.wrapping_add(length), RST | ACK),
        };
        let reset = Outgoing {
            to: segment.from,
            from: segment.to,
            seq,
            ack,
            flags,
            window: 0,
            data: &[],
        };
        let address = self.address;
        self.reply(pair, |out| write_segment(out, address, &reset));
    }

    /// When there is a frame for a pair of queues: now, later, or only after one of the guest's.
    pub(crate) fn wake_at(&self, pair: usize, now: Instant) -> Option<Instant> {
        if self.replies.iter().any(|(its, _)| *its == pair) {
            return Some(now);
        }
        let its = self.connections.iter().filter(|one| one.pair == pair);
        its.filter_map(|one| match one.is_ready() {
            true => Some(now),
            false => one.retry_at(),
        })
        .min()
    }

    /// Makes `out` the next frame for a pair of queues. Returns whether there is one.
    pub(crate) fn next(&mut self, pair: usize, now: Instant, out: &mut Vec<u8>) -> bool {
        let reply = self.replies.iter().position(|(its, _)| *its == pair);
        if let Some((_, frame)) = reply.and_then(|at| self.replies.remove(at)) {
            *out = frame;
            return true;
        }
        self.connections
            .retain_mut(|one| one.pair != pair || one.remind(now));
        let count = self.connections.len();
        for turn in 0..count {
            let at = (self.first + turn) % count;
            let connection = &mut self.connections[at];
            if connection.pair != pair {
                continue;
            }
            let Some(segment) = connection.next() else {
                continue;
            };
            write_segment(out, self.address, &segment);
            debug_assert!(out.len() <= MAX_FRAME, "{}", out.len());
            if connection.is_over() {
                self.connections.swap_remove(at);
            }
            self.first = at + 1;
            return true;
        }
        false
    }

    #[cfg(any(test, feature = "test-utils"))]
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.connections.len(), self.replies.len())
    }
}
