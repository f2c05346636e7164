// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Makes flushes wait for earlier writes.

use std::collections::VecDeque;

/// Counts writes in flight, by the flush that closes their epoch. Its size is limited by the requests in flight.
#[derive(Debug, Default)]
pub(super) struct Barrier {
    /// The epoch of the first entry of `epochs`.
    first: u64,
    /// Closed epochs: writes in flight, and the flush that waits for them.
    epochs: VecDeque<(u32, u32)>,
    /// Writes in flight in the open epoch.
    open: u32,
}

impl Barrier {
    /// Starts a write. Returns its epoch.
    pub(super) fn enter(&mut self) -> u64 {
        self.open += 1;
        self.first + self.epochs.len() as u64
    }

    /// Ends a write of this epoch.
    pub(super) fn leave(&mut self, epoch: u64) {
        let at = epoch.saturating_sub(self.first) as usize;
        let count = match self.epochs.get_mut(at) {
            Some((count, _)) => count,
            None => &mut self.open,
        };
        *count = count.saturating_sub(1);
    }

    /// Adds a flush. [`ready`](Self::ready) returns it, now or later.
    pub(super) fn flush(&mut self, token: u32) {
        self.epochs
            .push_back((std::mem::take(&mut self.open), token));
    }

    /// Takes a flush without earlier writes in flight.
    pub(super) fn ready(&mut self) -> Option<u32> {
        if self.epochs.front()?.0 != 0 {
            return None;
        }
        let (_, token) = self.epochs.pop_front()?;
        self.first += 1;
        Some(token)
    }
}
