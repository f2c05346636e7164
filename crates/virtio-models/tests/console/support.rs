// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver of consoles and ports, and processes of the host.

use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write, pipe};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use virtio_models::console::{Console, Peer, Port, Server, SharedPeer, Stream};
use virtio_transport::testing::{
    Driver, MEMORY, Machine, Memory, MmioPort, Reply, Request, memory,
};

/// The control queues.
pub const TO_DRIVER: u16 = 2;
pub const FROM_DRIVER: u16 = 3;
/// The first port's queues.
pub const RX: u16 = 4;
pub const TX: u16 = 5;

/// Control events.
pub const DEVICE_READY: u16 = 0;
pub const DEVICE_ADD: u16 = 1;
pub const PORT_READY: u16 = 3;
pub const CONSOLE_PORT: u16 = 4;
pub const RESIZE: u16 = 5;
pub const PORT_OPEN: u16 = 6;
pub const PORT_NAME: u16 = 7;

/// Bytes that differ by place.
pub fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

pub fn shared(peer: impl Peer + 'static) -> SharedPeer {
    Arc::new(Mutex::new(peer))
}

/// Nobody.
pub fn silent() -> SharedPeer {
    shared(Stream::new(None, None))
}

pub fn port(name: &str, peer: SharedPeer) -> Port {
    let name = name.to_owned();
    Port { name, peer }
}

pub fn device(console: Option<SharedPeer>, ports: Vec<Port>) -> Console<Memory> {
    Console::new(console, ports, Box::new(|notice| panic!("{notice}")))
}

/// A control message: port, event, value, and the rest.
pub type Message = (u32, u16, u16, Vec<u8>);

pub fn message(id: u32, event: u16, value: u16) -> Vec<u8> {
    let mut bytes = id.to_le_bytes().to_vec();
    bytes.extend(event.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    bytes
}

fn parse(bytes: &[u8]) -> Message {
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let id = u32::from(word(0)) | u32::from(word(2)) << 16;
    (id, word(4), word(6), bytes[8..].to_vec())
}

/// A machine with a running driver.
pub struct Guest {
    pub machine: Machine<MmioPort>,
    pub driver: Driver,
    /// How many chains of each queue the device has.
    pub waiting: Vec<usize>,
}

impl Guest {
    pub fn new(device: Console<Memory>) -> Self {
        Self::wanting(device, u64::MAX)
    }

    pub fn wanting(device: Console<Memory>, features: u64) -> Self {
        let mut machine = Machine::new(Box::new(device), &memory(MEMORY));
        let driver = Driver::start(&mut machine, features);
        machine.pump();
        let waiting = vec![0; driver.rings.len()];
        Guest {
            machine,
            driver,
            waiting,
        }
    }

    /// A guest whose only port is the first, and open.
    pub fn with_port(peer: SharedPeer) -> Self {
        let mut guest = Guest::new(device(None, vec![port("org.x", peer)]));
        guest.tell(0, DEVICE_READY, 1);
        guest.messages();
        guest.tell(1, PORT_READY, 1);
        guest.tell(1, PORT_OPEN, 1);
        guest.messages();
        guest
    }

    /// A machine restored from this one's state.
    pub fn restored(mut self, device: Console<Memory>) -> Guest {
        self.machine.pause().expect("a device that stops");
        let saved = self.machine.save();
        let json = serde_json::to_string(&saved).expect("a state");
        let saved = serde_json::from_str(&json).expect("the same state");
        let memory = memory(MEMORY);
        self.machine.copy_memory(&memory);
        let mut machine = Machine::new(Box::new(device), &memory);
        machine.restore(&saved).expect("a state of such a device");
        let mut driver = self.driver;
        for ring in &mut driver.rings {
            ring.move_to(&machine.memory);
        }
        machine.resume();
        machine.pump();
        Guest {
            machine,
            driver,
            waiting: self.waiting,
        }
    }

    /// Makes a chain available and notifies the device.
    pub fn queue(&mut self, queue: u16, readable: Vec<u8>, writable: u32) {
        let request = Request {
            queue,
            readable,
            writable,
        };
        self.driver.send(&self.machine, &request);
        self.waiting[usize::from(queue)] += 1;
        self.machine.kick(queue);
        self.machine.pump();
    }

    pub fn tell(&mut self, id: u32, event: u16, value: u16) {
        self.queue(FROM_DRIVER, message(id, event, value), 0);
        self.replies(FROM_DRIVER);
    }

    /// The answers of a queue.
    pub fn replies(&mut self, queue: u16) -> Vec<Reply> {
        self.machine.pump();
        let reply = || Some(self.driver.receive(&self.machine, queue)?.1);
        let replies: Vec<_> = std::iter::from_fn(reply).collect();
        self.waiting[usize::from(queue)] -= replies.len();
        replies
    }

    /// The control messages for the guest, which it has buffers for.
    pub fn messages(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while self.waiting[usize::from(TO_DRIVER)] < 8 {
            self.queue(TO_DRIVER, Vec::new(), 64);
        }
        loop {
            let replies = self.replies(TO_DRIVER);
            if replies.is_empty() {
                return messages;
            }
            for reply in replies {
                messages.push(parse(&reply.bytes[..reply.len as usize]));
                self.queue(TO_DRIVER, Vec::new(), 64);
            }
        }
    }

    /// The data for the guest.
    pub fn data(&mut self, queue: u16) -> Vec<u8> {
        let replies = self.replies(queue).into_iter();
        replies
            .flat_map(|reply| reply.bytes[..reply.len as usize].to_vec())
            .collect()
    }
}

/// A pipe that doesn't block.
pub fn small_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = pipe().expect("a pipe");
    for fd in [
        std::os::fd::AsFd::as_fd(&reader),
        std::os::fd::AsFd::as_fd(&writer),
    ] {
        rustix::fs::fcntl_setfl(fd, rustix::fs::OFlags::NONBLOCK).expect("a pipe");
    }
    (reader, writer)
}

/// What can be read now, and whether that is the end.
pub fn read(mut from: impl Read) -> (Vec<u8>, bool) {
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match from.read(&mut piece) {
            Ok(0) => return (all, true),
            Ok(len) => all.extend(&piece[..len]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return (all, false),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Writes as much as fits.
pub fn write(mut to: impl Write, data: &[u8]) -> usize {
    match to.write(data) {
        Ok(len) => len,
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        Err(error) => panic!("{error}"),
    }
}

/// A socket that clients connect to.
pub struct Place {
    pub dir: TempDir,
}

impl Place {
    pub fn new() -> Self {
        Place {
            dir: tempfile::tempdir().expect("a directory"),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("port")
    }

    pub fn server(&self) -> SharedPeer {
        let _ = std::fs::remove_file(self.path());
        let listener = UnixListener::bind(self.path()).expect("a socket");
        shared(Server::new(listener).expect("a socket"))
    }

    pub fn client(&self) -> UnixStream {
        let client = UnixStream::connect(self.path()).expect("a connection");
        client.set_nonblocking(true).expect("a socket");
        client
    }
}
