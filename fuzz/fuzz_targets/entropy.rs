// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An entropy device whose driver sends what the input says: requests of any lengths, several at once; or rings made of
//! bytes. Each request gets as many bytes as it has room for, up to the limit, and the device works after a reset.

#![no_main]

use libfuzzer_sys::fuzz_target;
use virtio_models::entropy::{Entropy, MAX_REQUEST};
use virtio_transport::testing::{Driver, MEMORY, Machine, Memory, MmioPort, Request, memory};
use vm_memory::{Bytes, GuestAddress};

/// Requests that a driver has at once, so that their buffers fit into its memory.
const MAX_IN_FLIGHT: usize = 4;

/// Lengths of both parts. A chain has at least one buffer.
fn request([readable, high, middle, low]: [u8; 4]) -> Request {
    let writable = u32::from_be_bytes([0, high % 2, middle, low]);
    Request {
        queue: 0,
        readable: vec![0; usize::from(readable).max(usize::from(writable == 0))],
        writable,
    }
}

/// Lets the device answer, and checks the answers.
fn answer(machine: &mut Machine<MmioPort>, driver: &mut Driver) {
    machine.kick(0);
    machine.pump();
    for (_, reply) in driver.receive_all(machine) {
        let room = reply.bytes.len() as u64;
        assert_eq!(u64::from(reply.len), room.min(MAX_REQUEST));
        let rest = &reply.bytes[reply.len as usize..];
        assert!(rest.iter().all(|byte| *byte == Driver::BLANK));
    }
    assert_eq!(driver.in_flight(), 0, "an answer to each request");
}

fuzz_target!(|input: &[u8]| {
    let Some((&[choices, raw], bytes)) = input.split_first_chunk() else {
        return;
    };
    let device = Box::new(Entropy::<Memory>::new());
    let mut machine = Machine::<MmioPort>::new(device, &memory(MEMORY));
    // Leaves out a ring's features.
    let mut driver = Driver::start(&mut machine, !(u64::from(choices % 4) << 28));
    machine.pump();
    if raw % 2 == 0 {
        let bytes = &bytes[..bytes.len().min(0x4000)];
        let written = machine.memory.write_slice(bytes, GuestAddress(0));
        written.expect("guest memory");
        machine.kick(0);
        machine.pump();
    } else {
        for step in bytes.as_chunks().0 {
            driver.send(&machine, &request(*step));
            let waits = step[1] & 2 != 0;
            if !waits || driver.in_flight() == MAX_IN_FLIGHT {
                answer(&mut machine, &mut driver);
            }
        }
        answer(&mut machine, &mut driver);
        assert!(machine.failures.is_empty());
        machine.pause().expect("a device that drains");
        machine.resume();
    }
    let mut driver = Driver::start(&mut machine, u64::MAX);
    driver.send(&machine, &request([0, 0, 0, 64]));
    answer(&mut machine, &mut driver);
});
