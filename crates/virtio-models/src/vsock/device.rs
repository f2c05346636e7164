// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The socket device.

mod clients;
mod peers;
mod receive;
mod times;
mod transmit;

use std::collections::VecDeque;
use std::fmt;
use std::mem::{Discriminant, discriminant};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use virtio_transport::Broken;
use virtio_transport::chain::Chain;
use virtio_transport::device::{Active, Device, Event, Io, RestoreError, StartError};
use virtio_transport::layout::{Layout, RING_FEATURES};
use virtio_transport::memory::View;
use virtio_transport::queue::{NotDrained, QueueState, Virtq};
use vm_memory::GuestAddressSpace;

use super::flow::Key;
use super::header::{Header, op};
use super::host::Host;
use super::report::{Counters, Notice, Report};
use super::rx::Receiver;
use super::table::{MAX_CONNECTIONS, Table};
use crate::sys::Vector;
use crate::timer::Timer;
use times::{Listening, News};

/// The device ID (virtio 1.4, section 5).
const ID: u16 = 19;
/// The queues (5.10.2), and their sizes in entries.
const RX: usize = 0;
const TX: usize = 1;
const EVENTS: usize = 2;
const QUEUES: [u16; 3] = [256, 256, 16];
/// The features (5.10.3): stream sockets, and no others by default.
const F_STREAM: u64 = 1;
const F_NO_IMPLIED_STREAM: u64 = 1 << 2;

/// The tokens of the device's sources. Those of sockets follow.
const TIMER: u32 = 0;
const LISTENER: u32 = 1;
const SOCKETS: u32 = 2;

/// The most packets of a queue before others have their turn.
const BURST: usize = 64;
/// The most resets for packets of no connection. The guest must take some before it may send more packets.
const MAX_REPLIES: usize = 256;
/// The most resets in a saved state: those, and two for each connection.
const MAX_RESETS: usize = MAX_REPLIES + 2 * MAX_CONNECTIONS;
/// The ports of the host's processes that connect to the guest have this bit, and not the one above.
const FIRST_PORT: u32 = 1 << 30;

/// How long to wait for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a process of the host to say what it wants, after it connected.
    pub command: Duration,
    /// For the guest to accept a connection, to confirm its end, or to hear that its connections are gone.
    pub answer: Duration,
}

impl Default for Patience {
    /// Ten seconds for a command, which a person may type. Two seconds for the guest.
    fn default() -> Self {
        Patience {
            command: Duration::from_secs(10),
            answer: Duration::from_secs(2),
        }
    }
}

/// Whether a guest may have this CID (virtio 1.4, 5.10.4): 0 to 2 and 2^32 - 1 are reserved.
pub const fn is_guest_cid(cid: u32) -> bool {
    cid > 2 && cid != u32::MAX
}

/// A socket device.
///
/// It has at most [`MAX_CONNECTIONS`] processes of the host at a time. It never waits for any of them. Connections live
/// through a pause. They end with a reset of the device, and with a restore, of which the guest is told.
pub struct Vsock<M> {
    cid: u32,
    host: Arc<dyn Host>,
    report: Report,
    patience: Patience,
    counters: Arc<Counters>,
    active: Option<Active<M>>,
    table: Table,
    /// Resets for packets of no connection, and of connections that are gone.
    replies: VecDeque<Header>,
    /// The host's port of the last process that connected to the guest.
    last_port: u32,
    listening: Listening,
    news: News,
    /// No process is accepted before then, or before the guest has heard the news.
    hold: Option<Instant>,
    timer: Option<Timer>,
    /// When the timer's wait ends.
    alarm: Option<Instant>,
    /// The kinds of failures that were reported.
    reported: Vec<Discriminant<Notice>>,
    receiver: Receiver,
    /// The driver has no receive buffers; it notifies the next.
    is_starved: bool,
    /// The driver notified receive buffers.
    has_buffers: bool,
    transmit: Transmit,
    vector: Vector,
}

/// The state of the transmit queue.
#[derive(Debug, Default)]
struct Transmit {
    chain: Chain,
    /// The chains of this turn's packets.
    returned: Vec<(u16, u32)>,
    /// There may be packets.
    is_due: bool,
    /// There are too many replies.
    is_blocked: bool,
}

/// The state of a [`Vsock`]: what tells the guest, after a restore, that its connections are gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockState {
    /// The host's port that was used last. The next one follows, so that the guest can't take a new connection for an
    /// old one.
    pub last_port: u32,
    /// The connections that the guest may know of, as the host's port and the guest's.
    pub connections: Vec<[u32; 2]>,
}

impl<M: GuestAddressSpace> Vsock<M> {
    /// A device of the guest with this CID.
    ///
    /// # Panics
    /// If it is [no CID for a guest](is_guest_cid).
    pub fn new(cid: u32, host: Arc<dyn Host>, report: Report) -> Self {
        assert!(is_guest_cid(cid), "CID {cid}");
        Vsock {
            cid,
            host,
            report,
            patience: Patience::default(),
            counters: Arc::default(),
            active: None,
            table: Table::default(),
            replies: VecDeque::new(),
            last_port: 0,
            listening: Listening::Off,
            news: News::None,
            hold: None,
            timer: None,
            alarm: None,
            reported: Vec::new(),
            receiver: Receiver::default(),
            is_starved: false,
            has_buffers: false,
            transmit: Transmit::default(),
            vector: Vector::default(),
        }
    }

    /// Sets how long to wait for others.
    #[must_use]
    pub const fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// The device's counters.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    fn cid(&self) -> u64 {
        self.cid.into()
    }

    /// Whether the driver and the device have stream sockets (5.10.3).
    fn has_streams(&self) -> bool {
        let features = self.active.as_ref().map_or(0, |active| active.features);
        features & F_NO_IMPLIED_STREAM == 0 || features & F_STREAM != 0
    }

    /// Notes what an event is about.
    fn note(&mut self, io: &mut Io<'_>, event: Event) {
        match event {
            Event::Queue(0) => (self.has_buffers, self.is_starved) = (true, false),
            Event::Queue(1) => self.transmit.is_due = true,
            Event::Queue(_) => {}
            Event::Source(TIMER) => self.expire(io),
            Event::Source(LISTENER) => self.accept(io),
            Event::Source(token) => self.ready(io, (token - SOCKETS) as usize),
        }
    }

    fn serve(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        let Some(active) = &self.active else {
            return Ok(());
        };
        let memory = active.memory.memory();
        let view = View::new(&*memory);
        self.transmit(io, &view)?;
        self.receive(io, &view)?;
        if self.news != News::None {
            self.hear_of_news(io, &view)?;
            self.tell_news(&view)?;
        }
        if self.transmit.is_blocked && self.replies.len() < MAX_REPLIES {
            self.transmit.is_blocked = false;
            self.transmit.is_due = true;
        }
        self.arm();
        if self.transmit.is_due || !self.is_starved && self.has_packets() {
            io.again();
        }
        Ok(())
    }

    /// Whether there may be packets for the guest.
    fn has_packets(&self) -> bool {
        !self.replies.is_empty() || self.table.first_ready().is_some()
    }

    /// Reports a failure of the host, once for each kind.
    fn complain(&mut self, notice: Notice) {
        let kind = discriminant(&notice);
        if !self.reported.contains(&kind) {
            self.reported.push(kind);
            (self.report)(notice);
        }
    }

    fn unwatch(&mut self, io: &mut Io<'_>) {
        if let Some(timer) = &self.timer {
            let _ = io.unwatch(timer.source(), TIMER);
        }
        (self.timer, self.alarm, self.hold) = (None, None, None);
        self.stop_listening(io);
        for number in self.table.numbers() {
            if let Some(link) = self.table.get(number).and_then(|slot| slot.link.as_mut()) {
                let _ = link.watch(io, SOCKETS + number as u32, None);
            }
        }
    }

    /// Ends all connections, of which the guest may learn by resets.
    fn clear(&mut self) {
        for _ in self.table.flows() {
            self.counters.removed.add(0);
        }
        self.table = Table::default();
        self.replies.clear();
        self.news = News::None;
    }
}

fn queue<M>(active: &mut Option<Active<M>>, number: usize) -> Option<&mut Virtq> {
    active.as_mut()?.queues.get_mut(number)?.as_mut()
}

impl<M: GuestAddressSpace + Send> Device<M> for Vsock<M> {
    type State = VsockState;

    const KIND: &'static str = "vsock";
    const VERSION: u32 = 1;

    fn layout(&self) -> Layout {
        Layout {
            id: ID,
            features: RING_FEATURES | F_STREAM | F_NO_IMPLIED_STREAM,
            requires: &[],
            queues: QUEUES.to_vec(),
            config_len: 8,
        }
    }

    fn config(&self, out: &mut Vec<u8>) {
        out.extend(self.cid().to_le_bytes());
    }

    fn start(&mut self, io: &mut Io<'_>, active: Active<M>) -> Result<(), StartError> {
        self.active = Some(active);
        self.is_starved = false;
        let timer = Timer::new().and_then(|timer| {
            io.watch(timer.source(), TIMER, times::READABLE)?;
            Ok(timer)
        });
        match timer {
            Ok(timer) => self.timer = Some(timer),
            Err(source) => {
                self.active = None;
                let what = "the vsock device has no timer";
                return Err(StartError { what, source });
            }
        }
        self.resume(io);
        Ok(())
    }

    fn process(&mut self, io: &mut Io<'_>, event: Event) -> Result<(), Broken> {
        self.note(io, event);
        self.serve(io)
    }

    fn stop(&mut self, io: &mut Io<'_>, _: Instant) -> Result<Vec<Option<QueueState>>, NotDrained> {
        let Some(active) = self.active.take() else {
            return Ok(Vec::new());
        };
        self.unwatch(io);
        (self.transmit, self.receiver) = Default::default();
        let states = active.queues.iter().map(|queue| queue.as_ref());
        states
            .map(|queue| queue.map(|queue| queue.state()).transpose())
            .collect()
    }

    fn reset(&mut self) {
        self.clear();
    }

    fn save(&self) -> VsockState {
        let known = self.table.flows().filter(|flow| flow.is_known());
        let replies = self.replies.iter().filter(|reply| reply.op == op::RST);
        let keys = known.map(|flow| flow.key());
        let gone = replies.map(|reply| Key {
            local: reply.src_port,
            peer: reply.dst_port,
        });
        VsockState {
            last_port: self.last_port,
            connections: gone.chain(keys).map(|key| [key.local, key.peer]).collect(),
        }
    }

    fn restore(&mut self, _: u32, state: VsockState) -> Result<(), RestoreError> {
        if state.connections.len() > MAX_RESETS {
            return Err(RestoreError::Value("it has too many vsock connections"));
        }
        self.clear();
        self.last_port = state.last_port;
        let cid = self.cid();
        let keys = state.connections.iter();
        let resets = keys.map(|&[local, peer]| Key { local, peer }.reset(cid));
        self.replies.extend(resets);
        self.news = News::Due;
        Ok(())
    }
}

impl<M> fmt::Debug for Vsock<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vsock")
            .field("cid", &self.cid)
            .field("table", &self.table)
            .field("replies", &self.replies.len())
            .finish_non_exhaustive()
    }
}
