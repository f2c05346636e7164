// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The table, without its lock.

use super::state::{MsixState, VectorState};
use super::{ENABLE, ENTRY_SIZE, FUNCTION_MASK, Fired, Message, MsiSink};

/// The bits of an entry that the guest may write: the address without its two lowest bits, the data, and the mask bit.
const WRITABLE: [u8; ENTRY_SIZE as usize] = [
    0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0,
];
/// The byte of an entry that has the mask bit.
const VECTOR_CONTROL: usize = 12;
/// The mask bit.
const MASKED: u8 = 1;

type Entry = [u8; ENTRY_SIZE as usize];

/// Takes a little-endian number of `N` bytes at `at`.
fn bytes<const N: usize>(entry: &Entry, at: usize) -> [u8; N] {
    std::array::from_fn(|i| entry[at + i])
}

pub(super) struct Table {
    entries: Box<[Entry]>,
    /// A bit for each vector, as the guest reads them.
    pending: Box<[u64]>,
    control: u8,
}

impl Table {
    /// All vectors masked, MSI-X off.
    pub fn new(vectors: u16) -> Self {
        let mut entry = [0; ENTRY_SIZE as usize];
        entry[VECTOR_CONTROL] = MASKED;
        let vectors = usize::from(vectors);
        Table {
            entries: vec![entry; vectors].into(),
            pending: vec![0; vectors.div_ceil(64)].into(),
            control: 0,
        }
    }

    pub fn control(&self) -> u8 {
        self.control
    }

    fn is_enabled(&self) -> bool {
        self.control & ENABLE != 0
    }

    /// The message of an unmasked vector.
    pub fn message(&self, vector: u16) -> Option<Message> {
        let entry = self.entries.get(usize::from(vector))?;
        let open = self.control & (ENABLE | FUNCTION_MASK) == ENABLE;
        (open && entry[VECTOR_CONTROL] & MASKED == 0).then(|| Message {
            address: u64::from_le_bytes(bytes(entry, 0)),
            data: u32::from_le_bytes(bytes(entry, 8)),
        })
    }

    pub fn fire(&mut self, vector: u16, sink: &dyn MsiSink) -> Fired {
        if !self.is_enabled() || usize::from(vector) >= self.entries.len() {
            return Fired::Dropped;
        }
        match self.message(vector) {
            Some(message) => {
                sink.send(message);
                Fired::Sent
            }
            None => {
                self.set_pending(vector, true);
                Fired::Pending
            }
        }
    }

    fn is_pending(&self, vector: u16) -> bool {
        let word = self.pending.get(usize::from(vector / 64));
        word.is_some_and(|word| word >> (vector % 64) & 1 != 0)
    }

    fn set_pending(&mut self, vector: u16, pending: bool) {
        if let Some(word) = self.pending.get_mut(usize::from(vector / 64)) {
            let bit = 1 << (vector % 64);
            *word = if pending { *word | bit } else { *word & !bit };
        }
    }

    /// Reports a vector to the sink if its message differs from `before`, and sends it if it is pending.
    fn settle(&mut self, vector: u16, before: Option<Message>, sink: &dyn MsiSink) {
        let message = self.message(vector);
        if message != before {
            sink.changed(vector, message);
        }
        if let Some(message) = message
            && self.is_pending(vector)
        {
            self.set_pending(vector, false);
            sink.send(message);
        }
    }

    pub fn write_control(&mut self, value: u8, sink: &dyn MsiSink) {
        let (before, after) = (self.control, value & (ENABLE | FUNCTION_MASK));
        if before == after {
            return;
        }
        for vector in (0..).take(self.entries.len()) {
            self.control = before;
            let message = self.message(vector);
            self.control = after;
            self.settle(vector, message, sink);
        }
        if !self.is_enabled() {
            self.pending.fill(0);
        }
    }

    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let table = self.entries.as_flattened();
        read(|at| table.get(at).copied(), offset, data);
    }

    pub fn write(&mut self, offset: u64, data: &[u8], sink: &dyn MsiSink) {
        let size = self.entries.as_flattened().len();
        let Some(mut at) = usize::try_from(offset).ok().filter(|at| *at < size) else {
            return;
        };
        let mut data = &data[..data.len().min(size - at)];
        while !data.is_empty() {
            // The bytes of an access that belong to one entry change at once.
            let (vector, start) = (at / WRITABLE.len(), at % WRITABLE.len());
            let (here, rest) = data.split_at(data.len().min(WRITABLE.len() - start));
            let number = vector as u16;
            let before = self.message(number);
            let entry = self.entries[vector][start..].iter_mut();
            for ((byte, mask), value) in entry.zip(&WRITABLE[start..]).zip(here) {
                *byte = *byte & !mask | value & mask;
            }
            self.settle(number, before, sink);
            (at, data) = (at + here.len(), rest);
        }
    }

    pub fn read_pba(&self, offset: u64, data: &mut [u8]) {
        let byte = |at: usize| Some(self.pending.get(at / 8)?.to_le_bytes()[at % 8]);
        read(byte, offset, data);
    }

    pub fn save(&self) -> MsixState {
        let vectors = (0..).zip(&self.entries).map(|(vector, entry)| VectorState {
            address: u64::from_le_bytes(bytes(entry, 0)),
            data: u32::from_le_bytes(bytes(entry, 8)),
            masked: entry[VECTOR_CONTROL] & MASKED != 0,
            pending: self.is_pending(vector),
        });
        MsixState {
            enabled: self.is_enabled(),
            function_masked: self.control & FUNCTION_MASK != 0,
            vectors: vectors.collect(),
        }
    }

    /// Restores a state that was checked.
    pub fn restore(&mut self, state: &MsixState, sink: &dyn MsiSink) {
        let before: Vec<_> = (0..)
            .take(self.entries.len())
            .map(|vector| self.message(vector))
            .collect();
        let MsixState {
            enabled,
            function_masked,
            vectors,
        } = state;
        self.control = if *enabled { ENABLE } else { 0 };
        self.control |= if *function_masked { FUNCTION_MASK } else { 0 };
        for ((vector, saved), before) in (0..).zip(vectors).zip(before) {
            let VectorState {
                address,
                data,
                masked,
                pending,
            } = *saved;
            let entry = &mut self.entries[usize::from(vector)];
            entry[..8].copy_from_slice(&address.to_le_bytes());
            entry[8..VECTOR_CONTROL].copy_from_slice(&data.to_le_bytes());
            entry[VECTOR_CONTROL] = u8::from(masked);
            self.set_pending(vector, pending);
            self.settle(vector, before, sink);
        }
    }
}

/// Fills `data` with the bytes from `offset` on, and with zeros where there are none.
fn read(byte: impl Fn(usize) -> Option<u8>, offset: u64, data: &mut [u8]) {
    for (i, place) in (0..).zip(data) {
        let at = offset
            .checked_add(i)
            .and_then(|at| usize::try_from(at).ok());
        *place = at.and_then(&byte).unwrap_or(0);
    }
}
