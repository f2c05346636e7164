// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Links that tests control, and a driver's memory.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_models::net::{
    Control, Counters, Frame, Link, LinkError, Mac, Net, NetConfig, Notice, Offloads, Room,
};
use virtio_models::rate::Limiter;
use virtio_transport::testing::{Buffers, Driver, MEMORY, Machine, Memory, MmioPort, memory};
use vm_memory::{Bytes, GuestAddress};

pub const HEADER: usize = 12;
/// Features of the device.
pub const CSUM: u64 = 1;
pub const GUEST_CSUM: u64 = 1 << 1;
pub const GUEST_TSO4: u64 = 1 << 7;
pub const GUEST_TSO6: u64 = 1 << 8;
pub const MRG_RXBUF: u64 = 1 << 15;
pub const MQ: u64 = 1 << 22;

pub fn config() -> NetConfig {
    NetConfig::new(Mac([2, 0, 0, 0, 0, 1]))
}

/// A frame of `len` bytes.
pub fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + len) as u8).collect()
}

/// A header of a frame that wants nothing.
pub fn header() -> Vec<u8> {
    vec![0; HEADER]
}

/// What happens on a [`Wire`].
#[derive(Debug, Default)]
pub struct Line {
    /// Frames for the guest, with their headers.
    pub incoming: VecDeque<([u8; HEADER], Vec<u8>)>,
    /// Frames of the guest.
    pub sent: Vec<([u8; HEADER], Vec<u8>)>,
    /// The results of the next calls of `send`.
    pub send_faults: VecDeque<LinkError>,
    /// The results of the next calls of `receive`.
    pub receive_faults: VecDeque<LinkError>,
    /// The results of the next calls of `configure`.
    pub configure_faults: VecDeque<LinkError>,
    pub offloads: Option<Offloads>,
    pub active: Option<bool>,
    /// How often `receive` was called.
    pub receives: usize,
    /// It always has a frame of this length.
    pub endless: Option<usize>,
    pub has_no_headers: bool,
    /// Each frame of the guest comes back at once, before its source is seen to be readable.
    pub is_mirror: bool,
}

/// A link in memory.
#[derive(Clone)]
pub struct Wire {
    line: Arc<Mutex<Line>>,
    /// Readable while there are frames.
    ours: Arc<UnixStream>,
    peers: Arc<UnixStream>,
    /// The alarm, and its other end.
    alarm: Option<Arc<(UnixStream, UnixStream)>>,
}

impl Wire {
    pub fn new() -> Self {
        let (ours, peers) = UnixStream::pair().expect("a socket pair");
        ours.set_nonblocking(true).expect("a socket");
        peers.set_nonblocking(true).expect("a socket");
        Wire {
            line: Arc::default(),
            ours: Arc::new(ours),
            peers: Arc::new(peers),
            alarm: None,
        }
    }

    /// A link with an alarm.
    pub fn with_alarm() -> Self {
        let alarm = UnixStream::pair().expect("a socket pair");
        Wire {
            alarm: Some(Arc::new(alarm)),
            ..Wire::new()
        }
    }

    /// Sends a frame to the guest, of which only the alarm tells.
    pub fn ring(&self, frame: Vec<u8>) {
        self.line().incoming.push_back(([0; HEADER], frame));
        let alarm = self.alarm.as_ref().expect("an alarm");
        (&alarm.1).write_all(&[0]).expect("a short queue");
    }

    /// A link that always has a frame.
    pub fn endless(len: usize) -> Self {
        let wire = Wire::new();
        wire.line().endless = Some(len);
        wire.signal();
        wire
    }

    pub fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().expect("no test panicked")
    }

    fn signal(&self) {
        (&*self.peers).write_all(&[0]).expect("a short queue");
    }

    /// Sends a frame to the guest.
    pub fn deliver(&self, header: [u8; HEADER], frame: Vec<u8>) {
        self.line().incoming.push_back((header, frame));
        self.signal();
    }

    /// Makes the source writable or not.
    pub fn set_writable(&self, writable: bool) {
        let mut bytes = [0; 4096];
        if writable {
            while (&*self.peers).read(&mut bytes).is_ok() {}
        } else {
            while (&*self.ours).write(&bytes).is_ok() {}
        }
    }

    pub fn link(&self) -> Box<dyn Link> {
        Box::new(self.clone())
    }
}

impl Link for Wire {
    fn source(&self) -> BorrowedFd<'_> {
        self.ours.as_fd()
    }

    fn alarm(&self) -> Option<BorrowedFd<'_>> {
        self.alarm.as_ref().map(|alarm| alarm.0.as_fd())
    }

    fn has_headers(&self) -> bool {
        !self.line().has_no_headers
    }

    fn configure(&mut self, offloads: Offloads) -> Result<(), LinkError> {
        let mut line = self.line();
        line.offloads = Some(offloads);
        line.configure_faults.pop_front().map_or(Ok(()), Err)
    }

    fn set_active(&mut self, active: bool) -> Result<(), LinkError> {
        self.line().active = Some(active);
        Ok(())
    }

    fn send(&mut self, frame: &mut Frame<'_>) -> Result<(), LinkError> {
        let mut line = self.line();
        if let Some(fault) = line.send_faults.pop_front() {
            return Err(fault);
        }
        let mut bytes = vec![0; frame.len()];
        assert_eq!(frame.copy_to(0, &mut bytes), frame.len());
        let mut rest = vec![0; frame.len() - 7];
        assert_eq!(frame.copy_to(7, &mut rest), rest.len());
        assert_eq!(rest, bytes[7..]);
        if line.is_mirror {
            line.incoming.push_back((*frame.header(), bytes.clone()));
        }
        line.sent.push((*frame.header(), bytes));
        Ok(())
    }

    fn receive(&mut self, room: Room<'_>) -> Result<usize, LinkError> {
        let mut line = self.line();
        line.receives += 1;
        if let Some(fault) = line.receive_faults.pop_front() {
            return Err(fault);
        }
        if let Some(len) = line.endless {
            return room.fill([0; HEADER], &frame(len)).map_err(LinkError::Lost);
        }
        let Some((header, frame)) = line.incoming.pop_front() else {
            return Err(LinkError::Busy);
        };
        let mut source = match &self.alarm {
            Some(alarm) => &alarm.0,
            None => &*self.ours,
        };
        let _ = source.read(&mut [0]);
        room.fill(header, &frame).map_err(LinkError::Lost)
    }
}

/// A machine with a device on wires, and a running driver.
pub struct Guest {
    pub machine: Machine<MmioPort>,
    pub driver: Driver,
    pub counters: Arc<Counters>,
    pub control: Arc<Control>,
    notices: Arc<Mutex<Vec<Notice>>>,
    /// The pieces of chains that the device has.
    chains: BTreeMap<(u16, u16), Vec<(u64, u32)>>,
    next: u64,
}

/// Where buffers are: behind the rings.
const BUFFERS: std::ops::Range<u64> = MEMORY as u64 / 4..MEMORY as u64;

impl Guest {
    pub fn new(wires: &[Wire], wanted: u64) -> Self {
        Self::with(config(), wires, wanted, (None, None))
    }

    /// A device with one pair.
    pub fn one(wire: &Wire, wanted: u64) -> Self {
        Self::new(std::slice::from_ref(wire), wanted)
    }

    pub fn with(
        config: NetConfig,
        wires: &[Wire],
        wanted: u64,
        (rx, tx): (Option<Limiter>, Option<Limiter>),
    ) -> Self {
        let links = wires.iter().map(Wire::link).collect();
        Self::on(config, links, wanted, (rx, tx))
    }

    pub fn on(
        config: NetConfig,
        links: Vec<Box<dyn Link>>,
        wanted: u64,
        (rx, tx): (Option<Limiter>, Option<Limiter>),
    ) -> Self {
        let notices = Arc::new(Mutex::new(Vec::new()));
        let said = Arc::clone(&notices);
        let report = Box::new(move |notice| said.lock().expect("no test panicked").push(notice));
        let net = Net::<Memory>::new(config, links, report).with_limiters(rx, tx);
        let (counters, control) = (net.counters(), net.control());
        let mut machine = Machine::new(Box::new(net), &memory(MEMORY));
        let driver = Driver::start(&mut machine, wanted);
        machine.pump();
        Guest {
            machine,
            driver,
            counters,
            control,
            notices,
            chains: BTreeMap::new(),
            next: BUFFERS.start,
        }
    }

    /// A driver that leaves out some queues.
    pub fn without_queues(wires: &[Wire], queues: &[u16]) -> Self {
        let mut guest = Self::new(wires, 0);
        guest.driver = Driver::prepare(&mut guest.machine, u64::MAX);
        for queue in queues {
            // QueueSel and QueueReady (4.2.2).
            guest.machine.write(0x30, &u32::from(*queue).to_le_bytes());
            guest.machine.write(0x44, &0_u32.to_le_bytes());
        }
        guest.driver.finish(&mut guest.machine);
        guest.machine.pump();
        guest
    }

    pub fn notices(&self) -> Vec<String> {
        let notices = self.notices.lock().expect("no test panicked");
        notices.iter().map(ToString::to_string).collect()
    }

    /// The driver starts the device again.
    pub fn restart(&mut self, wanted: u64) {
        self.driver = Driver::start(&mut self.machine, wanted);
        self.chains.clear();
        self.machine.pump();
    }

    /// The number of watched sources, without that of the VMM's control.
    pub fn watched(&self) -> usize {
        self.machine.poller.watched().saturating_sub(1)
    }

    pub fn is_link_up(&self) -> bool {
        self.machine.worker.device().config()[6] == 1
    }

    fn place(&mut self, lens: &[u32]) -> Vec<(u64, u32)> {
        let total: u64 = lens.iter().map(|len| u64::from(*len)).sum();
        if BUFFERS.end - self.next < total {
            self.next = BUFFERS.start;
        }
        let mut at = self.next;
        let place = |len: &u32| {
            let piece = (at, *len);
            at += u64::from(*len);
            piece
        };
        let pieces = lens.iter().map(place).collect();
        self.next = at;
        pieces
    }

    /// Makes a buffer for a frame available, in pieces of these lengths. The device isn't told.
    pub fn post(&mut self, queue: u16, lens: &[u32]) {
        let writable = self.place(lens);
        let buffers = Buffers {
            readable: Vec::new(),
            writable: writable.clone(),
        };
        let head = self.driver.rings[usize::from(queue)].send(&buffers);
        self.chains.insert((queue, head), writable);
    }

    /// Makes a buffer for a frame available.
    pub fn give(&mut self, queue: u16, lens: &[u32]) {
        self.post(queue, lens);
        self.machine.kick(queue);
        self.machine.pump();
    }

    /// Makes a chain of these bytes available, in pieces of these lengths and the rest. The device isn't told.
    pub fn queue(&mut self, queue: u16, bytes: &[u8], lens: &[u32], writable: u32) {
        let cut: u32 = lens.iter().sum();
        let rest = bytes.len() as u32 - cut;
        let readable = self.place(&[lens, &[rest]].concat());
        let writable = self.place(&[writable]);
        let all = readable.first().map_or(0, |(at, _)| *at);
        let written = self.machine.memory.write_slice(bytes, GuestAddress(all));
        written.expect("guest memory");
        let present = |pieces: &[(u64, u32)]| {
            let pieces = pieces.iter().filter(|(_, len)| *len != 0);
            pieces.copied().collect::<Vec<_>>()
        };
        let mut buffers = Buffers {
            readable: present(&readable),
            writable: present(&writable),
        };
        if buffers.readable.is_empty() && buffers.writable.is_empty() {
            buffers.readable = vec![(all, 0)];
        }
        let head = self.driver.rings[usize::from(queue)].send(&buffers);
        self.chains.insert((queue, head), buffers.writable);
    }

    /// Sends a frame with this header.
    pub fn send(&mut self, header: &[u8], frame: &[u8]) {
        self.queue(1, &[header, frame].concat(), &[], 0);
        self.machine.kick(1);
        self.machine.pump();
    }

    /// The returned chains of a queue: what was written to each.
    pub fn used(&mut self, queue: u16) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(used) = self.driver.rings[usize::from(queue)].take() {
            let pieces = self.chains.remove(&(queue, used.head as u16));
            let pieces = pieces.expect("a head that the device has");
            let mut left = used.len;
            let mut bytes = Vec::new();
            for (at, len) in pieces {
                let mut piece = vec![0; len.min(left) as usize];
                let read = self.machine.memory.read_slice(&mut piece, GuestAddress(at));
                read.expect("guest memory");
                left -= piece.len() as u32;
                bytes.extend(piece);
            }
            assert_eq!(left, 0, "more was written than there is space for");
            all.push(bytes);
        }
        all
    }

    /// Received frames of the first pair: header and bytes.
    pub fn received(&mut self) -> Vec<([u8; HEADER], Vec<u8>)> {
        let mut used = VecDeque::from(self.used(0));
        let mut frames = Vec::new();
        while let Some(mut first) = used.pop_front() {
            let count = u16::from_le_bytes([first[10], first[11]]);
            for _ in 1..count {
                first.extend(used.pop_front().expect("all buffers of a frame"));
            }
            let header = first[..HEADER].try_into().expect("a header");
            frames.push((header, first.split_off(HEADER)));
        }
        frames
    }

    /// Executes a command of the control queue. Returns the answer.
    pub fn command(&mut self, queue: u16, bytes: &[u8]) -> u8 {
        self.queue(queue, bytes, &[], 1);
        self.machine.kick(queue);
        self.machine.pump();
        let used = self.used(queue);
        assert_eq!(used.len(), 1);
        used[0][0]
    }
}
