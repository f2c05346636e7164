// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A host that notes what it gets, and a driver in memory.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use virtio_models::balloon::{Balloon, Control, Counters, Counts, Host, Options};
use virtio_transport::testing::{
    Buffers, Driver, MEMORY, Machine, Memory, MmioPort, Port, Reply, Request, memory,
};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

pub const INFLATE: u16 = 0;
pub const DEFLATE: u16 = 1;
pub const STATS: u16 = 2;
pub const HINTS: u16 = 3;
pub const REPORTS: u16 = 4;

pub const PAGE: u64 = 4096;
pub const DONE: u32 = 1;
pub const STOP: u32 = 0;

pub const ALL: Options = Options {
    deflate_on_oom: true,
    stats: true,
    reporting: true,
    hinting: true,
};

/// Notes the ranges of each call.
#[derive(Clone, Debug, Default)]
pub struct Notes(Arc<Mutex<Vec<Vec<Range<u64>>>>>);

impl Notes {
    /// The calls since the last look.
    pub fn take(&self) -> Vec<Vec<Range<u64>>> {
        std::mem::take(&mut self.0.lock().expect("no panic"))
    }
}

impl Host<Memory> for Notes {
    fn give_back(&mut self, _: &<Memory as GuestAddressSpace>::M, ranges: &[Range<u64>]) -> u64 {
        self.0.lock().expect("no panic").push(ranges.to_vec());
        ranges.iter().map(|range| range.end - range.start).sum()
    }
}

/// A machine with a balloon, and its driver.
pub struct Guest {
    pub machine: Machine<MmioPort>,
    pub driver: Driver,
    pub control: Arc<Control>,
    pub counters: Arc<Counters>,
    pub given: Notes,
}

/// A device for this control, without a driver.
pub fn device(options: Options, control: &Arc<Control>, given: &Notes) -> Balloon<Memory> {
    Balloon::new(options, Arc::clone(control), Box::new(given.clone()))
}

impl Guest {
    pub fn new() -> Self {
        Guest::wanting(ALL, !0)
    }

    /// A driver that accepts of the features only `wanted`.
    pub fn wanting(options: Options, wanted: u64) -> Self {
        let (control, given) = (Arc::new(Control::new(0, 3600)), Notes::default());
        let device = device(options, &control, &given);
        let counters = device.counters();
        let mut machine = Machine::new(Box::new(device), &memory(MEMORY));
        let driver = Driver::start(&mut machine, wanted);
        machine.pump();
        Guest {
            machine,
            driver,
            control,
            counters,
            given,
        }
    }

    /// Makes a request available, without a notification.
    pub fn queue(&mut self, queue: u16, readable: Vec<u8>, writable: u32) {
        let request = Request {
            queue,
            readable,
            writable,
        };
        self.driver.send(&self.machine, &request);
    }

    /// Notifies, and waits until the device rests.
    pub fn kick(&mut self, queue: u16) -> Vec<Reply> {
        self.machine.kick(queue);
        self.machine.pump();
        let replies = self.driver.receive_all(&self.machine);
        replies.into_iter().map(|(_, reply)| reply).collect()
    }

    /// Sends one request. Returns whether it was returned.
    pub fn send(&mut self, queue: u16, readable: Vec<u8>, writable: u32) -> bool {
        self.queue(queue, readable, writable);
        let replies = self.kick(queue);
        assert!(replies.iter().all(|reply| reply.len == 0));
        replies.len() == 1
    }

    /// Inflates by these pages. Returns what the host got.
    pub fn inflate(&mut self, pages: &[u32]) -> Vec<Range<u64>> {
        assert!(self.send(INFLATE, numbers(pages), 0));
        self.given.take().concat()
    }

    /// Writes a field of the configuration.
    pub fn configure(&mut self, at: u64, value: u32) {
        // Device configuration begins at 0x100 (4.2.2).
        self.machine.write(0x100 + at, &value.to_le_bytes());
        self.machine.pump();
    }

    /// A field of the configuration, as the driver sees it.
    pub fn field(&mut self, at: u64) -> u32 {
        let mut value = [0; 4];
        self.machine.port.read(0x100 + at, &mut value);
        u32::from_le_bytes(value)
    }

    /// Makes buffers at these addresses available.
    pub fn offer(&mut self, queue: u16, readable: &[(u64, u32)], writable: &[(u64, u32)]) {
        self.driver.rings[usize::from(queue)].send(&Buffers {
            readable: readable.to_vec(),
            writable: writable.to_vec(),
        });
    }

    /// Notifies. Returns how many of the buffers that were offered came back.
    pub fn taken(&mut self, queue: u16) -> usize {
        self.machine.kick(queue);
        self.machine.pump();
        let ring = &mut self.driver.rings[usize::from(queue)];
        let used = std::iter::from_fn(|| ring.take());
        used.inspect(|used| assert_eq!(used.len, 0)).count()
    }

    /// Writes to the page of guest memory that no ring and no buffer uses here. Returns its address.
    pub fn note(&self, bytes: &[u8]) -> u64 {
        let at = MEMORY as u64 - PAGE;
        let written = self.machine.memory.write_slice(bytes, GuestAddress(at));
        written.expect("guest memory");
        at
    }

    /// Pauses it, and goes on with its state in another device.
    pub fn restored(mut self) -> Self {
        self.machine.pause().expect("a device that stops");
        let saved = self.machine.save();
        let (control, given) = (Arc::new(Control::new(0, 3600)), Notes::default());
        let device = device(ALL, &control, &given);
        let counters = device.counters();
        let mut machine = Machine::new(Box::new(device), &self.machine.memory);
        machine.restore(&saved).expect("the same device");
        machine.resume();
        machine.pump();
        Guest {
            machine,
            driver: self.driver,
            control,
            counters,
            given,
        }
    }

    /// What the device counted.
    pub fn counts(&self) -> Counts {
        self.counters.get()
    }

    /// Lets the device see what the VMM wants.
    pub fn pump(&mut self) {
        self.machine.pump();
    }
}

/// Page numbers, as a request has them.
pub fn numbers(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

/// Statistics, as a request has them.
pub fn stats(entries: &[(u16, u64)]) -> Vec<u8> {
    let entry = |(tag, value): &(u16, u64)| {
        let (tag, value) = (tag.to_le_bytes(), value.to_le_bytes());
        [&tag[..], &value[..]].concat()
    };
    entries.iter().flat_map(entry).collect()
}

/// A range of pages in bytes.
pub fn pages(pages: Range<u64>) -> Range<u64> {
    pages.start * PAGE..pages.end * PAGE
}
