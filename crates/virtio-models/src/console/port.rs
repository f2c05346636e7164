// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A port: its two queues, and the host's end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use virtio_transport::Broken;
use virtio_transport::chain::Chain;
use virtio_transport::device::{Interest, Interrupt, Io};
use virtio_transport::memory::View;
use virtio_transport::queue::Virtq;
use vm_memory::GuestMemory;

use super::control::PortState;
use super::peer::{Peer, SharedPeer};

/// The most bytes read or written at once.
pub(super) const PIECE: usize = 16 << 10;
/// The most pieces of a turn. Then other devices of the thread have theirs.
const BURST: usize = 32;

/// The sources of a port, as the device's tokens: so many for each port.
pub(super) const SOURCES: u32 = 3;
pub(super) const INPUT: u32 = 0;
pub(super) const OUTPUT: u32 = 1;
pub(super) const OTHER: u32 = 2;

const NO_MEMORY: Broken = Broken::Device("a buffer of the console is not in guest memory");

/// A queue, with what its turns need.
pub(super) struct Turn<'a, 'm, G: GuestMemory> {
    pub(super) view: &'a View<'m, G>,
    pub(super) queue: &'a mut Virtq,
    /// The queue's number.
    pub(super) number: u16,
    pub(super) interrupt: &'a dyn Interrupt,
    pub(super) buffer: &'a mut [u8],
}

/// Why a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The driver has no more buffers. It notifies the next.
    NoBuffers,
    /// The peer has nothing, or takes nothing.
    Peer,
    /// There may be more.
    Burst,
}

/// A port.
pub(super) struct Seat {
    pub(super) name: String,
    pub(super) is_console: bool,
    pub(super) peer: SharedPeer,
    pub(super) state: PortState,
    /// There may be something to send, to receive, or to settle.
    pub(super) sends: bool,
    pub(super) receives: bool,
    pub(super) settles: bool,
    /// The transmit buffer that the host has in part.
    held: Option<Chain>,
    spare: Chain,
    /// What to wait for: the peer's data, and its room.
    waits: [bool; 2],
    /// What is watched, by the kind of source.
    watched: [Option<OwnedFd>; SOURCES as usize],
}

impl Seat {
    pub(super) fn new(name: String, is_console: bool, peer: SharedPeer) -> Self {
        Seat {
            name,
            is_console,
            peer,
            state: PortState::default(),
            sends: false,
            receives: false,
            settles: false,
            held: None,
            spare: Chain::new(),
            waits: [false; 2],
            watched: [None, None, None],
        }
    }

    /// Whether it has something to do.
    pub(super) const fn is_due(&self) -> bool {
        self.sends || self.receives || self.settles
    }

    /// Passes the guest's data to the peer.
    pub(super) fn send<G: GuestMemory>(
        &mut self,
        peer: &mut dyn Peer,
        mut turn: Turn<'_, '_, G>,
    ) -> Result<(), Broken> {
        let end = self.send_burst(peer, &mut turn)?;
        self.sends = end == End::Burst;
        self.waits[OUTPUT as usize] = end == End::Peer;
        turn.notify()
    }

    fn send_burst<G: GuestMemory>(
        &mut self,
        peer: &mut dyn Peer,
        turn: &mut Turn<'_, '_, G>,
    ) -> Result<End, Broken> {
        for _ in 0..BURST {
            if self.held.is_none() {
                if !turn.queue.pop(turn.view, &mut self.spare)? {
                    if turn.queue.enable_kicks(turn.view)? {
                        continue;
                    }
                    return Ok(End::NoBuffers);
                }
                self.held = Some(std::mem::take(&mut self.spare));
            }
            let Some(chain) = &self.held else { continue };
            if chain.writable_len() != 0 {
                return Err(Broken::Device(
                    "a transmit buffer of the console is device-writable",
                ));
            }
            if !send_piece(chain, &mut self.state.sent, peer, turn)? {
                return Ok(End::Peer);
            }
            if self.state.sent == chain.readable_len() {
                turn.queue.push(turn.view, chain.head(), 0)?;
                self.state.sent = 0;
                self.spare = self.held.take().unwrap_or_default();
            }
        }
        Ok(End::Burst)
    }

    /// Passes the peer's data to the guest.
    pub(super) fn receive<G: GuestMemory>(
        &mut self,
        peer: &mut dyn Peer,
        mut turn: Turn<'_, '_, G>,
    ) -> Result<(), Broken> {
        let end = self.receive_burst(peer, &mut turn)?;
        self.receives = end == End::Burst;
        self.waits[INPUT as usize] = end == End::Peer;
        turn.notify()
    }

    fn receive_burst<G: GuestMemory>(
        &mut self,
        peer: &mut dyn Peer,
        turn: &mut Turn<'_, '_, G>,
    ) -> Result<End, Broken> {
        let chain = &mut self.spare;
        for _ in 0..BURST {
            if !turn.queue.pop(turn.view, chain)? {
                if turn.queue.enable_kicks(turn.view)? {
                    continue;
                }
                return Ok(End::NoBuffers);
            }
            if chain.readable_len() != 0 {
                return Err(Broken::Device(
                    "a receive buffer of the console is device-readable",
                ));
            }
            let room = chain.writable_len().min(PIECE as u64) as usize;
            let bytes = &mut turn.buffer[..room];
            let len = if room == 0 {
                0
            } else {
                peer.read(bytes).unwrap_or(0)
            };
            if len == 0 && room != 0 {
                turn.queue.unpop(chain.head());
                return Ok(End::Peer);
            }
            let written = chain.writer(turn.view).write(&bytes[..len]);
            written.map_err(|_| NO_MEMORY)?;
            turn.queue.push(turn.view, chain.head(), len as u32)?;
        }
        Ok(End::Burst)
    }

    /// The guest takes no data now.
    pub(super) const fn rest(&mut self) {
        self.receives = false;
        self.waits[INPUT as usize] = false;
    }

    /// The peer has to be settled in the next turn, and then tried again.
    pub(super) const fn settle_next(&mut self) {
        (self.settles, self.sends, self.receives) = (true, true, true);
    }

    /// Watches what the port waits for, and no more.
    pub(super) fn watch(&mut self, io: &mut Io<'_>, first: u32, peer: &dyn Peer) -> io::Result<()> {
        let sources = peer.sources();
        let interest = |readable| Interest {
            readable,
            writable: !readable,
        };
        let wanted = [
            sources
                .input
                .filter(|_| self.waits[0])
                .map(|fd| (fd, interest(true))),
            sources
                .output
                .filter(|_| self.waits[1])
                .map(|fd| (fd, interest(false))),
            sources.other,
        ];
        for ((slot, wanted), token) in self.watched.iter_mut().zip(wanted).zip(first..) {
            watch_one(io, slot, token, wanted)?;
        }
        Ok(())
    }

    /// Watches nothing.
    pub(super) fn unwatch(&mut self, io: &mut Io<'_>, first: u32) {
        for (slot, token) in self.watched.iter_mut().zip(first..) {
            // Fails only to watch.
            let _ = watch_one(io, slot, token, None);
        }
    }

    /// Puts back the buffer that the host has in part. Its rest is sent later.
    pub(super) fn put_back(&mut self, queue: Option<&mut Virtq>) {
        if let (Some(chain), Some(queue)) = (self.held.take(), queue) {
            queue.unpop(chain.head());
        }
        self.spare = Chain::new();
        self.waits = [false; 2];
        (self.sends, self.receives, self.settles) = (false, false, false);
    }
}

/// Watches a source, or no longer. It is a duplicate, so that an event loop can watch one in both directions.
fn watch_one(
    io: &mut Io<'_>,
    slot: &mut Option<OwnedFd>,
    token: u32,
    wanted: Option<(BorrowedFd<'_>, Interest)>,
) -> io::Result<()> {
    match (wanted, &*slot) {
        (None, Some(fd)) => {
            let unwatched = io.unwatch(fd.as_fd(), token);
            *slot = None;
            unwatched
        }
        (Some((fd, interest)), None) => {
            let fd = fd.try_clone_to_owned()?;
            io.watch(fd.as_fd(), token, interest)?;
            *slot = Some(fd);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Sends the next piece of a chain, of which the peer has `sent` bytes. Returns whether it took some.
fn send_piece<G: GuestMemory>(
    chain: &Chain,
    sent: &mut u64,
    peer: &mut dyn Peer,
    turn: &mut Turn<'_, '_, G>,
) -> Result<bool, Broken> {
    // A restored state, or a driver that changed its buffer, may say more.
    *sent = (*sent).min(chain.readable_len());
    let mut reader = chain.reader(turn.view);
    let piece = (chain.readable_len() - *sent).min(PIECE as u64) as usize;
    if piece == 0 {
        return Ok(true);
    }
    let bytes = &mut turn.buffer[..piece];
    let read = reader.skip(*sent).and_then(|()| reader.read(bytes));
    read.map_err(|_| NO_MEMORY)?;
    match peer.write(bytes) {
        Ok(0) => return Ok(false),
        Ok(len) => *sent += len.min(piece) as u64,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
        Err(_) => *sent = chain.readable_len(),
    }
    Ok(true)
}

impl<G: GuestMemory> Turn<'_, '_, G> {
    /// Notifies the driver of the buffers that were returned.
    pub(super) fn notify(&mut self) -> Result<(), Broken> {
        if self.queue.needs_interrupt(self.view)? {
            self.interrupt.queue(self.number);
        }
        Ok(())
    }
}
