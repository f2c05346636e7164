// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Connections: what their sockets say, and their ends.

use std::time::Instant;

use virtio_transport::device::{Interest, Io};
use vm_memory::GuestAddressSpace;

use super::super::flow::Flow;
use super::super::header::shut;
use super::super::link::{Link, Reading};
use super::super::report::Notice;
use super::super::table::{Role, Slot};
use super::{SOCKETS, Vsock};

/// What to watch a connection's socket for.
fn interest(flow: &Flow, link: &Link) -> Option<Interest> {
    let writable = link.kept() != 0;
    let is_reading = flow.is_sending();
    // A socket that says there is data while none can be read is left alone. As long as it doesn't, that costs nothing.
    let readable = is_reading
        && match link.reading {
            Reading::Waits => true,
            Reading::Due => link.is_watched_for_reading() && !link.is_insisting,
        };
    // Without any of them, the end of the process is still told.
    let sees_end = flow.is_receiving() && !is_reading;
    (readable || writable || sees_end).then_some(Interest { readable, writable })
}

impl<M: GuestAddressSpace> Vsock<M> {
    /// A socket is ready for something.
    pub(super) fn ready(&mut self, io: &mut Io<'_>, number: usize) {
        match self.table.get(number).map(|slot| &slot.role) {
            Some(Role::Client(_)) => self.greet(io, number),
            Some(Role::Peer(_)) => {
                self.flush(io, number);
                self.look(io, number);
            }
            Some(Role::Leaver) => self.flush(io, number),
            None => {}
        }
    }

    /// The socket of a connection may have data, or its process may have gone.
    fn look(&mut self, io: &mut Io<'_>, number: usize) {
        let Some((flow, Some(link))) = self.table.peer(number) else {
            return;
        };
        if flow.is_sending() {
            link.is_insisting = link.reading == Reading::Due;
            link.reading = Reading::Due;
            self.table.wake(number);
        } else if flow.is_receiving() && link.is_hung_up() {
            flow.end(shut::BOTH);
        }
        self.settle(io, number);
    }

    /// Gives a process what it has still to take.
    fn flush(&mut self, io: &mut Io<'_>, number: usize) {
        let Some(Slot {
            role,
            link: Some(link),
            ..
        }) = self.table.get(number)
        else {
            return;
        };
        let flushed = link.flush();
        let is_done = link.kept() == 0 || flushed.is_err();
        match (role, flushed) {
            (Role::Peer(flow), Ok(sent)) => flow.taken(sent as u32),
            (Role::Peer(_), Err(_)) => return self.deafen(io, number),
            _ if is_done => {
                self.drop_link(io, number);
                return self.table.remove(number);
            }
            _ => {}
        }
        self.settle(io, number);
    }

    /// A process takes no more data. It may have sent some before.
    pub(super) fn deafen(&mut self, io: &mut Io<'_>, number: usize) {
        self.counters.write_fails.add(0);
        if let Some((flow, Some(link))) = self.table.peer(number) {
            flow.taken(link.forget() as u32);
            flow.end(shut::RECEIVE);
        }
        self.settle(io, number);
    }

    /// A process sends no more data.
    pub(super) fn end(&mut self, io: &mut Io<'_>, number: usize) {
        if let Some((flow, Some(link))) = self.table.peer(number) {
            flow.end(match link.is_hung_up() {
                true => shut::BOTH,
                false => shut::SEND,
            });
        }
        self.settle(io, number);
    }

    /// Does what follows from a connection's new state: packets, time limits, and what its socket is watched for.
    pub(super) fn settle(&mut self, io: &mut Io<'_>, number: usize) {
        let Some((flow, link)) = self.table.peer(number) else {
            return;
        };
        let has_data = flow.is_sending() && link.is_some_and(|link| link.reading == Reading::Due);
        if flow.is_due() || has_data && (flow.credit() != 0 || !flow.is_queried()) {
            self.table.wake(number);
        }
        let has_ended = self
            .table
            .peer(number)
            .is_some_and(|(flow, _)| flow.has_ended());
        if has_ended {
            self.drop_link(io, number);
            if !self.table.has_limit(number) {
                let limit = Instant::now() + self.patience.answer;
                self.table.limit(number, Some(limit));
            }
        }
        self.watch(io, number);
    }

    /// Watches a socket for what is needed.
    pub(super) fn watch(&mut self, io: &mut Io<'_>, number: usize) {
        let Some(Slot {
            role,
            link: Some(link),
            ..
        }) = self.table.get(number)
        else {
            return;
        };
        let wanted = match role {
            Role::Client(_) => return,
            Role::Peer(flow) => interest(flow, link),
            Role::Leaver => Some(Interest {
                readable: false,
                writable: true,
            }),
        };
        if let Err(error) = link.watch(io, SOCKETS + number as u32, wanted) {
            self.complain(Notice::NotWatched(error));
            self.reset_peer(io, number);
        }
    }

    /// Closes a socket.
    pub(super) fn drop_link(&mut self, io: &mut Io<'_>, number: usize) {
        if let Some(slot) = self.table.get(number)
            && let Some(mut link) = slot.link.take()
        {
            let _ = link.watch(io, SOCKETS + number as u32, None);
        }
    }

    /// Ends a connection, and tells the guest if it knows of it.
    pub(super) fn reset_peer(&mut self, io: &mut Io<'_>, number: usize) {
        let cid = self.cid();
        if let Some((flow, _)) = self.table.peer(number) {
            if flow.is_known() {
                let reset = flow.key().reset(cid);
                self.replies.push_back(reset);
            }
            self.counters.removed.add(0);
        }
        self.drop_link(io, number);
        self.table.remove(number);
    }

    /// The guest knows that a connection is gone. The process may have still to take what it sent before.
    pub(super) fn leave(&mut self, io: &mut Io<'_>, number: usize) {
        self.counters.removed.add(0);
        let keeps = matches!(self.table.peer(number), Some((_, Some(link))) if link.kept() != 0);
        if !keeps {
            self.drop_link(io, number);
            return self.table.remove(number);
        }
        self.table.limit(number, None);
        self.table.rest(number);
        self.table.change(number, Role::Leaver);
        self.watch(io, number);
    }
}
