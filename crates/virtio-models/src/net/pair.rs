// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A pair of queues with its link.

use std::io;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_transport::Broken;
use virtio_transport::device::{Active, Interest, Io};
use virtio_transport::queue::Virtq;
use vm_memory::GuestAddressSpace;

use super::link::Link;
use super::rx::Receiver;
use super::status::State;
use super::turn::{Means, Turn};
use super::tx::Sender;
use crate::sys::Guest;

pub(super) const READABLE: Interest = Interest {
    readable: true,
    writable: false,
};
const NOTHING: Interest = Interest {
    readable: false,
    writable: false,
};

/// How many times frames are sent before an answer is expected again, after there was none.
const DOUBT: u8 = 64;

/// A pair of queues.
pub(super) struct Pair<M: GuestAddressSpace> {
    pub(super) link: Box<dyn Link>,
    /// The tokens of the link's sources.
    token: u32,
    alarm: u32,
    pub(super) rx: Receiver<M>,
    pub(super) tx: Sender,
    /// What the link is watched for.
    watched: Interest,
    is_alarm_watched: bool,
    /// How many times frames are sent before an answer is expected.
    doubt: u8,
}

impl<M: GuestAddressSpace> Pair<M> {
    pub(super) fn new(link: Box<dyn Link>, [token, alarm]: [u32; 2]) -> Self {
        Pair {
            link,
            token,
            alarm,
            rx: Receiver::new(),
            tx: Sender::default(),
            watched: NOTHING,
            is_alarm_watched: false,
            doubt: 0,
        }
    }

    /// The driver may have made chains of one of the queues available.
    pub(super) const fn kick(&mut self, is_rx: bool) {
        if is_rx {
            self.rx.due = true;
        } else {
            self.tx.due = true;
        }
    }

    /// The link is ready for what it is watched for.
    pub(super) const fn ready(&mut self) {
        self.rx.due |= self.rx.wants;
        self.tx.due |= self.tx.blocked;
    }

    /// Whether the link can be written, or fails in another way by now.
    pub(super) fn is_writable(&self) -> bool {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut source = [PollFd::from_borrowed_fd(self.link.source(), PollFlags::OUT)];
        poll(&mut source, Some(&now)).is_ok_and(|ready| ready != 0)
    }

    /// Whether to look for an answer to frames that were just sent. The host's answers are there at once, and to find
    /// them saves a wake-up. Others take longer; then it isn't worth looking each time.
    pub(super) const fn expects_answer(&mut self) -> bool {
        if !std::mem::replace(&mut self.tx.sent, false) || !self.rx.wants {
            return false;
        }
        if self.doubt != 0 {
            self.doubt -= 1;
            return false;
        }
        self.rx.due = true;
        true
    }

    /// Learns whether there was an answer. Where a limit forbade to look, nothing is learned.
    pub(super) const fn learn(&mut self, answered: bool) {
        if !answered && !self.rx.throttled {
            self.doubt = DOUBT;
        }
    }

    pub(super) const fn is_due(&self) -> bool {
        self.rx.due || self.tx.due
    }

    /// Receives frames, if there may be some, and interrupts the driver.
    pub(super) fn receive(
        &mut self,
        active: &mut Active<M>,
        index: usize,
        guest: &Guest<'_, M::T>,
        is_up: bool,
        means: &mut Means<'_>,
    ) -> Result<Turn, Broken> {
        let number = 2 * index;
        let is_due = std::mem::take(&mut self.rx.due);
        let Some(queue) = queue(&mut active.queues, number) else {
            return Ok(Turn::Rest);
        };
        if !is_due || !is_up {
            return Ok(Turn::Rest);
        }
        let turn = self.rx.serve(&mut *self.link, queue, guest, means)?;
        self.rx.due = matches!(turn, Turn::More);
        if queue.needs_interrupt(guest.view())? {
            active.interrupt.queue(number as u16);
        }
        Ok(turn)
    }

    /// Sends frames, if there may be some, and interrupts the driver.
    pub(super) fn send(
        &mut self,
        active: &mut Active<M>,
        index: usize,
        guest: &Guest<'_, M::T>,
        is_up: bool,
        means: &mut Means<'_>,
    ) -> Result<Turn, Broken> {
        let number = 2 * index + 1;
        let is_due = std::mem::take(&mut self.tx.due);
        let Some(queue) = queue(&mut active.queues, number) else {
            return Ok(Turn::Rest);
        };
        if !is_due {
            return Ok(Turn::Rest);
        }
        let link: Option<&mut dyn Link> = if is_up { Some(&mut *self.link) } else { None };
        let turn = self.tx.serve(link, queue, guest.view(), means)?;
        // After a failure the other frames are dropped.
        self.tx.due = !matches!(turn, Turn::Rest);
        if queue.needs_interrupt(guest.view())? {
            active.interrupt.queue(number as u16);
        }
        Ok(turn)
    }

    /// Watches the link for what the pair waits for. A link that is down is writable when it is up again.
    pub(super) fn watch(&mut self, io: &mut Io<'_>, state: State) -> io::Result<()> {
        let wanted = Interest {
            readable: self.rx.wants && state == State::Up,
            writable: self.tx.blocked && state == State::Up || state == State::Down,
        };
        self.watch_alarm(io, wanted.readable)?;
        if wanted == self.watched {
            return Ok(());
        }
        if wanted == NOTHING {
            self.unwatch(io);
            return Ok(());
        }
        io.watch(self.link.source(), self.token, wanted)?;
        self.watched = wanted;
        Ok(())
    }

    /// Watches the link's second source, if it has one, or no longer.
    fn watch_alarm(&mut self, io: &mut Io<'_>, wanted: bool) -> io::Result<()> {
        match self.link.alarm() {
            Some(alarm) if wanted != self.is_alarm_watched => {
                self.is_alarm_watched = wanted;
                match wanted {
                    true => io.watch(alarm, self.alarm, READABLE),
                    false => io.unwatch(alarm, self.alarm),
                }
            }
            _ => Ok(()),
        }
    }

    pub(super) fn unwatch(&mut self, io: &mut Io<'_>) {
        if std::mem::replace(&mut self.watched, NOTHING) != NOTHING {
            let _ = io.unwatch(self.link.source(), self.token);
        }
        let _ = self.watch_alarm(io, false);
    }

    /// Puts all buffers back, and stops watching the link.
    pub(super) fn stop(
        &mut self,
        io: &mut Io<'_>,
        index: usize,
        queues: Option<&mut Vec<Option<Virtq>>>,
    ) {
        let queue = queues.and_then(|queues| queue(queues, 2 * index));
        self.rx.release(queue);
        self.tx = Sender::default();
        self.unwatch(io);
    }
}

fn queue(queues: &mut [Option<Virtq>], number: usize) -> Option<&mut Virtq> {
    queues.get_mut(number)?.as_mut()
}
