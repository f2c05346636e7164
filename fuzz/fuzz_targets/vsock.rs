// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A socket device whose driver and processes of the host do what the input says: packets with any header, buffers of any
//! length, commands, data, ends; or rings made of bytes. Each packet of the guest is returned, and the device works after
//! a reset.

#![no_main]

use std::collections::VecDeque;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use virtio_models::vsock::{HEADER, Host, Vsock};
use virtio_transport::testing::{Driver, MEMORY, Machine, Memory, MmioPort, Request, memory};
use vm_memory::{Bytes, GuestAddress};

/// The processes of the host.
#[derive(Default)]
struct Processes {
    /// Those that are connected, or were.
    connected: VecDeque<UnixStream>,
    /// The other ends of those that wait to be accepted.
    waiting: VecDeque<UnixStream>,
}

struct Fake {
    processes: Mutex<Processes>,
    /// Readable while a process waits.
    source: (PipeReader, PipeWriter),
}

impl Fake {
    fn pair(&self) -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        for socket in [&ours, &theirs] {
            socket.set_nonblocking(true).expect("a socket");
        }
        (ours, theirs)
    }

    fn keep(&self, socket: UnixStream) {
        let mut processes = self.processes.lock().expect("no panic");
        processes.connected.push_back(socket);
        if processes.connected.len() > 8 {
            processes.connected.pop_front();
        }
    }

    /// A process connects and says this.
    fn connect_to_guest(&self, says: &[u8]) {
        let (ours, mut theirs) = self.pair();
        theirs.write_all(says).expect("a short command");
        self.keep(theirs);
        let mut processes = self.processes.lock().expect("no panic");
        processes.waiting.push_back(ours);
        (&self.source.1).write_all(&[0]).expect("a short queue");
    }
}

impl Host for Fake {
    fn source(&self) -> BorrowedFd<'_> {
        self.source.0.as_fd()
    }

    fn accept(&self) -> io::Result<OwnedFd> {
        let mut processes = self.processes.lock().expect("no panic");
        let socket = processes.waiting.pop_front();
        let socket = socket.ok_or(io::ErrorKind::WouldBlock)?;
        (&self.source.0).read_exact(&mut [0])?;
        Ok(socket.into())
    }

    fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        if port % 4 == 3 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = self.pair();
        self.keep(theirs);
        Ok(ours.into())
    }
}

/// A packet.
fn packet([op, kind, local, peer]: [u8; 4], len: u32, flags: u32, numbers: [u32; 2]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER);
    bytes.extend(3_u64.to_le_bytes());
    bytes.extend(2_u64.to_le_bytes());
    // Some are the host's own ports.
    let local = u32::from(local % 8) | u32::from(local / 128) << 30;
    for word in [u32::from(peer % 4), local, len] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend([kind, 0, op, 0]);
    for word in [flags, numbers[0], numbers[1]] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

/// What a driver or a process of the host does.
fn act(machine: &mut Machine<MmioPort>, driver: &mut Driver, host: &Fake, step: &[u8; 8]) {
    let [what, op, ports, high, low, flags, alloc, fill] = *step;
    let len = u32::from(u16::from_be_bytes([high, low]));
    let request = match what % 8 {
        0..4 => {
            let kind = if what >= 0xf8 { fill } else { 1 };
            let numbers = [
                u32::from(alloc) << (fill % 32),
                u32::from(fill) * u32::from(low),
            ];
            let head = [op % 9, kind, ports, ports >> 4];
            let mut bytes = packet(head, len, flags.into(), numbers);
            // Now and then it is shorter than it says, or even than a header.
            let cut = if flags >= 0xf0 { usize::from(fill) } else { 0 };
            bytes.resize((HEADER + len as usize).saturating_sub(cut).max(1), fill);
            Request {
                queue: 1,
                readable: bytes,
                writable: 0,
            }
        }
        4 => Request {
            queue: if op % 16 == 0 { 2 } else { 0 },
            readable: Vec::new(),
            writable: len.clamp(HEADER as u32 + 1, 20_000),
        },
        5 => {
            let says = format!("CONNECT {}\n", ports % 4);
            let cut = usize::from(flags) % (2 * says.len());
            host.connect_to_guest(&says.as_bytes()[..cut.min(says.len())]);
            return machine.pump();
        }
        other => {
            let mut processes = host.processes.lock().expect("no panic");
            let count = processes.connected.len();
            if count == 0 {
                return;
            }
            let number = usize::from(ports) % count;
            match (other, op % 4) {
                (6, _) => {
                    let _ = processes.connected[number].write(&vec![fill; len as usize]);
                }
                (_, 0) => drop(processes.connected.remove(number)),
                (_, 1) => {
                    let how = [Shutdown::Read, Shutdown::Write][usize::from(fill % 2)];
                    let _ = processes.connected[number].shutdown(how);
                }
                _ => {
                    let _ = processes.connected[number].read(&mut vec![0; len as usize]);
                }
            }
            drop(processes);
            return machine.pump();
        }
    };
    // A driver has limited memory, also for what the device holds. Nothing returns event buffers.
    let queue = request.queue;
    let has_room = queue != 2 || driver.rings[2].available() < 5;
    if driver.in_flight() < 12 && has_room {
        driver.send(machine, &request);
        machine.kick(queue);
        machine.pump();
    }
}

/// A device that works resets what belongs to no connection.
fn works(machine: &mut Machine<MmioPort>) {
    let mut driver = Driver::start(machine, u64::MAX);
    machine.pump();
    let unknown = packet([5, 1, 1, 1], 0, 0, [0, 0]);
    for (queue, readable, writable) in [(0, Vec::new(), 100), (1, unknown, 0)] {
        let request = Request {
            queue,
            readable,
            writable,
        };
        driver.send(machine, &request);
        machine.kick(queue);
        machine.pump();
    }
    let replies = driver.receive_all(machine);
    assert_eq!(replies.len(), 2, "the packet and its reset");
    assert_eq!(replies[0].1.bytes[30], 3, "a reset");
}

fuzz_target!(|input: &[u8]| {
    let Some((&choices, bytes)) = input.split_first() else {
        return;
    };
    let host = Arc::new(Fake {
        processes: Mutex::default(),
        source: io::pipe().expect("a pipe"),
    });
    let device = Vsock::<Memory>::new(3, Arc::clone(&host) as Arc<dyn Host>, Box::new(|_| ()));
    let mut machine = Machine::<MmioPort>::new(Box::new(device), &memory(MEMORY));
    // Leaves out a ring's feature, or streams. Indirect tables would be in memory that is used again, while the device
    // holds their buffers.
    let without = [0, 1 << 29, 1][usize::from(choices >> 1) % 3] | 1 << 28;
    let mut driver = Driver::start(&mut machine, !without);
    machine.pump();
    if choices % 2 == 0 {
        let bytes = &bytes[..bytes.len().min(0x6000)];
        let written = machine.memory.write_slice(bytes, GuestAddress(0));
        written.expect("guest memory");
        (0..3).for_each(|queue| machine.kick(queue));
        machine.pump();
    } else {
        for step in bytes.as_chunks().0 {
            act(&mut machine, &mut driver, &host, step);
            driver.receive_all(&machine);
        }
        assert!(machine.failures.is_empty());
        machine.pause().expect("a device that stops");
        machine.save();
        machine.resume();
    }
    works(&mut machine);
});
