// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A well-behaved driver.

use std::collections::BTreeMap;
use std::ops::Range;

use vm_memory::{Bytes, GuestAddress};

use crate::layout::{INDIRECT_DESC, VERSION_1};
use crate::registers::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};

use super::machine::Machine;
use super::port::Port;
use super::ring::{Buffers, DriverRing};

/// A driver's request to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The queue.
    pub queue: u16,
    /// The bytes that the device reads.
    pub readable: Vec<u8>,
    /// How many bytes the device may write.
    pub writable: u32,
}

/// A device's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// How many bytes it says that it wrote.
    pub len: u32,
    /// The writable part, all of it; [`Driver::BLANK`] where the device wrote nothing.
    pub bytes: Vec<u8>,
}

/// A driver that follows the rules.
///
/// Its rings are at the start of guest memory, followed by its buffers.
#[derive(Debug)]
pub struct Driver {
    /// The device's queues.
    pub rings: Vec<DriverRing>,
    features: u64,
    /// Where buffers are allocated, as a circular range.
    data: Range<u64>,
    next: u64,
    /// The requests in flight, by queue and head.
    sent: BTreeMap<(u16, u32), InFlight>,
    count: u32,
}

/// A request that the device has.
#[derive(Debug)]
struct InFlight {
    number: u32,
    /// The address and length of the writable part.
    writable: (u64, u32),
    /// All of its memory.
    memory: Range<u64>,
}

/// The bytes of an indirect table: twice three pieces.
const TABLE: u64 = 16 * 6;

/// Splits a buffer into three, which is unusual but allowed.
fn pieces(at: u64, len: u32) -> Vec<(u64, u32)> {
    let third = len / 3;
    let pieces = [
        (at, third),
        (at + u64::from(third), third),
        (at + 2 * u64::from(third), len - 2 * third),
    ];
    pieces.into_iter().filter(|(_, len)| *len != 0).collect()
}

impl Driver {
    /// The contents of a writable buffer before the device writes.
    pub const BLANK: u8 = 0xa5;

    /// Starts a device with the features of `wanted` that it offers.
    ///
    /// # Panics
    /// If the device refuses them.
    pub fn start<P: Port>(machine: &mut Machine<P>, wanted: u64) -> Self {
        let driver = Driver::prepare(machine, wanted);
        driver.finish(machine);
        driver
    }

    /// Does all steps except for `DRIVER_OK`.
    ///
    /// # Panics
    /// If the device refuses the features.
    pub fn prepare<P: Port>(machine: &mut Machine<P>, wanted: u64) -> Self {
        machine.set_status(0);
        machine.pump_until(|machine| machine.port.status() == 0);
        machine.set_status(ACKNOWLEDGE);
        machine.set_status(ACKNOWLEDGE | DRIVER);
        let port = &mut machine.port;
        let offered = u64::from(port.device_features(0)) | u64::from(port.device_features(1)) << 32;
        let features = offered & wanted | VERSION_1;
        port.set_driver_features(0, features as u32);
        port.set_driver_features(1, (features >> 32) as u32);
        machine.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        let status = machine.port.status();
        assert_eq!(status & FEATURES_OK, FEATURES_OK, "features {features:#x}");
        let mut base = 0;
        let mut rings = Vec::new();
        for queue in 0.. {
            let size = machine.port.max_queue_size(queue);
            if size == 0 {
                break;
            }
            let ring = DriverRing::new(&machine.memory, base, size);
            machine.port.set_up_queue(queue, &ring.state());
            assert!(machine.port.is_queue_ready(queue), "queue {queue}");
            base += DriverRing::bytes(size);
            rings.push(ring);
        }
        let end = super::MEMORY as u64;
        Driver {
            rings,
            features,
            data: base..end,
            next: base,
            sent: BTreeMap::new(),
            count: 0,
        }
    }

    /// Sets `DRIVER_OK`.
    pub fn finish<P: Port>(&self, machine: &mut Machine<P>) {
        machine.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// The features that it accepted.
    pub const fn features(&self) -> u64 {
        self.features
    }

    /// The next memory that no request in flight has.
    fn room(&mut self, len: u64) -> Range<u64> {
        let mut at = self.next;
        let mut wraps = 0;
        loop {
            if self.data.end - at < len {
                at = self.data.start;
                wraps += 1;
                assert!(wraps <= 2, "room for a request");
            }
            let taken = self.sent.values().map(|sent| &sent.memory);
            let mut taken = taken.filter(|taken| taken.start < at + len && at < taken.end);
            let Some(taken) = taken.next() else {
                break;
            };
            at = taken.end;
        }
        self.next = at + len;
        at..self.next
    }

    /// Makes a request available without a notification, and returns its number. Every second request uses an indirect
    /// table, if negotiated.
    ///
    /// # Panics
    /// If the queue is full or there is no memory.
    pub fn send<P: Port>(&mut self, machine: &Machine<P>, request: &Request) -> u32 {
        let Request {
            queue,
            readable,
            writable,
        } = request;
        let [first, second] = [readable.len() as u64, (*writable).into()];
        let [first, second] = [first, second].map(|len: u64| len.next_multiple_of(16));
        let block = self.room(first + second + TABLE);
        let [from, to, table] = [block.start, block.start + first, block.end - TABLE];
        let memory = &machine.memory;
        let write = |bytes: &[u8], at| memory.write_slice(bytes, GuestAddress(at));
        write(readable, from).expect("a buffer");
        write(&vec![Self::BLANK; *writable as usize], to).expect("a buffer");
        let buffers = Buffers {
            readable: pieces(from, readable.len() as u32),
            writable: pieces(to, *writable),
        };
        let number = self.count;
        self.count += 1;
        let ring = &mut self.rings[usize::from(*queue)];
        let head = if number % 2 == 1 && self.features & INDIRECT_DESC != 0 {
            ring.send_indirect(table, &buffers)
        } else {
            ring.send(&buffers)
        };
        let sent = InFlight {
            number,
            writable: (to, *writable),
            memory: block,
        };
        self.sent.insert((*queue, head.into()), sent);
        number
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> usize {
        self.sent.len()
    }

    /// Takes the next answer of a queue: the request's number and the reply.
    ///
    /// # Panics
    /// If the device returns a chain that it doesn't have, or reports more bytes than it may write.
    pub fn receive<P: Port>(&mut self, machine: &Machine<P>, queue: u16) -> Option<(u32, Reply)> {
        let used = self.rings[usize::from(queue)].take()?;
        let sent = self.sent.remove(&(queue, used.head));
        let sent = sent.expect("a head that the device has");
        let (number, (at, len)) = (sent.number, sent.writable);
        assert!(used.len <= len, "{} bytes of {len}", used.len);
        let mut bytes = vec![0; len as usize];
        let read = machine.memory.read_slice(&mut bytes, GuestAddress(at));
        read.expect("a buffer");
        let len = used.len;
        Some((number, Reply { len, bytes }))
    }

    /// Takes the answers of all queues.
    ///
    /// # Panics
    /// As for [`receive`](Self::receive).
    pub fn receive_all<P: Port>(&mut self, machine: &Machine<P>) -> Vec<(u32, Reply)> {
        let mut replies = Vec::new();
        for queue in 0..self.rings.len() as u16 {
            while let Some(reply) = self.receive(machine, queue) {
                replies.push(reply);
            }
        }
        replies
    }
}
