// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk whose driver sends what the input says: requests with any header and any lengths, or rings made of bytes. No
//! operation leaves the disk, each request is answered, and the device works after a reset.

#![no_main]

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd};

use libfuzzer_sys::fuzz_target;
use virtio_models::block::{Backend, Block, Cache, Disk, Done, Operation};
use virtio_transport::testing::{Driver, MEMORY, Machine, Memory, MmioPort, Request, memory};
use vm_memory::{Bytes, GuestAddress};

const SIZE: usize = 64 << 10;

/// A disk in memory that performs operations as they are taken.
struct Ram {
    bytes: Vec<u8>,
    waiting: Vec<(u32, Operation)>,
    /// Never readable.
    source: (PipeReader, PipeWriter),
    /// How many bytes are moved at a time at most.
    short: usize,
    faults: u8,
    /// The alignment that addresses and lengths of memory need.
    alignment: (usize, usize),
}

impl Ram {
    fn perform(&mut self, operation: &Operation) -> io::Result<usize> {
        self.faults = self.faults.rotate_left(1);
        if let Operation::Read { buffers, .. } | Operation::Write { buffers, .. } = operation {
            let (address, length) = self.alignment;
            assert!(buffers.are_aligned(SIZE, address, length));
        }
        let (offset, len) = match operation {
            Operation::Read { offset, buffers } | Operation::Write { offset, buffers } => {
                (*offset, buffers.left() as u64)
            }
            Operation::Discard { offset, len } | Operation::WriteZeroes { offset, len, .. } => {
                (*offset, *len)
            }
            Operation::Flush => (0, 0),
        };
        let end = offset.checked_add(len).expect("a range");
        assert!(end <= SIZE as u64, "{operation:?} leaves the disk");
        if self.faults & 1 != 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let start = offset as usize;
        let at = start..start + (len as usize).min(self.short);
        match operation {
            Operation::Read { buffers, .. } => Ok(buffers.copy_from(&self.bytes[at])),
            Operation::Write { buffers, .. } => Ok(buffers.copy_to(&mut self.bytes[at])),
            _ => Ok(0),
        }
    }
}

impl Backend for Ram {
    fn source(&self) -> BorrowedFd<'_> {
        self.source.0.as_fd()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(SIZE as u64)
    }

    fn push(&mut self, token: u32, operation: Operation) {
        self.waiting.push((token, operation));
    }

    fn submit(&mut self) -> bool {
        true
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        for (token, operation) in std::mem::take(&mut self.waiting) {
            let result = self.perform(&operation);
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

/// A request: kind, sector, lengths.
fn request(step: &[u8; 8]) -> Request {
    let [kind, high, low, shift, readable, writable, fill, odd] = *step;
    let sector = u64::from(u16::from_be_bytes([high, low])) << (shift % 64);
    let mut bytes = u32::from(kind % 32).to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes.resize(16 + usize::from(readable % 32) * 16, fill);
    bytes.truncate(bytes.len() - usize::from(odd % 17).min(bytes.len() - 1));
    Request {
        queue: 0,
        readable: bytes,
        writable: u32::from(writable) * 128 + u32::from(odd / 17),
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((&[choices, faults, short, raw], bytes)) = input.split_first_chunk() else {
        return;
    };
    let alignment = if choices & 2 != 0 { 512 } else { 1 };
    let length_alignment = if raw & 2 != 0 { 512 } else { 1 };
    let ram = Ram {
        bytes: vec![0; SIZE],
        waiting: Vec::new(),
        source: io::pipe().expect("a pipe"),
        short: (usize::from(short) * 64 + 64).next_multiple_of(length_alignment as usize),
        faults,
        alignment: (alignment as usize, length_alignment as usize),
    };
    let disk = Disk {
        sectors: SIZE as u64 / 512,
        readonly: choices & 1 != 0,
        alignment,
        length_alignment,
        cache: match (choices & 4 != 0, raw & 4 != 0) {
            (true, true) => Cache::Unsafe,
            (true, false) => Cache::Writeback,
            (false, _) => Cache::Writethrough,
        },
        ..Disk::default()
    };
    let block = Block::<Memory>::with_backend(disk, Box::new(ram), Box::new(|_| ()));
    let mut machine = Machine::<MmioPort>::new(Box::new(block), &memory(MEMORY));
    let mut driver = Driver::start(&mut machine, !(u64::from(choices >> 3) << 9));
    machine.pump();
    if raw % 2 == 0 {
        let bytes = &bytes[..bytes.len().min(0x4000)];
        let written = machine.memory.write_slice(bytes, GuestAddress(0));
        written.expect("guest memory");
        machine.kick(0);
        machine.pump();
    } else {
        for step in bytes.as_chunks().0 {
            driver.send(&machine, &request(step));
            machine.kick(0);
            machine.pump();
            assert_eq!(driver.receive_all(&machine).len(), 1, "an answer");
        }
        assert!(machine.failures.is_empty());
    }
    let mut driver = Driver::start(&mut machine, u64::MAX);
    driver.send(&machine, &request(&[8, 0, 0, 0, 0, 1, 0, 0]));
    machine.kick(0);
    machine.pump();
    assert_eq!(driver.receive_all(&machine).len(), 1, "an answer");
});
