// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver that speaks the protocol, and processes of the host.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use virtio_models::vsock::{Counters, HEADER, Host, Patience, UnixHost, Vsock};
use virtio_transport::testing::{
    Driver, MEMORY, Machine, Memory, MmioPort, Reply, Request, memory,
};

pub const CID: u64 = 3;
pub const HOST: u64 = 2;
pub const RX: u16 = 0;
pub const TX: u16 = 1;
pub const EVENTS: u16 = 2;

/// Operations.
pub const REQUEST: u16 = 1;
pub const RESPONSE: u16 = 2;
pub const RST: u16 = 3;
pub const SHUTDOWN: u16 = 4;
pub const RW: u16 = 5;
pub const UPDATE: u16 = 6;
pub const QUERY: u16 = 7;

/// Flags of a shutdown.
pub const RECEIVE: u32 = 1;
pub const SEND: u32 = 2;
pub const BOTH: u32 = 3;

/// The guest's buffer, as Linux has it.
pub const ALLOC: u32 = 256 << 10;

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
    pub data: Vec<u8>,
}

/// A packet of the guest's port 1000 to the host's port 52.
pub fn packet(op: u16) -> Packet {
    Packet {
        src_cid: CID,
        dst_cid: HOST,
        src_port: 1000,
        dst_port: 52,
        len: 0,
        kind: 1,
        op,
        flags: 0,
        buf_alloc: ALLOC,
        fwd_cnt: 0,
        data: Vec::new(),
    }
}

impl Packet {
    /// The same packet with data.
    pub fn with(mut self, data: &[u8]) -> Self {
        (self.len, self.data) = (data.len() as u32, data.to_vec());
        self
    }

    /// The answer to a packet of the host.
    pub fn answer(&self, op: u16) -> Packet {
        Packet {
            src_port: self.dst_port,
            dst_port: self.src_port,
            ..packet(op)
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend(self.src_cid.to_le_bytes());
        bytes.extend(self.dst_cid.to_le_bytes());
        for word in [self.src_port, self.dst_port, self.len] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        for word in [self.flags, self.buf_alloc, self.fwd_cnt] {
            bytes.extend(word.to_le_bytes());
        }
        assert_eq!(bytes.len(), HEADER);
        bytes.extend(&self.data);
        bytes
    }

    fn read(bytes: &[u8]) -> Packet {
        let part = |at: usize, len: usize| {
            let mut value = [0; 8];
            value[..len].copy_from_slice(&bytes[at..at + len]);
            u64::from_le_bytes(value)
        };
        Packet {
            src_cid: part(0, 8),
            dst_cid: part(8, 8),
            src_port: part(16, 4) as u32,
            dst_port: part(20, 4) as u32,
            len: part(24, 4) as u32,
            kind: part(28, 2) as u16,
            op: part(30, 2) as u16,
            flags: part(32, 4) as u32,
            buf_alloc: part(36, 4) as u32,
            fwd_cnt: part(40, 4) as u32,
            data: bytes[HEADER..].to_vec(),
        }
    }
}

/// Bytes that differ by place.
pub fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// A device without a driver, on sockets in a directory.
pub struct Place {
    pub dir: TempDir,
    pub host: Arc<dyn Host>,
}

impl Place {
    pub fn new() -> Self {
        Self::with(|host| host)
    }

    pub fn with(change: impl FnOnce(UnixHost) -> UnixHost) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("v");
        let listener = UnixListener::bind(&path).expect("a socket");
        let host = UnixHost::new(listener, path).expect("a socket");
        let host = Arc::new(change(host));
        Place { dir, host }
    }

    pub fn device(&self, patience: Patience) -> Vsock<Memory> {
        let report = Box::new(|notice| eprintln!("{notice}"));
        Vsock::new(CID as u32, Arc::clone(&self.host), report).with_patience(patience)
    }

    pub fn path(&self, port: u32) -> PathBuf {
        self.dir.path().join(format!("v_{port}"))
    }

    /// A process that serves the guest.
    pub fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.path(port)).expect("a socket")
    }

    /// A process that connects, and says this.
    pub fn client(&self, says: &str) -> UnixStream {
        let mut client = UnixStream::connect(self.dir.path().join("v")).expect("a connection");
        client.write_all(says.as_bytes()).expect("a short command");
        client
    }
}

/// So long that a test that waits for it hangs.
pub const LONG: Patience = Patience {
    command: Duration::from_secs(100_000),
    answer: Duration::from_secs(100_000),
};

/// No time at all.
pub const SHORT: Patience = Patience {
    command: Duration::from_millis(1),
    answer: Duration::from_millis(1),
};

/// A machine with a running driver.
pub struct Guest {
    pub place: Place,
    pub machine: Machine<MmioPort>,
    pub driver: Driver,
    pub counters: Arc<Counters>,
}

impl Guest {
    pub fn new() -> Self {
        Self::on(Place::new(), LONG)
    }

    pub fn on(place: Place, patience: Patience) -> Self {
        Self::wanting(place, patience, u64::MAX)
    }

    pub fn wanting(place: Place, patience: Patience, features: u64) -> Self {
        let device = place.device(patience);
        let counters = device.counters();
        let mut machine = Machine::new(Box::new(device), &memory(MEMORY));
        let driver = Driver::start(&mut machine, features);
        machine.pump();
        Guest {
            place,
            machine,
            driver,
            counters,
        }
    }

    /// A machine restored from this one's state, on other sockets.
    pub fn restored(mut self, place: Place, patience: Patience) -> Guest {
        let saved = self.machine.save();
        let json = serde_json::to_string(&saved).expect("a state");
        let saved = serde_json::from_str(&json).expect("the same state");
        let memory = memory(MEMORY);
        self.machine.copy_memory(&memory);
        let device = place.device(patience);
        let counters = device.counters();
        let mut machine = Machine::new(Box::new(device), &memory);
        machine.restore(&saved).expect("a state of such a device");
        let mut driver = self.driver;
        for ring in &mut driver.rings {
            ring.move_to(&machine.memory);
        }
        machine.resume();
        machine.pump();
        Guest {
            place,
            machine,
            driver,
            counters,
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
        self.machine.kick(queue);
        self.machine.pump();
    }

    /// Gives the device receive buffers for so much data each.
    pub fn give(&mut self, count: usize, data: u32) {
        for _ in 0..count {
            self.queue(RX, Vec::new(), HEADER as u32 + data);
        }
    }

    pub fn send(&mut self, packet: &Packet) {
        self.queue(TX, packet.bytes(), 0);
    }

    /// Sends a packet. Returns whether the device took it.
    pub fn sends(&mut self, packet: &Packet) -> bool {
        self.send(packet);
        self.driver.receive(&self.machine, TX).is_some()
    }

    /// The answers of a queue.
    pub fn replies(&mut self, queue: u16) -> Vec<Reply> {
        self.machine.pump();
        let reply = || Some(self.driver.receive(&self.machine, queue)?.1);
        std::iter::from_fn(reply).collect()
    }

    /// The packets for the guest.
    pub fn packets(&mut self) -> Vec<Packet> {
        let replies = self.replies(RX).into_iter();
        let packets = replies.map(|reply| {
            let packet = Packet::read(&reply.bytes[..reply.len as usize]);
            assert_eq!((packet.src_cid, packet.dst_cid), (HOST, CID));
            assert_eq!(packet.len as usize, packet.data.len());
            packet
        });
        packets.collect()
    }

    /// The only packet for the guest.
    pub fn packet(&mut self) -> Packet {
        let mut packets = self.packets();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }

    /// The operations of the packets for the guest.
    pub fn ops(&mut self) -> Vec<u16> {
        self.packets().iter().map(|packet| packet.op).collect()
    }

    /// A connection from the guest: the process's socket.
    pub fn connect(&mut self) -> UnixStream {
        let listener = self.place.listen(52);
        self.give(1, 64);
        self.send(&packet(REQUEST));
        assert_eq!(self.packet().op, RESPONSE);
        let (socket, _) = listener.accept().expect("a connection");
        std::fs::remove_file(self.place.path(52)).expect("the socket's file");
        socket.set_nonblocking(true).expect("a socket");
        socket
    }

    /// A connection to the guest's port 1000: the process's socket, and the request.
    pub fn accept(&mut self) -> (UnixStream, Packet) {
        let mut client = self.place.client("CONNECT 1000\n");
        self.give(1, 64);
        let request = self.packet();
        assert_eq!((request.op, request.dst_port), (REQUEST, 1000));
        self.send(&request.answer(RESPONSE));
        let mut line = [0; 32];
        let len = client.read(&mut line).expect("an answer");
        let expected = format!("OK {}\n", request.src_port);
        assert_eq!(&line[..len], expected.as_bytes());
        client.set_nonblocking(true).expect("a socket");
        (client, request)
    }
}

/// What is in a socket now, and whether it is at its end.
pub fn read(mut socket: &UnixStream) -> (Vec<u8>, bool) {
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match socket.read(&mut piece) {
            Ok(0) => return (all, true),
            Ok(len) => all.extend(&piece[..len]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return (all, false),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return (all, true),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Whether the other end is closed.
pub fn is_closed(socket: &UnixStream) -> bool {
    socket.set_nonblocking(true).expect("a socket");
    read(socket).1
}

/// Writes as much as fits.
pub fn write(mut socket: &UnixStream, data: &[u8]) -> usize {
    match socket.write(data) {
        Ok(len) => len,
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        Err(error) => panic!("{error}"),
    }
}
