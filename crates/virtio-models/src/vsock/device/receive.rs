// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Packets for the guest.

use virtio_transport::Broken;
use virtio_transport::device::Io;
use virtio_transport::memory::View;
use vm_memory::GuestAddressSpace;

use super::super::link::Reading;
use super::super::rx::Read;
use super::{BURST, RX, Vsock, queue};

impl<M: GuestAddressSpace> Vsock<M> {
    /// Sends packets to the guest, up to a limit. The driver sees all of them at once.
    pub(super) fn receive(&mut self, io: &mut Io<'_>, view: &View<'_, M::M>) -> Result<(), Broken> {
        if self.is_starved {
            return Ok(());
        }
        let turn = self.fill(io, view);
        let Some(queue) = queue(&mut self.active, RX) else {
            return Ok(());
        };
        let given = self.receiver.give(queue, view);
        turn.and(given)?;
        let is_wanted = queue.needs_interrupt(view)?;
        if let Some(active) = &self.active
            && is_wanted
        {
            active.interrupt.queue(RX as u16);
        }
        Ok(())
    }

    fn fill(&mut self, io: &mut Io<'_>, view: &View<'_, M::M>) -> Result<(), Broken> {
        let has_buffers = std::mem::take(&mut self.has_buffers);
        if has_buffers
            && !self.has_packets()
            && let Some(queue) = queue(&mut self.active, RX)
        {
            // A driver that breaks a rule learns it now.
            return self.receiver.look(queue, view);
        }
        for _ in 0..BURST {
            let has_buffer = if self.replies.is_empty() {
                match self.table.first_ready() {
                    Some(number) => self.serve_peer(io, view, number)?,
                    None => return Ok(()),
                }
            } else {
                self.reply(view)?
            };
            if !has_buffer {
                self.is_starved = true;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Sends the first reply. Returns `false` if there is no buffer for it.
    fn reply(&mut self, view: &View<'_, M::M>) -> Result<bool, Broken> {
        let (Some(queue), Some(reply)) = (queue(&mut self.active, RX), self.replies.front()) else {
            return Ok(false);
        };
        let sent = self.receiver.packet(queue, view, || *reply)?;
        if sent {
            self.replies.pop_front();
            self.counters.to_guest.add(0);
        }
        Ok(sent)
    }

    /// Sends a packet of a connection, or as much data of it as has room. Returns `false` if there is no buffer for it.
    fn serve_peer(
        &mut self,
        io: &mut Io<'_>,
        view: &View<'_, M::M>,
        number: usize,
    ) -> Result<bool, Broken> {
        let cid = self.cid();
        let Some(queue) = queue(&mut self.active, RX) else {
            return Ok(false);
        };
        let Some((flow, link)) = self.table.peer(number) else {
            self.table.rest(number);
            return Ok(true);
        };
        if flow.is_due() {
            let packet = || flow.packet(cid).unwrap_or_default();
            let sent = self.receiver.packet(queue, view, packet)?;
            if sent {
                self.counters.to_guest.add(0);
                self.table.rotate();
            }
            return Ok(sent);
        }
        let link = link.filter(|link| flow.is_sending() && link.reading == Reading::Due);
        let Some(link) = link else {
            self.table.rest(number);
            return Ok(true);
        };
        let limit = link.appetite().min(flow.credit() as usize);
        if limit == 0 {
            flow.query();
            if !flow.is_due() {
                self.table.rest(number);
            }
            return Ok(true);
        }
        let to_guest = &self.counters.to_guest;
        let header = |len| {
            to_guest.add(u64::from(len));
            flow.data(cid, len)
        };
        let read = (self.receiver).data(queue, view, (link.socket(), limit), header)?;
        match read {
            Read::Starved => return Ok(false),
            Read::Data { len, room } if len == room => {
                link.learn(len, room);
                self.table.rotate();
            }
            Read::Data { len, room } => {
                link.learn(len, room);
                self.wait(io, number);
            }
            Read::Busy => self.wait(io, number),
            Read::End => self.end(io, number),
            Read::Failed => {
                self.counters.read_fails.add(0);
                self.reset_peer(io, number);
            }
        }
        Ok(true)
    }

    /// Waits until a process sends more.
    fn wait(&mut self, io: &mut Io<'_>, number: usize) {
        if let Some((_, Some(link))) = self.table.peer(number) {
            (link.reading, link.is_insisting) = (Reading::Waits, false);
        }
        self.table.rest(number);
        self.settle(io, number);
    }
}
