// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Takes requests from the queues.

use virtio_transport::Broken;
use virtio_transport::chain::Chain;
use virtio_transport::device::{Active, Io};
use virtio_transport::memory::View;
use vm_memory::{GuestAddressSpace, GuestMemory};

use super::Balloon;
use crate::balloon::control::{Counts, DONE, STOP};
use crate::balloon::queues::Role;
use crate::balloon::ranges::Ranges;

/// How many requests are taken at once. Their pages are given back together.
const BURST: usize = 32;
/// The most pages of an inflation that are given back, 64 MiB. Linux's requests have 256.
const MOST_PAGES: usize = 1 << 14;
/// A burst ends early if its pages make this many ranges, so that it does not hold the thread for long.
const MOST_RANGES: usize = 4096;
/// Page numbers that are read at once.
const PIECE: usize = 256;

/// What the requests of a burst were.
#[derive(Default)]
struct Seen {
    requests: u64,
    /// Of these, how many were partly or wholly ignored.
    bad: u64,
    /// The driver ended a round of hints.
    has_ended: bool,
}

impl<M: GuestAddressSpace> Balloon<M> {
    /// The queue with this role.
    pub(super) fn number(&self, wanted: Role) -> Option<u16> {
        let number = self.roles.iter().position(|role| *role == Some(wanted));
        number.and_then(|number| u16::try_from(number).ok())
    }

    /// Takes requests of a queue other than that for statistics. Pages are given back before the driver learns that.
    pub(super) fn serve(&mut self, io: &mut Io<'_>, number: u16, role: Role) -> Result<(), Broken> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let Some(Some(queue)) = active.queues.get_mut(usize::from(number)) else {
            return Ok(());
        };
        let memory = active.memory.memory();
        let view = View::new(&*memory);
        // With another value than zero, pages must keep it (5.5.6.7.2).
        let keeps = role == Role::Reports && self.poison != [0; 4];
        let mut hints = Hints {
            command: self.shown.command,
            guest_command: self.control.state().guest_command,
        };
        let (mut seen, mut done) = (Seen::default(), Vec::with_capacity(BURST));
        let mut has_more = true;
        while done.len() < BURST && self.ranges.len() < MOST_RANGES {
            if queue.pop(&view, &mut self.chain)? {
                done.push((self.chain.head(), 0));
                let is_good = match role {
                    Role::Inflate => inflate(&view, &self.chain, &mut self.ranges),
                    Role::Reports if !keeps => report(&self.chain, &mut self.ranges),
                    Role::Hints => hints.take(&view, &self.chain, &mut self.ranges, &mut seen),
                    _ => true,
                };
                seen.bad += u64::from(!is_good);
            } else if !queue.enable_kicks(&view)? {
                has_more = false;
                break;
            }
        }
        seen.requests = done.len() as u64;
        let given = match self.ranges.len() {
            0 => 0,
            _ => self.host.give_back(&memory, &self.ranges.take()),
        };
        queue.push_all(&view, &done)?;
        if has_more {
            io.again();
        }
        if queue.needs_interrupt(&view)? {
            active.interrupt.queue(number);
        }
        self.counters.counts().count(role, &seen, given);
        let mut state = self.control.state();
        if role == Role::Hints {
            state.guest_command = hints.guest_command;
        }
        let ends = seen.has_ended && state.acknowledges && state.command == self.shown.command;
        if ends && state.command > DONE {
            state.command = DONE;
            self.shown.command = DONE;
            io.config_changed();
        }
        Ok(())
    }

    /// Takes statistics, and keeps their buffer for the next request.
    pub(super) fn hear(&mut self, number: u16) -> Result<(), Broken> {
        let (Some(Active { memory, queues, .. }), None) = (&mut self.active, self.held) else {
            return Ok(());
        };
        let Some(Some(queue)) = queues.get_mut(usize::from(number)) else {
            return Ok(());
        };
        let memory = memory.memory();
        let view = View::new(&*memory);
        while !queue.pop(&view, &mut self.chain)? {
            if !queue.enable_kicks(&view)? {
                return Ok(());
            }
        }
        self.held = Some(self.chain.head());
        let stats = &mut self.control.state().stats;
        let is_whole = stats.read(&mut self.chain.reader(&view));
        let mut counts = self.counters.counts();
        counts.stats += 1;
        counts.bad_stats += u64::from(!is_whole);
        Ok(())
    }

    /// Asks for new statistics, if the driver has given a buffer for that, and waits for the next time.
    pub(super) fn ask(&mut self) -> Result<(), Broken> {
        // The host does not refuse a timer that exists. If it did, the next command would set it again.
        let _ = self.wait();
        let number = self.number(Role::Stats);
        let (Some(active), Some(number)) = (&mut self.active, number) else {
            return Ok(());
        };
        let (Some(Some(queue)), Some(head)) =
            (active.queues.get_mut(usize::from(number)), self.held.take())
        else {
            return Ok(());
        };
        let memory = active.memory.memory();
        let view = View::new(&*memory);
        queue.push(&view, head, 0)?;
        if queue.needs_interrupt(&view)? {
            active.interrupt.queue(number);
        }
        // A driver that breaks the rules has another one there.
        self.hear(number)
    }
}

impl Counts {
    /// Counts a burst.
    fn count(&mut self, role: Role, seen: &Seen, given: u64) {
        let counts = self;
        let (requests, bytes, bad) = match role {
            Role::Inflate => (
                &mut counts.inflations,
                &mut counts.inflated,
                &mut counts.bad_inflations,
            ),
            Role::Reports => (
                &mut counts.reports,
                &mut counts.reported,
                &mut counts.bad_reports,
            ),
            Role::Hints => (&mut counts.hints, &mut counts.hinted, &mut counts.bad_hints),
            Role::Deflate | Role::Stats => {
                counts.deflations += seen.requests;
                return;
            }
        };
        *requests += seen.requests;
        *bytes += given;
        *bad += seen.bad;
    }
}

/// Takes the page numbers of an inflation. Returns whether all of it could be taken.
fn inflate<M: GuestMemory>(view: &View<'_, M>, chain: &Chain, ranges: &mut Ranges) -> bool {
    let mut reader = chain.reader(view);
    let mut bytes = [0; 4 * PIECE];
    let mut left = MOST_PAGES;
    while left > 0 {
        let count = (reader.left() / 4).min(PIECE.min(left) as u64) as usize;
        if count == 0 {
            break;
        }
        let bytes = &mut bytes[..4 * count];
        if reader.read(bytes).is_err() {
            return false;
        }
        for number in bytes.as_chunks().0 {
            ranges.add_page(u32::from_le_bytes(*number));
        }
        left -= count;
    }
    left < MOST_PAGES && reader.left() == 0
}

/// Takes free pages: the buffers that the device could write.
fn report(chain: &Chain, ranges: &mut Ranges) -> bool {
    let buffers = chain.writable();
    buffers.iter().for_each(|buffer| ranges.add_buffer(buffer));
    !buffers.is_empty() && chain.readable().is_empty()
}

/// The commands of a round of hints.
struct Hints {
    /// The one that the driver can see.
    command: u32,
    /// The last one that it repeated.
    guest_command: Option<u32>,
}

impl Hints {
    /// Takes a command, or pages of the round that the driver's last command names.
    fn take<M: GuestMemory>(
        &mut self,
        view: &View<'_, M>,
        chain: &Chain,
        ranges: &mut Ranges,
        seen: &mut Seen,
    ) -> bool {
        let mut is_good = true;
        if !chain.readable().is_empty() {
            let command = chain.reader(view).read_obj::<u32>().map(u32::from_le);
            is_good = command.is_ok() && chain.readable_len() == 4;
            if let Ok(command) = command {
                seen.has_ended = command == STOP && self.guest_command == Some(self.command);
                self.guest_command = Some(command);
            }
        }
        let is_current = self.guest_command == Some(self.command) && self.command > DONE;
        if is_current {
            return report(chain, ranges) || is_good && !chain.readable().is_empty();
        }
        is_good && chain.writable().is_empty()
    }
}
