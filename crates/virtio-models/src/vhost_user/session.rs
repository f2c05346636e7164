// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A conversation with a backend: negotiation, then starts and stops of rings.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use virtio_transport::layout::VERSION_1;
use virtio_transport::queue::QueueState;
use vm_memory::{GuestMemory, GuestMemoryBackend, GuestMemoryRegion};

use super::fault::Fault;
use super::kind::{Kind, MAX_QUEUES, Shape};
use super::socket::{MAX_FDS, Socket};
use super::wire::{F_PROTOCOL, Request, message, number, protocol, word, words};

/// The protocol's features that are used here.
const WANTED: u64 = protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG;
/// The number of a ring has 8 bits in messages with descriptors.
const _: () = assert!(MAX_QUEUES < 256);

/// What a backend offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    /// The features that a driver may accept.
    pub features: u64,
    /// How many queues the device has.
    pub queues: u16,
    /// The configuration that a driver reads.
    pub config: Vec<u8>,
}

/// A ring that starts.
pub(super) struct Ring<'a> {
    pub number: u16,
    pub state: QueueState,
    /// The backend waits for this.
    pub kick: BorrowedFd<'a>,
    /// The backend writes this.
    pub call: BorrowedFd<'a>,
}

/// A connection with what was negotiated on it.
#[derive(Debug)]
pub(super) struct Session {
    socket: Socket,
    /// [`F_PROTOCOL`], if the backend has it.
    protocol: u64,
    /// Messages are confirmed.
    has_acks: bool,
}

impl Session {
    /// Negotiates with the backend at the other end, until `by`.
    pub fn negotiate(socket: OwnedFd, shape: &Shape, by: Instant) -> Result<(Self, Offer), Fault> {
        let mut session = Session {
            socket: Socket::new(socket),
            protocol: 0,
            has_acks: false,
        };
        let features = session.ask(Request::GetFeatures, by)?;
        if features & VERSION_1 == 0 {
            return Err(Fault::Lacks("VERSION_1"));
        }
        session.protocol = features & F_PROTOCOL;
        let mut agreed = 0;
        if session.protocol != 0 {
            agreed = session.ask(Request::GetProtocolFeatures, by)? & WANTED;
            let body = agreed.to_ne_bytes();
            session.send(Request::SetProtocolFeatures, &body, &[], by)?;
            session.has_acks = agreed & protocol::REPLY_ACK != 0;
        }
        session.tell(Request::SetOwner, &[], &[], by)?;
        let has_config = agreed & protocol::CONFIG != 0;
        let len = shape.kind.backend_config(has_config)?;
        let config = session.get_config(len, by)?;
        let offered = shape.kind.offered(features, has_config);
        let queues = shape.count(offered, &config);
        if queues == 0 || queues > MAX_QUEUES + 1 {
            return Err(Fault::Config("its number of queues is out of range"));
        }
        // For a network this may be the number of pairs.
        if agreed & protocol::MQ != 0 && shape.kind != Kind::Net {
            let (has, wanted) = (session.ask(Request::GetQueueNum, by)?, queues.into());
            if has < wanted {
                return Err(Fault::Queues { has, wanted });
            }
        }
        let offer = Offer {
            features: offered,
            queues,
            config: shape.kind.config(queues, &config),
        };
        Ok((session, offer))
    }

    fn get_config(&mut self, len: u32, by: Instant) -> Result<Vec<u8>, Fault> {
        if len == 0 {
            return Ok(Vec::new());
        }
        let mut body = words(&[0, len, 0]);
        body.resize(body.len() + len as usize, 0);
        self.send(Request::GetConfig, &body, &[], by)?;
        let answer = self.socket.receive(Request::GetConfig, by)?;
        let (place, config) = answer.split_at_checked(12).unwrap_or_default();
        if word(place, 4) == Some(0) {
            return Err(Fault::Refused(Request::GetConfig));
        }
        let is_whole = (word(place, 0), word(place, 4)) == (Some(0), Some(len));
        if !is_whole || config.len() != len as usize {
            return Err(Fault::Answer(Request::GetConfig));
        }
        Ok(config.to_vec())
    }

    /// Writes to the configuration.
    pub fn set_config(&mut self, at: u32, data: &[u8], by: Instant) -> Result<(), Fault> {
        let mut body = words(&[at, data.len() as u32, 0]);
        body.extend(data);
        self.tell(Request::SetConfig, &body, &[], by)
    }

    /// Gives the backend what the driver accepted, and guest memory.
    ///
    /// A region's address here is its address in the guest. The protocol has room for addresses of this process, but a
    /// backend only compares them with those of rings.
    pub fn prepare<M: GuestMemory>(
        &mut self,
        features: u64,
        memory: &M,
        by: Instant,
    ) -> Result<(), Fault> {
        let features = features | self.protocol;
        self.tell(Request::SetFeatures, &features.to_ne_bytes(), &[], by)?;
        let memory = memory.physical_memory().ok_or(Fault::PrivateMemory)?;
        let (mut body, mut files) = (Vec::new(), Vec::new());
        for region in memory.iter() {
            let file = region.file_offset().ok_or(Fault::PrivateMemory)?;
            let start = region.start_addr().0;
            let numbers = [start, region.len(), start, file.start()];
            body.extend(numbers.iter().flat_map(|number| number.to_ne_bytes()));
            files.push(file.file());
        }
        let fds: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        if fds.len() > MAX_FDS {
            return Err(Fault::PrivateMemory);
        }
        let mut table = words(&[fds.len() as u32, 0]);
        table.extend(body);
        self.tell(Request::SetMemTable, &table, &fds, by)
    }

    /// Starts a ring.
    pub fn start(&mut self, ring: &Ring<'_>, by: Instant) -> Result<(), Fault> {
        let (state, number) = (&ring.state, u32::from(ring.number));
        let size = words(&[number, state.size.into()]);
        self.tell(Request::SetVringNum, &size, &[], by)?;
        let base = words(&[number, state.position.next_available.into()]);
        self.tell(Request::SetVringBase, &base, &[], by)?;
        let mut places = words(&[number, 0]);
        for address in [state.descriptors, state.used, state.available, 0] {
            places.extend(address.to_ne_bytes());
        }
        self.tell(Request::SetVringAddr, &places, &[], by)?;
        let index = u64::from(ring.number).to_ne_bytes();
        self.tell(Request::SetVringCall, &index, &[ring.call], by)?;
        self.tell(Request::SetVringKick, &index, &[ring.kick], by)?;
        if self.protocol != 0 {
            self.tell(Request::SetVringEnable, &words(&[number, 1]), &[], by)?;
        }
        Ok(())
    }

    /// Asks the backend to stop a ring, without waiting for its [`position`](Self::position).
    pub fn ask_to_stop(&mut self, number: u16, by: Instant) -> Result<(), Fault> {
        let number = u32::from(number);
        if self.protocol != 0 {
            self.send(Request::SetVringEnable, &words(&[number, 0]), &[], by)?;
        }
        self.send(Request::GetVringBase, &words(&[number, 0]), &[], by)
    }

    /// The next entry of the available ring, of a ring that was asked to stop. `None` if the answer isn't here yet.
    pub fn position(&mut self, number: u16) -> Result<Option<u16>, Fault> {
        let Some(answer) = self.socket.take(Request::GetVringBase)? else {
            return Ok(None);
        };
        let has = [word(&answer, 0), word(&answer, 4)];
        match has {
            [Some(index), Some(base)] if answer.len() == 8 && index == u32::from(number) => {
                let base = u16::try_from(base);
                Ok(Some(
                    base.map_err(|_| Fault::Answer(Request::GetVringBase))?,
                ))
            }
            _ => Err(Fault::Answer(Request::GetVringBase)),
        }
    }

    /// Waits until the socket is readable, or `by`.
    pub fn wait(&self, by: Instant) -> Result<(), Fault> {
        self.socket.wait_to_read(Request::GetVringBase, by)
    }

    /// Becomes readable when the backend says something or ends.
    pub fn source(&self) -> BorrowedFd<'_> {
        self.socket.source()
    }

    /// What it means that the source is ready while nothing was asked.
    pub fn unasked(&self) -> Result<(), Fault> {
        self.socket.unasked()
    }

    /// Sends a message, and waits for its confirmation if there are any.
    fn tell(
        &mut self,
        request: Request,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
        by: Instant,
    ) -> Result<(), Fault> {
        let bytes = message(request, body, self.has_acks);
        self.socket.send(request, &bytes, fds, by)?;
        if !self.has_acks {
            return Ok(());
        }
        match number(&self.socket.receive(request, by)?) {
            Some(0) => Ok(()),
            Some(_) => Err(Fault::Refused(request)),
            None => Err(Fault::Answer(request)),
        }
    }

    /// Sends a message that is not confirmed.
    fn send(
        &mut self,
        request: Request,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
        by: Instant,
    ) -> Result<(), Fault> {
        let bytes = message(request, body, false);
        self.socket.send(request, &bytes, fds, by)
    }

    /// Asks for a number.
    fn ask(&mut self, request: Request, by: Instant) -> Result<u64, Fault> {
        self.send(request, &[], &[], by)?;
        let answer = self.socket.receive(request, by)?;
        number(&answer).ok_or(Fault::Answer(request))
    }
}
