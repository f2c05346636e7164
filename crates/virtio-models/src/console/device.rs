// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The console device.

use std::fmt;
use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_transport::Broken;
use virtio_transport::chain::Chain;
use virtio_transport::device::{Active, Device, Event, Io, RestoreError, StartError};
use virtio_transport::layout::{Layout, RING_FEATURES};
use virtio_transport::memory::View;
use virtio_transport::queue::{NotDrained, QueueState, Virtq};
use vm_memory::{GuestAddressSpace, GuestMemory};

use super::control::{HEADER, Nature, PortState, event, parse};
use super::peer::{Peer, SharedPeer, Size};
use super::port::{OTHER, PIECE, SOURCES, Seat, Turn};

/// The device ID (virtio 1.4, section 5).
const ID: u16 = 3;
/// The size of each queue, in entries.
const QUEUE_SIZE: u16 = 64;
/// The control queues (5.3.2): from the device, and from the driver.
const TO_DRIVER: usize = 2;
const FROM_DRIVER: usize = 3;
/// The features (5.3.3).
const F_SIZE: u64 = 1;
const F_MULTIPORT: u64 = 1 << 1;
const F_EMERG_WRITE: u64 = 1 << 2;
/// The configuration (5.3.4): columns, rows, ports, and the emergency write.
const CONFIG_LEN: u32 = 12;
const EMERG_WRITE: u32 = 8;
/// The most control messages of a turn.
const BURST: usize = 64;
/// The most ports, with the console.
pub const MAX_PORTS: usize = 32;

/// A named port.
#[derive(Clone)]
pub struct Port {
    /// Its name, by which the guest finds it.
    pub name: String,
    /// The host's end.
    pub peer: SharedPeer,
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Port").field(&self.name).finish()
    }
}

/// A message that a VMM may want to log. It is reported once.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Notice {
    /// The host's event loop fails.
    #[error(
        "the host's end of console port {port} can't be watched ({error}); raise the limit on open files"
    )]
    NotWatched {
        /// The port's number.
        port: usize,
        /// The host's error.
        #[source]
        error: io::Error,
    },
}

/// Receives notices. Called on the device's thread.
pub type Report = Box<dyn FnMut(Notice) + Send>;

/// A console device.
///
/// - **Nothing is lost and nothing grows.** The device holds no data. What a peer doesn't take stays in the guest's
///   buffers, and what the guest doesn't take stays with the peer. A [`Peer`] may choose to drop.
/// - **The guest's processes open ports**, and the host's data waits for that.
/// - **A port's name** reaches drivers with `VIRTIO_CONSOLE_F_MULTIPORT`. Others see the console only.
pub struct Console<M> {
    /// Port 0 is the console, which may be missing. The numbers of the others are their positions.
    seats: Vec<Option<Seat>>,
    report: Report,
    has_complained: bool,
    /// The driver can take control messages.
    is_ready: bool,
    active: Option<Active<M>>,
    buffer: Vec<u8>,
    chain: Chain,
    hears: bool,
    /// The size that the driver can read.
    size: Option<Size>,
}

/// The state of a [`Console`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleState {
    /// The driver can take control messages.
    pub is_ready: bool,
    /// The ports, from port 0 on; `None` for one that is missing.
    pub ports: Vec<Option<PortState>>,
}

fn lock(peer: &SharedPeer) -> MutexGuard<'_, dyn Peer + 'static> {
    peer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The queue of a port (5.3.2): the one to the guest. The one from the guest follows.
const fn first_queue(port: usize) -> usize {
    if port == 0 { 0 } else { 2 * port + 2 }
}

impl<M: GuestAddressSpace> Console<M> {
    /// A device with a console as port 0, if there is one, and with ports from 1 on.
    ///
    /// # Panics
    /// If there are more than [`MAX_PORTS`] with port 0, or none at all.
    pub fn new(console: Option<SharedPeer>, ports: Vec<Port>, report: Report) -> Self {
        assert!(ports.len() < MAX_PORTS, "{} ports", ports.len());
        assert!(console.is_some() || !ports.is_empty(), "no port");
        let console = console.map(|peer| Seat::new(String::new(), true, peer));
        let ports = ports
            .into_iter()
            .map(|port| Some(Seat::new(port.name, false, port.peer)));
        Console {
            seats: std::iter::once(console).chain(ports).collect(),
            report,
            has_complained: false,
            is_ready: false,
            active: None,
            buffer: Vec::new(),
            chain: Chain::new(),
            hears: false,
            size: None,
        }
    }

    fn is_multiport(&self) -> bool {
        self.active
            .as_ref()
            .is_some_and(|active| active.features & F_MULTIPORT != 0)
    }

    /// The size of the console's terminal.
    fn terminal_size(&self) -> Option<Size> {
        let console = self.seats.first()?.as_ref()?;
        lock(&console.peer).size()
    }

    /// Notes what an event is about.
    fn note(&mut self, event: Event) {
        match event {
            // Without ports, a driver has the console's queues only.
            Event::Queue(2..) if !self.is_multiport() => {}
            Event::Queue(number) => {
                let number = usize::from(number);
                let port = if number < TO_DRIVER {
                    0
                } else {
                    (number / 2).saturating_sub(1)
                };
                match (number, self.seats.get_mut(port)) {
                    (FROM_DRIVER, _) => self.hears = true,
                    (TO_DRIVER, _) => {}
                    (_, Some(Some(seat))) if number % 2 == 0 => seat.receives = true,
                    (_, Some(Some(seat))) => seat.sends = true,
                    _ => {}
                }
            }
            Event::Source(token) => {
                let port = (token / SOURCES) as usize;
                if let Some(Some(seat)) = self.seats.get_mut(port) {
                    (seat.receives, seat.sends) = (true, true);
                    seat.settles |= token % SOURCES == OTHER;
                }
            }
        }
    }

    /// Serves the ports that have something to do, then the control queues.
    fn serve(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        let Some(mut active) = self.active.take() else {
            return Ok(());
        };
        let served = {
            let memory = active.memory.memory();
            let view = View::new(&*memory);
            self.serve_all(io, &view, &mut active)
        };
        self.active = Some(active);
        let is_due = |seat: &Option<Seat>| seat.as_ref().is_some_and(Seat::is_due);
        if served? || self.hears || self.seats.iter().any(is_due) {
            io.again();
        }
        Ok(())
    }

    /// Returns whether there may be more control messages.
    fn serve_all<G: GuestMemory>(
        &mut self,
        io: &mut Io<'_>,
        view: &View<'_, G>,
        active: &mut Active<M>,
    ) -> Result<bool, Broken> {
        let is_multiport = active.features & F_MULTIPORT != 0;
        if self.hears {
            self.hear(view, active)?;
        }
        let ports = if is_multiport { self.seats.len() } else { 1 };
        for number in 0..ports {
            self.serve_port(io, view, active, number)?;
        }
        if !is_multiport {
            let size = self.terminal_size();
            if self.size != size {
                self.size = size;
                io.config_changed();
            }
            return Ok(false);
        }
        self.tell(view, active)
    }

    fn serve_port<G: GuestMemory>(
        &mut self,
        io: &mut Io<'_>,
        view: &View<'_, G>,
        active: &mut Active<M>,
        number: usize,
    ) -> Result<(), Broken> {
        let is_multiport = active.features & F_MULTIPORT != 0;
        let Some(Some(seat)) = self.seats.get_mut(number) else {
            return Ok(());
        };
        if !seat.is_due() {
            return Ok(());
        }
        let shared = Arc::clone(&seat.peer);
        let mut peer = lock(&shared);
        let first = SOURCES * number as u32;
        if seat.settles {
            seat.settles = false;
            seat.unwatch(io, first);
            peer.settle();
        }
        let queue = first_queue(number);
        if let (true, Some(turn)) = (seat.sends, turn(view, active, queue + 1, &mut self.buffer)) {
            seat.send(&mut *peer, turn)?;
        }
        let takes = seat.state.is_open || !is_multiport;
        match turn(view, active, queue, &mut self.buffer) {
            Some(turn) if takes && seat.receives => seat.receive(&mut *peer, turn)?,
            _ if takes => {}
            _ => seat.rest(),
        }
        seat.state.observe(peer.is_open());
        if peer.is_unsettled() {
            seat.settle_next();
        }
        if let Err(error) = seat.watch(io, first, &*peer) {
            self.complain(number, error);
        }
        Ok(())
    }

    /// Takes control messages of the driver.
    fn hear<G: GuestMemory>(
        &mut self,
        view: &View<'_, G>,
        active: &mut Active<M>,
    ) -> Result<(), Broken> {
        let Some(mut turn) = turn(view, active, FROM_DRIVER, &mut self.buffer) else {
            self.hears = false;
            return Ok(());
        };
        for _ in 0..BURST {
            if !turn.queue.pop(view, &mut self.chain)? {
                if turn.queue.enable_kicks(view)? {
                    continue;
                }
                self.hears = false;
                break;
            }
            let mut bytes = [0; HEADER];
            // A shorter message says nothing.
            if self.chain.reader(view).read(&mut bytes).is_ok() {
                match parse(bytes) {
                    (_, event::DEVICE_READY, value) => self.is_ready = value != 0,
                    (id, event, value) => {
                        if let Some(Some(seat)) = self.seats.get_mut(id as usize) {
                            seat.state.take(event, value);
                            seat.receives = true;
                        }
                    }
                }
            }
            turn.queue.push(view, self.chain.head(), 0)?;
        }
        turn.notify()
    }

    /// Gives the driver control messages, as far as it has buffers. Returns whether there may be more.
    fn tell<G: GuestMemory>(
        &mut self,
        view: &View<'_, G>,
        active: &mut Active<M>,
    ) -> Result<bool, Broken> {
        let Some(mut turn) = turn(view, active, TO_DRIVER, &mut self.buffer) else {
            return Ok(false);
        };
        let mut more = self.is_ready;
        for _ in 0..BURST {
            if !more {
                break;
            }
            if !turn.queue.pop(view, &mut self.chain)? {
                more = turn.queue.enable_kicks(view)?;
                continue;
            }
            let Some(message) = next_message(&mut self.seats) else {
                turn.queue.unpop(self.chain.head());
                more = false;
                break;
            };
            // Of a message that is longer than the buffer the driver gets the beginning.
            let mut writer = self.chain.writer(view);
            let len = message
                .len()
                .min(writer.left().min(usize::MAX as u64) as usize);
            let written = writer.write(&message[..len]);
            written.map_err(|_| {
                Broken::Device("a control buffer of the console is not in guest memory")
            })?;
            turn.queue.push(view, self.chain.head(), len as u32)?;
        }
        turn.notify()?;
        Ok(more)
    }

    /// Reports a failure of the host, once.
    fn complain(&mut self, port: usize, error: io::Error) {
        if !self.has_complained {
            self.has_complained = true;
            (self.report)(Notice::NotWatched { port, error });
        }
    }

    fn clear(&mut self) {
        self.is_ready = false;
        for seat in self.seats.iter_mut().flatten() {
            seat.state = PortState::default();
        }
    }
}

/// The next message that the driver is owed.
fn next_message(seats: &mut [Option<Seat>]) -> Option<Vec<u8>> {
    (0..).zip(seats).find_map(|(id, seat)| {
        let seat = seat.as_mut()?;
        let peer = lock(&seat.peer);
        let nature = Nature {
            is_console: seat.is_console,
            name: &seat.name,
            is_open: peer.is_open(),
            size: peer.size(),
        };
        seat.state.next(id, &nature)
    })
}

/// A turn of a queue, if the driver set it up.
fn turn<'a, 'm, M, G: GuestMemory>(
    view: &'a View<'m, G>,
    active: &'a mut Active<M>,
    number: usize,
    buffer: &'a mut [u8],
) -> Option<Turn<'a, 'm, G>> {
    let queue = active.queues.get_mut(number)?.as_mut()?;
    Some(Turn {
        view,
        queue,
        number: number as u16,
        interrupt: &*active.interrupt,
        buffer,
    })
}

impl<M: GuestAddressSpace + Send> Device<M> for Console<M> {
    type State = ConsoleState;

    const KIND: &'static str = "console";
    const VERSION: u32 = 1;

    fn layout(&self) -> Layout {
        let has_console = self.seats.first().is_some_and(Option::is_some);
        let has_ports = self.seats.len() > 1;
        let console = if has_console {
            F_SIZE | F_EMERG_WRITE
        } else {
            0
        };
        let multiport = if has_ports { F_MULTIPORT } else { 0 };
        let queues = if has_ports {
            2 * self.seats.len() + 2
        } else {
            2
        };
        Layout {
            id: ID,
            features: RING_FEATURES | console | multiport,
            requires: &[],
            queues: vec![QUEUE_SIZE; queues],
            config_len: CONFIG_LEN,
        }
    }

    fn config(&self, out: &mut Vec<u8>) {
        let size = self.terminal_size().unwrap_or_default();
        out.extend(size.cols.to_le_bytes());
        out.extend(size.rows.to_le_bytes());
        out.extend((self.seats.len() as u32).to_le_bytes());
        out.extend(0_u32.to_le_bytes());
    }

    fn set_config(&mut self, _: &mut Io<'_>, at: u32, data: &[u8]) {
        if let (EMERG_WRITE, Some(Some(console))) = (at, self.seats.first()) {
            // What the peer doesn't take now is lost: there is no buffer to wait in.
            let _ = lock(&console.peer).write(&data[..1]);
        }
    }

    fn start(&mut self, io: &mut Io<'_>, active: Active<M>) -> Result<(), StartError> {
        self.buffer = vec![0; PIECE];
        self.active = Some(active);
        self.size = self.terminal_size();
        let ports = if self.is_multiport() {
            self.seats.len()
        } else {
            1
        };
        for number in 0..ports {
            let Some(Some(seat)) = self.seats.get_mut(number) else {
                continue;
            };
            let shared = Arc::clone(&seat.peer);
            if let Err(source) = seat.watch(io, SOURCES * number as u32, &*lock(&shared)) {
                let _ = self.stop(io, Instant::now());
                let what = "the host's end of the console can't be watched";
                return Err(StartError { what, source });
            }
        }
        Ok(())
    }

    fn process(&mut self, io: &mut Io<'_>, event: Event) -> Result<(), Broken> {
        self.note(event);
        self.serve(io)
    }

    fn stop(&mut self, io: &mut Io<'_>, _: Instant) -> Result<Vec<Option<QueueState>>, NotDrained> {
        let Some(mut active) = self.active.take() else {
            return Ok(Vec::new());
        };
        for (number, seat) in self.seats.iter_mut().enumerate() {
            let Some(seat) = seat else { continue };
            seat.unwatch(io, SOURCES * number as u32);
            let queue = active.queues.get_mut(first_queue(number) + 1);
            seat.put_back(queue.and_then(Option::as_mut));
        }
        (self.buffer, self.chain, self.hears) = (Vec::new(), Chain::new(), false);
        let states = active.queues.iter().map(Option::as_ref);
        states
            .map(|queue| queue.map(Virtq::state).transpose())
            .collect()
    }

    fn reset(&mut self) {
        self.clear();
    }

    fn save(&self) -> ConsoleState {
        let ports = self.seats.iter();
        ConsoleState {
            is_ready: self.is_ready,
            ports: ports
                .map(|seat| seat.as_ref().map(|seat| seat.state))
                .collect(),
        }
    }

    fn restore(&mut self, _: u32, state: ConsoleState) -> Result<(), RestoreError> {
        let same =
            |(seat, state): (&Option<Seat>, &Option<PortState>)| seat.is_some() == state.is_some();
        if self.seats.len() != state.ports.len() || !self.seats.iter().zip(&state.ports).all(same) {
            return Err(RestoreError::Value("it has other console ports"));
        }
        self.is_ready = state.is_ready;
        for (seat, state) in self.seats.iter_mut().zip(state.ports) {
            if let (Some(seat), Some(state)) = (seat, state) {
                seat.state = state;
            }
        }
        Ok(())
    }
}

impl<M> fmt::Debug for Console<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.seats.iter().flatten().map(|seat| &seat.name);
        f.debug_struct("Console")
            .field("ports", &names.collect::<Vec<_>>())
            .field("is_ready", &self.is_ready)
            .finish_non_exhaustive()
    }
}
