// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Time limits, the listener, and the news of a restore.

use std::time::{Duration, Instant};

use virtio_transport::Broken;
use virtio_transport::chain::Chain;
use virtio_transport::device::{Interest, Io};
use virtio_transport::memory::View;
use vm_memory::GuestAddressSpace;

use super::super::report::Notice;
use super::super::table::Role;
use super::{EVENTS, LISTENER, Vsock, queue};

pub(super) const READABLE: Interest = Interest {
    readable: true,
    writable: false,
};

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (virtio 1.4, 5.10.6.7).
const TRANSPORT_RESET: u32 = 0;
/// How long to leave the host's processes waiting after one could not be accepted.
const REST: Duration = Duration::from_millis(100);

/// Whether processes of the host are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listening {
    Off,
    On,
    /// Not before then: the host had no resources.
    Resting(Instant),
}

/// Whether the guest has still to learn that a restore ended its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    None,
    /// It has.
    Due,
    /// It was told, and has still to act on it: then the driver returns the event's buffer, as one more than these. A new
    /// connection before that would be ended with the old ones, so none is accepted.
    Told {
        buffers: u16,
    },
}

impl<M: GuestAddressSpace> Vsock<M> {
    /// Continues after a start: time limits begin anew, and each socket is looked at.
    pub(super) fn resume(&mut self, io: &mut Io<'_>) {
        let now = Instant::now();
        for number in self.table.numbers() {
            if self.table.has_limit(number) {
                let wait = match self.table.get(number).map(|slot| &slot.role) {
                    Some(Role::Client(_)) => self.patience.command,
                    _ => self.patience.answer,
                };
                self.table.limit(number, Some(now + wait));
            }
            self.ready(io, number);
        }
        match self.news {
            News::None => self.listen(io),
            // A driver without buffers for events doesn't hear it.
            News::Due | News::Told { .. } => self.hold = Some(now + self.patience.answer),
        }
        self.arm();
    }

    /// Accepts processes of the host.
    pub(super) fn listen(&mut self, io: &mut Io<'_>) {
        match io.watch(self.host.source(), LISTENER, READABLE) {
            Ok(()) => self.listening = Listening::On,
            Err(error) => {
                self.complain(Notice::NotWatched(error));
                self.listening = Listening::Resting(Instant::now() + REST);
            }
        }
    }

    pub(super) fn stop_listening(&mut self, io: &mut Io<'_>) {
        if self.listening == Listening::On {
            let _ = io.unwatch(self.host.source(), LISTENER);
        }
        self.listening = Listening::Off;
    }

    /// Leaves the host's processes waiting for a while.
    pub(super) fn rest(&mut self, io: &mut Io<'_>) {
        self.stop_listening(io);
        self.listening = Listening::Resting(Instant::now() + REST);
    }

    /// The driver may have returned the event's buffer.
    pub(super) fn hear_of_news(
        &mut self,
        io: &mut Io<'_>,
        view: &View<'_, M::M>,
    ) -> Result<(), Broken> {
        if let News::Told { buffers } = self.news
            && let Some(queue) = queue(&mut self.active, EVENTS)
            && queue.enable_kicks_behind(view)? > buffers
        {
            self.news = News::None;
            self.release(io);
        }
        Ok(())
    }

    /// Accepts processes after the guest has heard the news, or has had the time for it.
    fn release(&mut self, io: &mut Io<'_>) {
        if self.hold.take().is_some() {
            self.listen(io);
        }
    }

    /// Tells the guest that its connections are gone, if it has to learn that.
    pub(super) fn tell_news(&mut self, view: &View<'_, M::M>) -> Result<(), Broken> {
        let Some(queue) = queue(&mut self.active, EVENTS) else {
            return Ok(());
        };
        if self.news != News::Due {
            return Ok(());
        }
        let mut chain = Chain::new();
        while !queue.pop(view, &mut chain)? {
            if !queue.enable_kicks(view)? {
                return Ok(());
            }
        }
        let mut writer = chain.writer(view);
        let written = writer.write_obj(&TRANSPORT_RESET.to_le());
        let len = writer.written();
        queue.push(view, chain.head(), len)?;
        written.map_err(|_| Broken::Device("an event buffer is too short, or no guest memory"))?;
        let buffers = queue.enable_kicks_behind(view)?;
        let is_wanted = queue.needs_interrupt(view)?;
        self.news = News::Told { buffers };
        if let Some(active) = &self.active
            && is_wanted
        {
            active.interrupt.queue(EVENTS as u16);
        }
        Ok(())
    }

    /// Lets the timer end the first wait.
    pub(super) fn arm(&mut self) {
        let listener = match self.listening {
            Listening::Resting(until) => Some(until),
            _ => None,
        };
        let table = self.table.first_limit().map(|(until, _)| until);
        let first = [listener, self.hold, table].into_iter().flatten().min();
        let (Some(timer), Some(until)) = (&mut self.timer, first) else {
            return;
        };
        // An alarm that is too early does no harm.
        if self.alarm.is_none_or(|alarm| until < alarm) {
            self.alarm = Some(until);
            let wait = until.saturating_duration_since(Instant::now());
            if let Err(error) = timer.set(wait) {
                self.complain(Notice::NotWatched(error));
            }
        }
    }

    /// Ends what took too long.
    pub(super) fn expire(&mut self, io: &mut Io<'_>) {
        if let Some(timer) = &mut self.timer {
            timer.rest();
        }
        self.alarm = None;
        let now = Instant::now();
        match self.listening {
            Listening::Resting(until) if until <= now => self.listen(io),
            _ => {}
        }
        if self.hold.is_some_and(|until| until <= now) {
            self.release(io);
        }
        while let Some((until, number)) = self.table.first_limit()
            && until <= now
        {
            self.counters.killed.add(0);
            self.reset_peer(io, number);
        }
    }
}
