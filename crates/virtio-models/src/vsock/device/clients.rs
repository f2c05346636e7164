// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Processes of the host that connect to the guest.

use std::io;
use std::time::Instant;

use virtio_transport::device::Io;
use vm_memory::GuestAddressSpace;

use super::super::flow::{Flow, Key};
use super::super::greeting::{Greeting, Heard};
use super::super::link::Link;
use super::super::report::Notice;
use super::super::table::Role;
use super::times::READABLE;
use super::{FIRST_PORT, SOCKETS, Vsock};

/// The most processes to accept before others have their turn.
const CLIENTS: usize = 16;

impl<M: GuestAddressSpace> Vsock<M> {
    /// Accepts processes that connect to the guest.
    pub(super) fn accept(&mut self, io: &mut Io<'_>) {
        for _ in 0..CLIENTS {
            let socket = match self.host.accept() {
                Ok(socket) => socket,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    io::ErrorKind::ConnectionAborted => continue,
                    _ => {
                        self.complain(Notice::NotAccepted(error));
                        return self.rest(io);
                    }
                },
            };
            self.make_room(io);
            // If there are too many, the process sees that it is closed.
            let added = (self.table).add(Role::Client(Greeting::default()), Link::new(socket));
            if let Some(number) = added {
                let limit = Instant::now() + self.patience.command;
                self.table.limit(number, Some(limit));
                self.greet(io, number);
            }
        }
    }

    /// Makes room for another process, if there are too many, at the expense of one whose connection is gone.
    pub(super) fn make_room(&mut self, io: &mut Io<'_>) {
        if self.table.is_full()
            && let Some(number) = self.table.leaver()
        {
            self.drop_link(io, number);
            self.table.remove(number);
        }
    }

    /// Hears what a process wants.
    pub(super) fn greet(&mut self, io: &mut Io<'_>, number: usize) {
        let Some(slot) = self.table.get(number) else {
            return;
        };
        let (Role::Client(greeting), Some(link)) = (&mut slot.role, &mut slot.link) else {
            return;
        };
        match greeting.hear(link.socket()) {
            Heard::More => {
                if let Err(error) = link.watch(io, SOCKETS + number as u32, Some(READABLE)) {
                    self.complain(Notice::NotWatched(error));
                    self.table.remove(number);
                }
            }
            Heard::Refused => {
                self.drop_link(io, number);
                self.table.remove(number);
            }
            Heard::Port(peer) => {
                let local = self.port(peer);
                let flow = Flow::to_guest(Key { local, peer });
                self.counters.added.add(0);
                self.table.change(number, Role::Peer(flow));
                let limit = Instant::now() + self.patience.answer;
                self.table.limit(number, Some(limit));
                self.table.wake(number);
                self.watch(io, number);
            }
        }
    }

    /// A port of the host for a connection to the guest's port `peer`.
    fn port(&mut self, peer: u32) -> u32 {
        loop {
            // Ends: there are more ports than connections.
            let next = self.last_port.wrapping_add(1) & (FIRST_PORT - 1);
            self.last_port = FIRST_PORT | next;
            let local = self.last_port;
            if self.table.find(Key { local, peer }).is_none() {
                return local;
            }
        }
    }
}
