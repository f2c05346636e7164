// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Packets of the guest.

use std::io;

use virtio_transport::Broken;
use virtio_transport::chain::Chain;
use virtio_transport::device::Io;
use virtio_transport::memory::View;
use vm_memory::{GuestAddressSpace, Permissions};

use super::super::flow::{Flow, Key, Step};
use super::super::header::{HEADER, HOST_CID, Header, STREAM, Words, op, shut};
use super::super::link::Link;
use super::super::report::Notice;
use super::super::table::Role;
use super::{BURST, MAX_REPLIES, TX, Vsock, queue};
use crate::segments::places;

impl<M: GuestAddressSpace> Vsock<M> {
    /// Takes packets of the guest, up to a limit. The driver gets all of them back at once.
    pub(super) fn transmit(
        &mut self,
        io: &mut Io<'_>,
        view: &View<'_, M::M>,
    ) -> Result<(), Broken> {
        if !std::mem::take(&mut self.transmit.is_due) {
            return Ok(());
        }
        let mut chain = std::mem::take(&mut self.transmit.chain);
        let turn = self.packets(io, view, &mut chain);
        self.transmit.chain = chain;
        let Some(queue) = queue(&mut self.active, TX) else {
            return Ok(());
        };
        let pushed = queue.push_all(view, &self.transmit.returned);
        self.transmit.returned.clear();
        turn.and(pushed)?;
        let is_wanted = queue.needs_interrupt(view)?;
        if let Some(active) = &self.active
            && is_wanted
        {
            active.interrupt.queue(TX as u16);
        }
        Ok(())
    }

    fn packets(
        &mut self,
        io: &mut Io<'_>,
        view: &View<'_, M::M>,
        chain: &mut Chain,
    ) -> Result<(), Broken> {
        for turn in 0..BURST {
            if self.replies.len() >= MAX_REPLIES {
                self.transmit.is_blocked = true;
                return Ok(());
            }
            let Some(queue) = queue(&mut self.active, TX) else {
                return Ok(());
            };
            if turn == 0 {
                queue.disable_kicks(view)?;
            }
            if !queue.pop(view, chain)? {
                if queue.enable_kicks(view)? {
                    continue;
                }
                return Ok(());
            }
            self.transmit.returned.push((chain.head(), 0));
            self.packet(io, view, chain);
        }
        self.transmit.is_due = true;
        Ok(())
    }

    /// Takes a packet of the guest.
    fn packet(&mut self, io: &mut Io<'_>, view: &View<'_, M::M>, chain: &Chain) {
        let words: Result<Words, _> = chain.reader(view).read_obj();
        let Ok(header) = words.map(Header::from_words) else {
            return self.counters.refused.add(0);
        };
        let data = if header.op == op::RW { header.len } else { 0 };
        self.counters.from_guest.add(data.into());
        if header.src_cid != self.cid() || header.dst_cid != HOST_CID {
            return self.counters.refused.add(0);
        }
        let is_stream = header.kind == STREAM && self.has_streams();
        let key = Key::of(&header);
        match self.table.find(key).filter(|_| is_stream) {
            Some(number) => self.packet_of(io, view, chain, number, &header),
            None if is_stream && header.op == op::REQUEST => self.connect(io, &header),
            None => self.refuse(&header),
        }
    }

    /// Answers a packet that belongs to no connection.
    fn refuse(&mut self, header: &Header) {
        self.counters.refused.add(0);
        self.replies.extend(header.refusal());
    }

    /// Connects the guest to a process of the host.
    fn connect(&mut self, io: &mut Io<'_>, request: &Header) {
        self.make_room(io);
        if self.table.is_full() {
            return self.refuse(request);
        }
        let socket = match self.host.connect(request.dst_port) {
            Ok(socket) => socket,
            Err(error) => {
                let few = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS];
                if error.raw_os_error().is_some_and(|code| few.contains(&code)) {
                    self.complain(Notice::NoSocket(error));
                }
                return self.refuse(request);
            }
        };
        let role = Role::Peer(Flow::from_guest(request));
        if let Some(number) = self.table.add(role, Link::new(socket)) {
            self.counters.added.add(0);
            self.settle(io, number);
        }
    }

    /// Takes a packet of a connection.
    fn packet_of(
        &mut self,
        io: &mut Io<'_>,
        view: &View<'_, M::M>,
        chain: &Chain,
        number: usize,
        header: &Header,
    ) {
        let Some((flow, link)) = self.table.peer(number) else {
            return;
        };
        let kept = link.map_or(0, |link| link.kept());
        let is_whole = chain.readable_len() >= HEADER as u64 + u64::from(header.len);
        let step = match flow.take(header, kept) {
            Step::Data if !is_whole => Step::Reset,
            step => step,
        };
        match step {
            Step::Rest => self.settle(io, number),
            Step::Opened => self.open(io, number),
            Step::Data => self.forward(io, view, chain, number, header.len as usize),
            Step::Shut => self.shut(io, number),
            Step::Gone => self.leave(io, number),
            Step::Reset => {
                self.counters.refused.add(0);
                self.reset_peer(io, number);
            }
        }
    }

    /// The guest accepted a connection.
    fn open(&mut self, io: &mut Io<'_>, number: usize) {
        let Some((flow, Some(link))) = self.table.peer(number) else {
            return;
        };
        let answer = format!("OK {}\n", flow.key().local);
        // It is the first that the process gets, so there is room for it.
        if link.send(answer.as_bytes()).ok() != Some(answer.len()) {
            self.counters.write_fails.add(0);
            return self.reset_peer(io, number);
        }
        self.table.limit(number, None);
        self.settle(io, number);
    }

    /// Forwards `len` bytes to the connection's process. It gets later what it doesn't take now.
    fn forward(
        &mut self,
        io: &mut Io<'_>,
        view: &View<'_, M::M>,
        chain: &Chain,
        number: usize,
        len: usize,
    ) {
        let Some((flow, Some(link))) = self.table.peer(number) else {
            return;
        };
        let mut sent = Ok(0);
        if link.kept() == 0 && len != 0 {
            let mut pieces = self.vector.pieces(view, Permissions::Read);
            if pieces.add(places(chain.readable()), HEADER, len).is_none() {
                return self.reset_peer(io, number);
            }
            sent = match pieces.transfer(link.socket()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                sent => sent,
            };
        }
        let Ok(sent) = sent else {
            flow.taken(len as u32);
            return self.deafen(io, number);
        };
        flow.taken(sent as u32);
        if sent < len {
            let mut reader = chain.reader(view);
            let kept = reader.skip((HEADER + sent) as u64);
            let kept = kept.and_then(|()| reader.read(link.keep(len - sent)));
            if kept.is_err() {
                return self.reset_peer(io, number);
            }
        }
        self.settle(io, number);
    }

    /// The guest no longer uses a direction.
    fn shut(&mut self, io: &mut Io<'_>, number: usize) {
        let cid = self.cid();
        let Some((flow, link)) = self.table.peer(number) else {
            return;
        };
        if flow.heard() == shut::BOTH {
            let reset = flow.key().reset(cid);
            self.replies.push_back(reset);
            return self.leave(io, number);
        }
        if let Some(link) = link {
            match flow.heard() {
                shut::SEND => link.end(),
                shut::RECEIVE => link.deafen(),
                _ => {}
            }
        }
        self.settle(io, number);
    }
}
