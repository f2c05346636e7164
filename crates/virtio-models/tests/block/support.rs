// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk in memory that tests control, and a driver for it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::event::{EventfdFlags, eventfd};
use virtio_models::block::{
    Backend, Block, Control, Counters, Disk, Done, Notice, Operation, SECTOR,
};
use virtio_models::rate::Limiter;
use virtio_transport::testing::{
    Buffers, Driver, MEMORY, Machine, Memory, MmioPort, Reply, Request, memory,
};
use vm_memory::{Bytes, GuestAddress};

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;

/// How a [`Ram`] behaves.
#[derive(Debug, Default)]
pub struct Behaviour {
    pub bytes: Vec<u8>,
    /// The operations performed, in order.
    pub log: Vec<String>,
    /// The errors of the next operations.
    pub faults: VecDeque<Option<io::Error>>,
    /// The most bytes per transfer, if not 0.
    pub short: usize,
    /// No operation is performed.
    pub held: bool,
    /// The last operation completes first.
    pub backwards: bool,
    /// Writing zeros is unsupported.
    pub no_zeroes: bool,
    /// Discarding and writing zeros fails for ranges that aren't multiples of this many bytes, if not 0.
    pub erases: u64,
    /// The alignment that addresses and lengths of memory need, if not 0.
    pub alignment: usize,
    pub length_alignment: usize,
    /// The size behind `bytes`, which can only be discarded.
    pub more: u64,
    /// The number of operations in flight.
    pub in_flight: usize,
    /// The next calls of `submit` that are refused.
    pub refusals: u32,
}

/// A disk in memory.
pub struct Ram {
    shared: Arc<Mutex<Behaviour>>,
    waiting: Vec<(u32, Operation)>,
    submitted: usize,
    bell: OwnedFd,
}

impl Behaviour {
    fn perform(&mut self, operation: &Operation) -> io::Result<usize> {
        self.log.push(match operation {
            Operation::Read { offset, .. } => format!("read {offset}"),
            Operation::Write { offset, .. } => format!("write {offset}"),
            Operation::Flush => "flush".to_owned(),
            Operation::Discard { offset, len } => format!("discard {offset} {len}"),
            Operation::WriteZeroes { offset, len, .. } => format!("zeroes {offset} {len}"),
        });
        if let Some(Some(fault)) = self.faults.pop_front() {
            return Err(fault);
        }
        let end = self.bytes.len();
        let cut = |offset: u64, len: usize| {
            let start = (offset as usize).min(end);
            let len = if self.short == 0 {
                len
            } else {
                len.min(self.short)
            };
            start..(start + len).min(end)
        };
        if let Operation::Read { buffers, .. } | Operation::Write { buffers, .. } = operation {
            let (address, length) = (self.alignment.max(1), self.length_alignment.max(1));
            assert!(buffers.are_aligned(usize::MAX, address, length));
        }
        if let Operation::Discard { offset, len } | Operation::WriteZeroes { offset, len, .. } =
            operation
            && (offset | len) & self.erases.saturating_sub(1) != 0
        {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        match operation {
            Operation::Read { offset, buffers } => {
                let at = cut(*offset, buffers.left());
                Ok(buffers.copy_from(&self.bytes[at]))
            }
            Operation::Write { offset, buffers } => {
                let at = cut(*offset, buffers.left());
                Ok(buffers.copy_to(&mut self.bytes[at]))
            }
            Operation::WriteZeroes { .. } if self.no_zeroes => {
                Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
            }
            Operation::WriteZeroes { offset, len, .. } => {
                let start = *offset as usize;
                self.bytes[start..start + *len as usize].fill(0);
                Ok(0)
            }
            Operation::Flush | Operation::Discard { .. } => Ok(0),
        }
    }
}

impl Backend for Ram {
    fn source(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn size(&self) -> io::Result<u64> {
        let shared = self.shared.lock().expect("no test panicked");
        Ok(shared.bytes.len() as u64 + shared.more)
    }

    fn push(&mut self, token: u32, operation: Operation) {
        self.waiting.push((token, operation));
        self.shared.lock().expect("no test panicked").in_flight += 1;
    }

    fn submit(&mut self) -> bool {
        let mut shared = self.shared.lock().expect("no test panicked");
        if shared.refusals > 0 {
            shared.refusals -= 1;
            return false;
        }
        self.submitted = self.waiting.len();
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        true
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        let mut shared = self.shared.lock().expect("no test panicked");
        if shared.held {
            return;
        }
        let mut waiting: Vec<_> = self.waiting.drain(..self.submitted).collect();
        self.submitted = 0;
        shared.in_flight -= waiting.len();
        if shared.backwards {
            waiting.reverse();
        }
        for (token, operation) in waiting {
            let result = shared.perform(&operation);
            let buffers = match operation {
                Operation::Read { buffers, .. } | Operation::Write { buffers, .. } => Some(buffers),
                _ => None,
            };
            done.push(Done {
                token,
                result,
                buffers,
            });
        }
    }
}

/// A machine with a disk in memory and a running driver.
pub struct Guest {
    pub machine: Machine<MmioPort>,
    pub driver: Driver,
    shared: Arc<Mutex<Behaviour>>,
    notices: Arc<Mutex<Vec<Notice>>>,
    pub control: Arc<Control>,
    pub counters: Arc<Counters>,
}

/// The header of a request.
pub fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    header
}

/// Writes a request's header to guest memory.
pub fn write_header(guest: &Guest, at: u64, kind: u32, sector: u64) {
    let memory = &guest.machine.memory;
    let written = memory.write_slice(&header(kind, sector), GuestAddress(at));
    written.expect("a header");
}

/// A request that reads or writes, with its parts at these addresses.
pub fn transfer(
    kind: u32,
    header: u64,
    data: impl IntoIterator<Item = (u64, u32)>,
    status: u64,
) -> Buffers {
    let mut buffers = Buffers {
        readable: vec![(header, 16)],
        writable: vec![],
    };
    match kind {
        IN => buffers.writable.extend(data),
        _ => buffers.readable.extend(data),
    }
    buffers.writable.push((status, 1));
    buffers
}

/// A range to discard or to fill with zeros.
pub fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    let mut range = sector.to_le_bytes().to_vec();
    range.extend(count.to_le_bytes());
    range.extend(flags.to_le_bytes());
    range
}

/// The initial value of byte `i` of a disk.
pub fn pattern(i: usize) -> u8 {
    (i / 512 * 7 + i) as u8
}

impl Guest {
    pub fn new(sectors: u64) -> Self {
        Self::with(sectors, Disk::default(), u64::MAX)
    }

    pub fn with(sectors: u64, disk: Disk, wanted: u64) -> Self {
        Self::limited(sectors, disk, wanted, None)
    }

    pub fn limited(sectors: u64, disk: Disk, wanted: u64, limiter: Option<Limiter>) -> Self {
        let shared = Arc::new(Mutex::new(Behaviour {
            bytes: (0..(sectors * SECTOR) as usize).map(pattern).collect(),
            ..Behaviour::default()
        }));
        let ram = Ram {
            shared: Arc::clone(&shared),
            waiting: Vec::new(),
            submitted: 0,
            bell: eventfd(0, EventfdFlags::NONBLOCK).expect("a disk for a test"),
        };
        let notices = Arc::new(Mutex::new(Vec::new()));
        let said = Arc::clone(&notices);
        let report = Box::new(move |notice| said.lock().expect("no test panicked").push(notice));
        let disk = Disk { sectors, ..disk };
        let mut block = Block::<Memory>::with_backend(disk, Box::new(ram), report);
        if let Some(limiter) = limiter {
            block = block.with_limiter(limiter);
        }
        let control = block.control();
        let counters = block.counters();
        let mut machine = Machine::new(Box::new(block), &memory(MEMORY));
        let driver = Driver::start(&mut machine, wanted);
        Guest {
            machine,
            driver,
            shared,
            notices,
            control,
            counters,
        }
    }

    /// Starts the driver anew.
    pub fn restart(&mut self) {
        self.driver = Driver::start(&mut self.machine, u64::MAX);
    }

    pub fn disk(&self) -> MutexGuard<'_, Behaviour> {
        self.shared.lock().expect("no test panicked")
    }

    pub fn resize(&self) {
        self.control.resize();
    }

    pub fn notices(&self) -> Vec<String> {
        let notices = self.notices.lock().expect("no test panicked");
        notices.iter().map(ToString::to_string).collect()
    }

    /// Sends a request. Returns its number.
    pub fn send(&mut self, readable: Vec<u8>, writable: u32) -> u32 {
        let request = Request {
            queue: 0,
            readable,
            writable,
        };
        let number = self.driver.send(&self.machine, &request);
        self.machine.kick(0);
        number
    }

    /// Sends a request and returns its answer. No other request may be in flight.
    pub fn ask(&mut self, readable: Vec<u8>, writable: u32) -> Reply {
        let number = self.send(readable, writable);
        let mut answer = None;
        let (driver, machine) = (&mut self.driver, &mut self.machine);
        machine.pump_until(|machine| {
            answer = driver.receive(machine, 0);
            answer.is_some()
        });
        let (answered, reply) = answer.expect("a disk for a test");
        assert_eq!(answered, number);
        reply
    }

    /// The status of a request with space for only the status.
    pub fn status(&mut self, readable: Vec<u8>) -> u8 {
        let reply = self.ask(readable, 1);
        assert_eq!(reply.len, 1);
        reply.bytes[0]
    }

    pub fn read(&mut self, sector: u64, len: u32) -> (u8, Vec<u8>) {
        let mut reply = self.ask(header(IN, sector), len + 1);
        let status = reply.bytes.pop().expect("a disk for a test");
        if status == OK {
            assert_eq!(reply.len, len + 1);
        }
        (status, reply.bytes)
    }

    pub fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.status([&header(OUT, sector)[..], data].concat())
    }

    pub fn zero(&mut self, kind: u32, sector: u64, count: u32, flags: u32) -> u8 {
        self.status([header(kind, 0), range(sector, count, flags)].concat())
    }
}
