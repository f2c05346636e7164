// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A running queue, owned by its device.

use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use crate::broken::Broken;
use crate::chain::Chain;
use crate::layout::{EVENT_IDX, INDIRECT_DESC, MAX_QUEUE_SIZE};
use crate::memory::View;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (2.7.6).
const NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY` (2.7.8).
const NO_NOTIFY: u16 = 1;

/// A queue's parameters and position: what a device gets at its start and returns at its stop.
///
/// Plain, untrusted data; [`Virtq::new`] checks it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// The queue size in entries.
    pub size: u16,
    /// The descriptor table's guest-physical address, a multiple of 16.
    pub descriptors: u64,
    /// The available ring's guest-physical address, a multiple of 2.
    pub available: u64,
    /// The used ring's guest-physical address, a multiple of 4.
    pub used: u64,
    /// Its position.
    pub position: Position,
}

/// The position of a queue. Both numbers count from 0 and wrap at 2^16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The next entry of the available ring to take.
    pub next_available: u16,
    /// The next entry of the used ring to fill.
    pub next_used: u16,
}

impl QueueState {
    /// Checks size and alignment. Doesn't check that the rings are in guest memory.
    ///
    /// # Errors
    /// [`QueueError::Size`] or [`QueueError::Alignment`].
    pub const fn check(&self) -> Result<(), QueueError> {
        if !self.size.is_power_of_two() || self.size > MAX_QUEUE_SIZE {
            return Err(QueueError::Size(self.size));
        }
        let misaligned = if self.descriptors & 15 != 0 {
            self.descriptors
        } else if self.available & 1 != 0 {
            self.available
        } else if self.used & 3 != 0 {
            self.used
        } else {
            return Ok(());
        };
        Err(QueueError::Alignment(misaligned))
    }

    /// The rings as addresses and lengths in bytes, with the fields for `VIRTIO_F_EVENT_IDX` (2.7).
    fn rings(&self) -> [(u64, usize, Permissions); 3] {
        let size = usize::from(self.size);
        [
            (self.descriptors, 16 * size, Permissions::Read),
            (self.available, 6 + 2 * size, Permissions::Read),
            (self.used, 6 + 8 * size, Permissions::Write),
        ]
    }
}

/// Why a queue can't run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum QueueError {
    /// Its size is not a power of two up to 32,768.
    #[error("the queue size {0} is not a power of two up to {MAX_QUEUE_SIZE}")]
    Size(u16),
    /// A ring's address is misaligned.
    #[error("the ring at guest address {0:#x} is not aligned")]
    Alignment(u64),
    /// A ring is not in guest memory.
    #[error("the ring of {len} bytes at guest address {address:#x} is not in guest memory")]
    Memory {
        /// The guest-physical address.
        address: u64,
        /// The ring's length in bytes.
        len: usize,
    },
}

/// The queue can't be returned: the device still has requests from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{in_flight} requests are still in flight")]
pub struct NotDrained {
    /// How many requests the device has.
    pub in_flight: u16,
}

/// A running queue: takes chains, returns them, and decides when to notify.
///
/// It belongs to one thread and has no lock. It has its own copy of its parameters, so register writes don't affect it.
/// Each taken head is marked until it is returned. A driver that makes it available again before that is [`Broken`], so
/// a device may use [`Chain::head`] as a key for its requests in flight.
#[derive(Debug)]
pub struct Virtq {
    /// Its parameters, and its current position.
    state: QueueState,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    has_events: bool,
    /// The available ring's index at the last read. Entries before it can be taken without reading it again.
    available: u16,
    /// The used ring's index at the last check of whether the driver wants an interrupt.
    checked: u16,
    /// Indirect tables were negotiated.
    indirect: bool,
    /// A bit for each head that the device has.
    in_flight: Box<[u64]>,
    /// How many of them are set.
    count: u16,
    /// For each head that the device has: the available ring's index at which it was taken.
    taken_at: Box<[u16]>,
}

impl Virtq {
    /// A queue that continues at the position of `state`.
    ///
    /// # Errors
    /// [`QueueError`] if its parameters are invalid in this memory.
    pub fn new<M: GuestMemory>(
        state: &QueueState,
        features: u64,
        memory: &M,
    ) -> Result<Self, QueueError> {
        state.check()?;
        for (address, len, access) in state.rings() {
            if !memory.check_range(GuestAddress(address), len, access) {
                return Err(QueueError::Memory { address, len });
            }
        }
        Ok(Virtq {
            state: *state,
            has_events: features & EVENT_IDX != 0,
            available: state.position.next_available,
            checked: state.position.next_used,
            indirect: features & INDIRECT_DESC != 0,
            in_flight: vec![0; usize::from(state.size).div_ceil(64)].into(),
            count: 0,
            taken_at: vec![0; usize::from(state.size)].into(),
        })
    }

    /// The queue size in entries.
    pub const fn size(&self) -> u16 {
        self.state.size
    }

    /// The number of chains that the device has.
    pub const fn in_flight(&self) -> u16 {
        self.count
    }

    /// Takes the next chain into `chain`. Returns `false` if the driver has made none available.
    ///
    /// # Errors
    /// [`Broken`] if the ring or the chain breaks a rule. Nothing was taken then.
    pub fn pop<M: GuestMemory>(
        &mut self,
        view: &View<'_, M>,
        chain: &mut Chain,
    ) -> Result<bool, Broken> {
        let next = self.state.position.next_available;
        if next == self.available && !self.look(view)? {
            return Ok(false);
        }
        let size = self.state.size;
        let address = self.state.available + 4 + 2 * u64::from(next % size);
        let head = load(view, address, Ordering::Relaxed)?;
        if head >= size {
            return Err(Broken::Index { index: head, size });
        }
        let (word, bit) = place(head);
        if self.in_flight[word] & bit != 0 {
            return Err(Broken::InFlight { head });
        }
        let table = (GuestAddress(self.state.descriptors), size);
        chain.walk(view, table, head, self.indirect)?;
        self.in_flight[word] |= bit;
        self.count += 1;
        self.taken_at[usize::from(head)] = next;
        self.state.position.next_available = next.wrapping_add(1);
        Ok(true)
    }

    /// Reads the available ring's index. Returns whether there is a chain to take.
    fn look<M: GuestMemory>(&mut self, view: &View<'_, M>) -> Result<bool, Broken> {
        let (next, size) = (self.state.position.next_available, self.state.size);
        let index = load(view, self.state.available + 2, Ordering::Acquire)?;
        if index.wrapping_sub(next) > size {
            return Err(Broken::AvailableIndex { index, next, size });
        }
        self.available = index;
        Ok(index != next)
    }

    /// Undoes the last `pop`, so that the next one takes the same chain. Several are undone one after the other, the last
    /// one first. Returns `false` if `head` was not taken last, or is already returned.
    pub fn unpop(&mut self, head: u16) -> bool {
        let before = self.state.position.next_available.wrapping_sub(1);
        let is_last = self.taken_at.get(usize::from(head)) == Some(&before);
        if is_last && self.release(head).is_ok() {
            self.state.position.next_available = before;
            return true;
        }
        false
    }

    /// Returns a chain, with `written` bytes from the start of its writable part.
    ///
    /// # Errors
    /// [`Broken::NotInFlight`] if the device doesn't have it; [`Broken::Memory`].
    pub fn push<M: GuestMemory>(
        &mut self,
        view: &View<'_, M>,
        head: u16,
        written: u32,
    ) -> Result<(), Broken> {
        self.push_all(view, &[(head, written)])
    }

    /// Returns chains, given as heads and numbers of bytes as for [`push`](Self::push). The driver sees all of them at
    /// once.
    ///
    /// # Errors
    /// As for [`push`](Self::push). Then the driver sees none of them, and the queue can't be used any more.
    pub fn push_all<M: GuestMemory>(
        &mut self,
        view: &View<'_, M>,
        chains: &[(u16, u32)],
    ) -> Result<(), Broken> {
        if chains.is_empty() {
            return Ok(());
        }
        let address = self.state.used;
        let broken = Broken::Memory { address };
        for &(head, _) in chains {
            self.release(head)?;
        }
        let next = &mut self.state.position.next_used;
        for &(head, written) in chains {
            let at = address + 4 + 8 * u64::from(*next % self.state.size);
            let entry = [u32::from(head).to_le(), written.to_le()];
            if !view.write(GuestAddress(at), entry) {
                return Err(broken);
            }
            *next = next.wrapping_add(1);
        }
        // This makes all entries visible.
        let next = next.to_le();
        let written = view.store(GuestAddress(address + 2), next, Ordering::Release);
        written.then_some(()).ok_or(broken)
    }

    fn release(&mut self, head: u16) -> Result<(), Broken> {
        let (word, bit) = place(head);
        match self.in_flight.get_mut(word) {
            Some(word) if *word & bit != 0 => *word &= !bit,
            _ => return Err(Broken::NotInFlight { head }),
        }
        self.count -= 1;
        Ok(())
    }

    /// Whether the driver wants an interrupt for the chains returned since the last call. Call it once after a batch,
    /// and then raise the interrupt.
    ///
    /// # Errors
    /// [`Broken::Memory`].
    pub fn needs_interrupt<M: GuestMemory>(&mut self, view: &View<'_, M>) -> Result<bool, Broken> {
        let used = self.state.position.next_used;
        let checked = std::mem::replace(&mut self.checked, used);
        if used == checked {
            return Ok(false);
        }
        // The used index must be visible before what the driver wants is read (2.7.7.2, 2.7.10).
        fence(Ordering::SeqCst);
        let available = self.state.available;
        if self.has_events {
            let size = u64::from(self.state.size);
            let event = load(view, available + 4 + 2 * size, Ordering::Relaxed)?;
            let passed = used.wrapping_sub(event).wrapping_sub(1);
            return Ok(passed < used.wrapping_sub(checked));
        }
        Ok(load(view, available, Ordering::Relaxed)? & NO_INTERRUPT == 0)
    }

    /// Asks the driver to notify the next chain. Returns whether there is one already, for which it doesn't notify.
    ///
    /// # Errors
    /// [`Broken::Memory`].
    pub fn enable_kicks<M: GuestMemory>(&mut self, view: &View<'_, M>) -> Result<bool, Broken> {
        let (position, available) = (self.state.position, self.state.available);
        if self.has_events {
            let event = self.state.used + 4 + 8 * u64::from(self.state.size);
            store(view, event, position.next_available)?;
        } else {
            store(view, self.state.used, 0)?;
        }
        // The driver must see this before the index is read, or it may not notify what it adds now (2.7.10).
        fence(Ordering::SeqCst);
        Ok(load(view, available + 2, Ordering::Relaxed)? != position.next_available)
    }

    /// Asks the driver to notify the next chain, even if there are some that the device leaves there. Returns how many
    /// there are.
    ///
    /// # Errors
    /// [`Broken::Memory`], [`Broken::AvailableIndex`].
    pub fn enable_kicks_behind<M: GuestMemory>(
        &mut self,
        view: &View<'_, M>,
    ) -> Result<u16, Broken> {
        self.look(view)?;
        let (event, value) = match self.has_events {
            true => (4 + 8 * u64::from(self.state.size), self.available),
            false => (0, 0),
        };
        store(view, self.state.used + event, value)?;
        // The driver must see this before the index is read, or it may not notify what it adds now (2.7.10).
        fence(Ordering::SeqCst);
        self.look(view)?;
        Ok((self.available).wrapping_sub(self.state.position.next_available))
    }

    /// Asks the driver not to notify. It may still do so.
    ///
    /// # Errors
    /// [`Broken::Memory`].
    pub fn disable_kicks<M: GuestMemory>(&mut self, view: &View<'_, M>) -> Result<(), Broken> {
        if self.has_events {
            // It notifies the one that `enable_kicks` asked for, and no other.
            return Ok(());
        }
        store(view, self.state.used, NO_NOTIFY)
    }

    /// Its parameters and position.
    ///
    /// # Errors
    /// [`NotDrained`] while the device has chains from it.
    pub fn state(&self) -> Result<QueueState, NotDrained> {
        if self.count != 0 {
            let in_flight = self.count;
            return Err(NotDrained { in_flight });
        }
        Ok(self.state)
    }
}

/// The position of a head's mark.
const fn place(head: u16) -> (usize, u64) {
    (head as usize / 64, 1 << (head % 64))
}

/// Reads two bytes that the driver may change meanwhile.
fn load<M: GuestMemory>(view: &View<'_, M>, address: u64, order: Ordering) -> Result<u16, Broken> {
    let value = view.load(GuestAddress(address), order);
    value.map(u16::from_le).ok_or(Broken::Memory { address })
}

/// Writes two bytes that the driver may read meanwhile.
fn store<M: GuestMemory>(view: &View<'_, M>, address: u64, value: u16) -> Result<(), Broken> {
    let stored = view.store(GuestAddress(address), value.to_le(), Ordering::Relaxed);
    stored.then_some(()).ok_or(Broken::Memory { address })
}
