// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A console device whose driver and host do what the input says: control messages of any kind, buffers of any length, data,
//! ends; or rings made of bytes. The device always comes to rest, and works after a reset.

#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use virtio_models::console::{Console, Port, Stream};
use virtio_transport::testing::{Driver, MEMORY, Machine, Memory, MmioPort, Request, memory};
use vm_memory::{Bytes, GuestAddress};

/// The queues of each port, and the control queues.
const QUEUES: [u16; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

/// Two ports and a console, each with the other end of its socket.
fn device() -> (Console<Memory>, Vec<Option<UnixStream>>) {
    let mut ends = Vec::new();
    let mut peer = || {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        for socket in [&ours, &theirs] {
            socket.set_nonblocking(true).expect("a socket");
        }
        ends.push(Some(theirs));
        let other = ours.try_clone().expect("a descriptor");
        Arc::new(Mutex::new(Stream::new(
            Some(ours.into()),
            Some(other.into()),
        )))
    };
    let console = peer();
    let ports = ["a", "b"].map(|name| Port {
        name: name.to_owned(),
        peer: peer(),
    });
    let device = Console::new(Some(console), ports.into(), Box::new(|_| ()));
    (device, ends)
}

/// What a driver or a process of the host does.
fn act(
    machine: &mut Machine<MmioPort>,
    driver: &mut Driver,
    ends: &mut [Option<UnixStream>],
    step: &[u8; 8],
) {
    let [what, queue, id, event, value, high, low, fill] = *step;
    let len = usize::from(u16::from_be_bytes([high, low]));
    let number = usize::from(id) % ends.len();
    let request = match what % 8 {
        0..3 => {
            let mut bytes = vec![id % 5, 0, 0, 0, event % 10, 0, value % 3, 0];
            bytes.resize(if fill > 0xf0 { len + 1 } else { 8 }, fill);
            Request {
                queue: 3,
                readable: bytes,
                writable: 0,
            }
        }
        3 | 4 => {
            let queue = QUEUES[usize::from(queue) % QUEUES.len()];
            let is_from_driver = queue % 2 == 1;
            Request {
                queue,
                readable: if is_from_driver {
                    vec![fill; len + 1]
                } else {
                    Vec::new()
                },
                writable: if is_from_driver { 0 } else { len as u32 + 1 },
            }
        }
        5 => {
            if let Some(end) = &mut ends[number] {
                let _ = end.write(&vec![fill; len]);
            }
            return machine.pump();
        }
        6 => {
            if let Some(end) = &mut ends[number] {
                let _ = end.read(&mut vec![0; len]);
            }
            return machine.pump();
        }
        _ if fill > 0xe0 => {
            ends[number] = None;
            return machine.pump();
        }
        _ => {
            machine.pause().expect("a device that stops");
            machine.resume();
            return machine.pump();
        }
    };
    // A full queue takes no more.
    if driver.in_flight() < 40 {
        driver.send(machine, &request);
    }
    machine.kick(request.queue);
    machine.pump();
    driver.receive_all(machine);
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, input)) = input.split_first() else {
        return;
    };
    let (device, mut ends) = device();
    let mut machine: Machine<MmioPort> = Machine::new(Box::new(device), &memory(MEMORY));
    let features = if choice & 1 == 0 { u64::MAX } else { !2 };
    let mut driver = Driver::start(&mut machine, features);
    machine.pump();
    if choice & 2 == 0 {
        for step in input.as_chunks::<8>().0 {
            act(&mut machine, &mut driver, &mut ends, step);
        }
    } else {
        let len = input.len().min(MEMORY);
        let written = machine.memory.write_slice(&input[..len], GuestAddress(0));
        written.expect("guest memory");
        for queue in QUEUES {
            machine.kick(queue);
            machine.pump();
        }
    }
    // It works after a reset.
    let mut driver = Driver::start(&mut machine, u64::MAX);
    machine.failures.clear();
    let ready = Request {
        queue: 3,
        readable: vec![0, 0, 0, 0, 0, 0, 1, 0],
        writable: 0,
    };
    driver.send(&machine, &ready);
    machine.kick(3);
    machine.pump();
    assert!(driver.receive(&machine, 3).is_some() && machine.failures.is_empty());
});
