// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The service's end of a TCP connection (RFC 9293): requests in, one answer at a time out.
//!
//! The way to the guest is its own memory, where frames wait and keep their order. So data out of order is dropped until
//! the guest repeats it, what the guest doesn't acknowledge is sent again from there on, and there is no congestion.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::http::{MAX_REQUEST, Served};
use super::packet::{ACK, FIN, MAX_MSS, Outgoing, PORT, PSH, Peer, RST, SYN, Segment};

/// How long the guest may take to acknowledge something. Doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// How often it is reminded, before the connection is given up: after 51 seconds.
const MAX_TRIES: u32 = 7;
/// The largest segment for a guest that doesn't say one (RFC 9293, section 3.7.1).
const DEFAULT_MSS: u16 = 536;
/// The least that a guest can ask for: that of the least MTU, 68.
const MIN_MSS: usize = 28;

/// Whether a sequence number comes after another one. They wrap around.
const fn is_after(this: u32, other: u32) -> bool {
    (this.wrapping_sub(other) as i32) > 0
}

/// A connection that the guest has opened.
#[derive(Debug)]
pub(super) struct Connection {
    pub peer: Peer,
    /// The pair of queues that it used last.
    pub pair: usize,
    /// When it was used last, in the order of all.
    pub used: u64,
    /// The guest's first sequence number, and the next one that is expected.
    first: u32,
    expected: u32,
    input: Vec<u8>,
    /// The answer under way, and the sequence number of its first byte.
    output: Vec<u8>,
    start: u32,
    /// What the guest has not acknowledged, what is sent next, and what was sent at all: our sequence numbers.
    unacked: u32,
    next: u32,
    sent: u32,
    window: u32,
    mss: usize,
    /// Nothing is sent after the answer but our FIN.
    is_closing: bool,
    /// The guest sends no more.
    has_ended: bool,
    owes_ack: bool,
    /// A byte is sent even without a window, to learn whether it is still closed.
    is_probing: bool,
    retry_at: Option<Instant>,
    tries: u32,
}

impl Connection {
    /// A connection for the guest's first segment. `number` is our first sequence number.
    pub(super) fn new(segment: &Segment<'_>, number: u32, pair: usize, now: Instant) -> Self {
        Connection {
            peer: segment.from,
            pair,
            used: 0,
            first: segment.seq,
            expected: segment.seq.wrapping_add(1),
            input: Vec::new(),
            output: Vec::new(),
            start: number.wrapping_add(1),
            unacked: number,
            next: number,
            sent: number,
            window: segment.window.into(),
            mss: usize::from(segment.mss.unwrap_or(DEFAULT_MSS)).clamp(MIN_MSS, MAX_MSS),
            is_closing: false,
            has_ended: false,
            owes_ack: false,
            is_probing: false,
            retry_at: Some(now + FIRST_WAIT),
            tries: 0,
        }
    }

    /// Whether this segment opens another connection between the same ends, because the guest has forgotten this one.
    pub(super) const fn is_replaced(&self, segment: &Segment<'_>) -> bool {
        segment.has(SYN) && !segment.has(ACK) && segment.seq != self.first
    }

    /// Takes a segment of the guest's. Returns whether the connection goes on.
    pub(super) fn take(
        &mut self,
        segment: &Segment<'_>,
        now: Instant,
        serve: &mut dyn FnMut(&[u8]) -> Option<Served>,
    ) -> bool {
        if segment.has(RST) {
            return segment.seq != self.expected;
        }
        if segment.has(SYN) {
            // Our answer was lost, or the guest should say whether it means another connection.
            match self.is_open() {
                true => self.owes_ack = true,
                false => self.next = self.unacked,
            }
        } else if segment.has(ACK) {
            if !self.acknowledge(segment) {
                self.owes_ack = true;
            } else if self.is_open() {
                self.store(segment);
                self.answer(serve);
            }
        }
        self.watch(now);
        !self.is_over()
    }

    /// Whether the guest has acknowledged our SYN.
    const fn is_open(&self) -> bool {
        self.unacked != self.start.wrapping_sub(1)
    }

    /// The sequence number after the answer.
    const fn end(&self) -> u32 {
        self.start.wrapping_add(self.output.len() as u32)
    }

    /// What the guest will have acknowledged when nothing is left to do for us.
    const fn goal(&self) -> u32 {
        self.end().wrapping_add(self.is_closing as u32)
    }

    /// Whether both sides have ended, and know it.
    pub(super) const fn is_over(&self) -> bool {
        self.has_ended && self.is_closing && self.unacked == self.goal() && !self.owes_ack
    }

    /// Notes what the guest has received. Returns `false` if that was never sent.
    fn acknowledge(&mut self, segment: &Segment<'_>) -> bool {
        if is_after(segment.ack, self.sent) {
            return false;
        }
        if is_after(self.unacked, segment.ack) {
            return true;
        }
        let window = u32::from(segment.window);
        let opens = self.window == 0 && window != 0;
        if segment.ack != self.unacked || opens {
            (self.tries, self.retry_at) = (0, None);
        }
        if self.window == 0 && window == 0 {
            // It answers our probes, so it is there (RFC 9293, section 3.8.6.1).
            self.tries = 0;
        }
        if opens {
            // The guest has dropped what came before.
            self.next = segment.ack;
        }
        (self.unacked, self.window) = (segment.ack, window);
        if is_after(self.unacked, self.next) {
            self.next = self.unacked;
        }
        if !self.output.is_empty() && !is_after(self.end(), self.unacked) {
            self.start = self.end();
            self.output = Vec::new();
        }
        true
    }

    /// Stores what is new in a segment.
    fn store(&mut self, segment: &Segment<'_>) {
        let is_empty = segment.data.is_empty() && !segment.has(FIN);
        if is_empty {
            // A guest that asks whether we are still there sends an old number.
            self.owes_ack |= segment.seq != self.expected;
            return;
        }
        self.owes_ack = true;
        let known = self.expected.wrapping_sub(segment.seq);
        if self.has_ended || is_after(segment.seq, self.expected) {
            return;
        }
        let Some(fresh) = segment.data.get(known as usize..) else {
            return;
        };
        // After the last answer, nothing that the guest sends has a meaning.
        let taken = match self.is_closing {
            true => fresh.len(),
            false => fresh.len().min(MAX_REQUEST - self.input.len()),
        };
        if !self.is_closing {
            self.input.extend(&fresh[..taken]);
        }
        self.expected = self.expected.wrapping_add(taken as u32);
        if segment.has(FIN) && taken == fresh.len() {
            self.has_ended = true;
            self.expected = self.expected.wrapping_add(1);
        }
    }

    /// Answers the next request, if it is complete and the last answer has arrived.
    fn answer(&mut self, serve: &mut dyn FnMut(&[u8]) -> Option<Served>) {
        if self.unacked != self.end() || self.is_closing {
            return;
        }
        if let Some(served) = serve(&self.input) {
            self.input.drain(..served.used);
            self.output = served.bytes;
            self.is_closing = !served.stays;
            self.owes_ack = true;
        } else {
            self.is_closing = self.has_ended;
        }
        if self.is_closing {
            self.input = Vec::new();
        }
    }

    /// Waits for the guest, if it has something to acknowledge.
    fn watch(&mut self, now: Instant) {
        if self.unacked == self.goal() {
            self.retry_at = None;
        } else if self.retry_at.is_none() {
            self.retry_at = Some(now + FIRST_WAIT);
        }
    }

    /// When the guest is reminded.
    pub(super) const fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Sends again what the guest has not acknowledged in time. Returns `false` if it is given up.
    pub(super) fn remind(&mut self, now: Instant) -> bool {
        if self.retry_at.is_none_or(|at| at > now) {
            return true;
        }
        self.tries += 1;
        self.retry_at = Some(now + FIRST_WAIT * (1 << self.tries.min(MAX_TRIES)));
        self.next = self.unacked;
        self.is_probing = true;
        self.tries <= MAX_TRIES
    }

    /// The flags of the next segment, and its part of the answer.
    fn plan(&self) -> Option<(u8, Range<usize>)> {
        if self.next == self.start.wrapping_sub(1) {
            return Some((SYN | ACK, 0..0));
        }
        let from = self.next.wrapping_sub(self.start) as usize;
        if from < self.output.len() {
            let window = self.window.max(self.is_probing.into());
            let under_way = self.next.wrapping_sub(self.unacked);
            let room = window.saturating_sub(under_way) as usize;
            let len = (self.output.len() - from).min(room).min(self.mss);
            if len != 0 {
                let is_last = from + len == self.output.len();
                let push = if is_last { PSH } else { 0 };
                return Some((ACK | push, from..from + len));
            }
        } else if self.is_closing && self.next == self.end() {
            return Some((ACK | FIN, 0..0));
        }
        self.owes_ack.then_some((ACK, 0..0))
    }

    /// Whether there is a segment to send.
    pub(super) fn is_ready(&self) -> bool {
        self.plan().is_some()
    }

    /// The next segment for the guest.
    pub(super) fn next(&mut self) -> Option<Outgoing<'_>> {
        let (flags, range) = self.plan()?;
        let seq = self.next;
        let control = u32::from(flags & (SYN | FIN) != 0);
        self.next = seq.wrapping_add(range.len() as u32 + control);
        if is_after(self.next, self.sent) {
            self.sent = self.next;
        }
        (self.owes_ack, self.is_probing) = (false, false);
        Some(Outgoing {
            to: self.peer,
            from: PORT,
            seq,
            ack: self.expected,
            flags,
            // Fits: it is at most `MAX_REQUEST`.
            window: (MAX_REQUEST - self.input.len()) as u16,
            data: &self.output[range],
        })
    }
}
