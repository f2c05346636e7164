// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The protocol's side of a connection: its phase, its credit, and the packets that it owes the guest. It has no socket
//! and no memory, so all of it is tested as a state machine.

use super::header::{HOST_CID, Header, STREAM, op, shut};

/// The bytes that the guest may send before the host's process takes them. The guest is told.
pub const BUFFER: u32 = 64 << 10;
/// The guest is told how much was taken when it knows of less space than this.
pub const LITTLE: u32 = 4 << 10;

/// The ports of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The host's port.
    pub local: u32,
    /// The guest's port.
    pub peer: u32,
}

impl Key {
    /// The connection that a packet of the guest belongs to.
    pub(super) const fn of(header: &Header) -> Self {
        Key {
            local: header.dst_port,
            peer: header.src_port,
        }
    }

    /// A header of a packet to the guest.
    pub(super) fn header(self, cid: u64) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: cid,
            src_port: self.local,
            dst_port: self.peer,
            kind: STREAM,
            ..Header::default()
        }
    }

    /// A reset of the connection.
    pub(super) fn reset(self, cid: u64) -> Header {
        Header {
            op: op::RST,
            ..self.header(cid)
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The host asks for a connection.
    Asking,
    /// It is connected.
    Open,
    /// The host neither sends nor receives any more. The guest has still to confirm that.
    Ended,
}

/// What a packet of the guest asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing. There may be credit for more data.
    Rest,
    /// The guest accepts the connection.
    Opened,
    /// Forward the payload.
    Data,
    /// The guest no longer uses a direction.
    Shut,
    /// The connection is gone.
    Gone,
    /// The guest broke a rule: reset the connection.
    Reset,
}

/// Packets that are due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Due {
    request: bool,
    response: bool,
    update: bool,
    query: bool,
    shutdown: bool,
}

/// A connection.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    key: Key,
    phase: Phase,
    due: Due,
    /// The guest was asked how much it can take, and has not answered.
    queried: bool,
    /// The directions that the host no longer uses, and those that the guest doesn't. They only grow.
    said: u32,
    heard: u32,
    /// The guest's buffer, how much of it was taken, and the bytes sent to it. The last two wrap.
    peer_alloc: u32,
    peer_taken: u32,
    sent: u32,
    /// The bytes that the guest sent, how many of them the host took, and how many of these the guest knows of. They wrap.
    received: u32,
    taken: u32,
    told: u32,
}

impl Flow {
    const fn new(key: Key, phase: Phase) -> Self {
        Flow {
            key,
            phase,
            due: Due {
                request: false,
                response: false,
                update: false,
                query: false,
                shutdown: false,
            },
            queried: false,
            said: 0,
            heard: 0,
            peer_alloc: 0,
            peer_taken: 0,
            sent: 0,
            received: 0,
            taken: 0,
            told: 0,
        }
    }

    /// A connection that the host asks for.
    pub(super) const fn to_guest(key: Key) -> Self {
        let mut flow = Flow::new(key, Phase::Asking);
        flow.due.request = true;
        flow
    }

    /// A connection that the guest asked for, and gets.
    pub(super) const fn from_guest(request: &Header) -> Self {
        let mut flow = Flow::new(Key::of(request), Phase::Open);
        flow.due.response = true;
        flow.peer_alloc = request.buf_alloc;
        flow.peer_taken = request.fwd_cnt;
        flow
    }

    pub(super) const fn key(&self) -> Key {
        self.key
    }

    /// Whether the guest may know of it.
    pub(super) const fn is_known(&self) -> bool {
        !self.due.request
    }

    /// Whether the host's process may still send data.
    pub(super) fn is_sending(&self) -> bool {
        self.phase == Phase::Open && self.said & shut::SEND == 0 && self.heard & shut::RECEIVE == 0
    }

    /// Whether the host's process takes data.
    pub(super) fn is_receiving(&self) -> bool {
        self.phase == Phase::Open && self.said & shut::RECEIVE == 0
    }

    /// Whether it only waits for the guest's confirmation.
    pub(super) fn has_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// The directions that the guest no longer uses.
    pub(super) const fn heard(&self) -> u32 {
        self.heard
    }

    /// How many bytes may be sent. The guest's numbers may be lies.
    pub(super) fn credit(&self) -> u32 {
        let on_way = self.sent.wrapping_sub(self.peer_taken);
        self.peer_alloc.saturating_sub(on_way)
    }

    /// Whether the guest was asked for credit and has none.
    pub(super) const fn is_queried(&self) -> bool {
        self.queried
    }

    /// There is data without credit: ask for some.
    pub(super) const fn query(&mut self) {
        if !self.queried {
            (self.queried, self.due.query) = (true, true);
        }
    }

    /// Takes a packet of the guest. `kept` bytes that it sent are still in the host's buffer.
    pub(super) fn take(&mut self, header: &Header, kept: usize) -> Step {
        if header.op == op::RST {
            return Step::Gone;
        }
        (self.peer_alloc, self.peer_taken) = (header.buf_alloc, header.fwd_cnt);
        if self.credit() != 0 {
            self.queried = false;
        }
        match (header.op, self.phase) {
            (op::RESPONSE, Phase::Asking) if !self.due.request => {
                self.phase = Phase::Open;
                Step::Opened
            }
            (_, Phase::Asking) => Step::Reset,
            (op::RW, _) if self.heard & shut::SEND != 0 => Step::Reset,
            (op::RW, _) if kept as u64 + u64::from(header.len) > u64::from(BUFFER) => Step::Reset,
            (op::RW, _) => {
                self.received = self.received.wrapping_add(header.len);
                if self.is_receiving() {
                    return Step::Data;
                }
                // It can't know yet that nobody takes this.
                self.taken(header.len);
                Step::Rest
            }
            (op::CREDIT_UPDATE, _) => Step::Rest,
            (op::CREDIT_REQUEST, _) => {
                self.due.update = true;
                Step::Rest
            }
            (op::SHUTDOWN, _) => {
                self.heard |= header.flags & shut::BOTH;
                Step::Shut
            }
            _ => Step::Reset,
        }
    }

    /// The host took `len` bytes of the guest.
    pub(super) const fn taken(&mut self, len: u32) {
        self.taken = self.taken.wrapping_add(len);
        if self.taken.wrapping_sub(self.told) >= BUFFER - LITTLE {
            self.due.update = true;
        }
    }

    /// The host's process no longer uses these directions.
    pub(super) fn end(&mut self, directions: u32) {
        if self.said | directions != self.said {
            self.said |= directions;
            self.due.shutdown = true;
        }
        if self.said == shut::BOTH {
            self.phase = Phase::Ended;
        }
    }

    /// Whether a packet is due, other than data.
    pub(super) fn is_due(&self) -> bool {
        self.due != Due::default()
    }

    /// The next packet that is due, other than data.
    pub(super) fn packet(&mut self, cid: u64) -> Option<Header> {
        let due = &mut self.due;
        let (flag, op) = match *due {
            Due { request: true, .. } => (&mut due.request, op::REQUEST),
            Due { response: true, .. } => (&mut due.response, op::RESPONSE),
            Due { update: true, .. } => (&mut due.update, op::CREDIT_UPDATE),
            Due { query: true, .. } => (&mut due.query, op::CREDIT_REQUEST),
            Due { shutdown: true, .. } => (&mut due.shutdown, op::SHUTDOWN),
            _ => return None,
        };
        *flag = false;
        let flags = if op == op::SHUTDOWN { self.said } else { 0 };
        Some(self.header(cid, op, flags, 0))
    }

    /// The header of `len` bytes of data, which must not be more than [`credit`](Self::credit).
    pub(super) fn data(&mut self, cid: u64, len: u32) -> Header {
        self.sent = self.sent.wrapping_add(len);
        self.header(cid, op::RW, 0, len)
    }

    /// Each packet tells how much was taken.
    fn header(&mut self, cid: u64, op: u16, flags: u32, len: u32) -> Header {
        self.told = self.taken;
        self.due.update = false;
        Header {
            len,
            op,
            flags,
            buf_alloc: BUFFER,
            fwd_cnt: self.taken,
            ..self.key.header(cid)
        }
    }
}

#[cfg(test)]
mod tests;
