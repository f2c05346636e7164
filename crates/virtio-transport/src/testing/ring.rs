// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The driver's side of a queue.

use vm_memory::{Bytes, GuestAddress};

use crate::queue::{Position, QueueState};

use super::Memory;

/// The flags of a descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u16);

impl Flags {
    /// Another descriptor follows.
    pub const NEXT: Flags = Flags(1);
    /// The device writes the buffer.
    pub const WRITE: Flags = Flags(2);
    /// The buffer is a table of descriptors.
    pub const INDIRECT: Flags = Flags(4);

    /// Combines two flags.
    #[must_use]
    pub const fn and(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

/// A request's buffers, as address and length: those that the device reads, then those that it writes.
#[derive(Clone, Debug, Default)]
pub struct Buffers {
    /// The buffers that the device reads.
    pub readable: Vec<(u64, u32)>,
    /// The buffers that the device writes.
    pub writable: Vec<(u64, u32)>,
}

/// A chain that the device returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Its first descriptor.
    pub head: u32,
    /// The number of bytes that the device wrote.
    pub len: u32,
}

/// The driver's side of a queue: complete requests for a well-behaved driver, and single fields for others.
#[derive(Clone, Debug)]
pub struct DriverRing {
    memory: Memory,
    state: QueueState,
    free: Vec<u16>,
    available: u16,
    used: u16,
}

impl DriverRing {
    /// The number of bytes of a queue with `size` entries.
    pub const fn bytes(size: u16) -> u64 {
        let size = size as u64;
        (16 * size + 6 + 2 * size + 6 + 8 * size + 4095) & !4095
    }

    /// An empty queue at `base`, which must be a multiple of 16.
    ///
    /// # Panics
    /// If it is not in guest memory.
    pub fn new(memory: &Memory, base: u64, size: u16) -> Self {
        let available = base + 16 * u64::from(size);
        let used = (available + 6 + 2 * u64::from(size) + 3) & !3;
        let zeros = vec![0; (used + 6 + 8 * u64::from(size) - base) as usize];
        memory
            .write_slice(&zeros, GuestAddress(base))
            .expect("a ring in guest memory");
        DriverRing {
            memory: memory.clone(),
            state: QueueState {
                size,
                descriptors: base,
                available,
                used,
                position: Position::default(),
            },
            free: (0..size).rev().collect(),
            available: 0,
            used: 0,
        }
    }

    /// Its parameters, at the first position.
    pub const fn state(&self) -> QueueState {
        self.state
    }

    /// The same ring in a copy of guest memory.
    pub fn move_to(&mut self, memory: &Memory) {
        self.memory = memory.clone();
    }

    fn put<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.memory
            .write_obj(value, GuestAddress(address))
            .expect("a ring in guest memory");
    }

    fn get(&self, address: u64) -> u16 {
        self.memory
            .read_obj(GuestAddress(address))
            .expect("a ring in guest memory")
    }

    /// Writes a descriptor at any address.
    ///
    /// # Panics
    /// If it is not in guest memory.
    pub fn descriptor_at(&self, at: u64, (address, len): (u64, u32), flags: Flags, next: u16) {
        self.put(at, address);
        self.put(at + 8, len);
        self.put(at + 12, flags.0);
        self.put(at + 14, next);
    }

    /// Writes a descriptor of the queue's table.
    ///
    /// # Panics
    /// If it is not in guest memory.
    pub fn descriptor(&self, index: u16, buffer: (u64, u32), flags: Flags, next: u16) {
        let at = self.state.descriptors + 16 * u64::from(index);
        self.descriptor_at(at, buffer, flags, next);
    }

    /// Makes a chain available, valid or not.
    ///
    /// # Panics
    /// If the ring is not in guest memory.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available % self.state.size);
        self.put(self.state.available + 4 + 2 * slot, head);
        self.set_available(self.available.wrapping_add(1));
    }

    /// Writes the available ring's index.
    ///
    /// # Panics
    /// If the ring is not in guest memory.
    pub fn set_available(&mut self, index: u16) {
        self.available = index;
        self.put(self.state.available + 2, index);
    }

    /// The available ring's index.
    pub const fn available(&self) -> u16 {
        self.available
    }

    /// Makes a request available with descriptors of the queue, and returns its head.
    ///
    /// # Panics
    /// If too few descriptors are free, or `buffers` is empty.
    pub fn send(&mut self, buffers: &Buffers) -> u16 {
        let list = list(buffers);
        let at = self.free.len() - list.len();
        let indices = self.free.split_off(at);
        for (i, (buffer, flags)) in list.iter().enumerate() {
            let next = indices.get(i + 1);
            let flags = next.map_or(*flags, |_| flags.and(Flags::NEXT));
            self.descriptor(indices[i], *buffer, flags, next.copied().unwrap_or(0));
        }
        self.offer(indices[0]);
        indices[0]
    }

    /// Makes a request available with an indirect table at `table`, and returns its head.
    ///
    /// # Panics
    /// If no descriptor is free, or `buffers` is empty.
    pub fn send_indirect(&mut self, table: u64, buffers: &Buffers) -> u16 {
        let list = list(buffers);
        for (i, (buffer, flags)) in (0..).zip(&list) {
            let last = usize::from(i) + 1 == list.len();
            let flags = if last { *flags } else { flags.and(Flags::NEXT) };
            let at = table + 16 * u64::from(i);
            self.descriptor_at(at, *buffer, flags, i + 1);
        }
        let head = self.free.pop().expect("a free descriptor");
        let len = 16 * list.len() as u32;
        self.descriptor(head, (table, len), Flags::INDIRECT, 0);
        self.offer(head);
        head
    }

    /// Takes the next returned chain, and frees its descriptors.
    ///
    /// # Panics
    /// If the ring is not in guest memory.
    pub fn take(&mut self) -> Option<Used> {
        if self.get(self.state.used + 2) == self.used {
            return None;
        }
        let slot = u64::from(self.used % self.state.size);
        let at = GuestAddress(self.state.used + 4 + 8 * slot);
        let [head, len]: [u32; 2] = self.memory.read_obj(at).expect("a ring in guest memory");
        self.used = self.used.wrapping_add(1);
        let mut index = head as u16;
        for _ in 0..self.state.size {
            self.free.push(index);
            let at = self.state.descriptors + 16 * u64::from(index);
            if self.get(at + 12) & Flags::NEXT.0 == 0 {
                break;
            }
            index = self.get(at + 14);
        }
        Some(Used { head, len })
    }

    /// The device's request not to be notified: the flags of the used ring.
    ///
    /// # Panics
    /// If the ring is not in guest memory.
    pub fn used_flags(&self) -> u16 {
        self.get(self.state.used)
    }

    /// The entry after which the device wants a notification (`VIRTIO_F_EVENT_IDX`).
    ///
    /// # Panics
    /// If the ring is not in guest memory.
    pub fn available_event(&self) -> u16 {
        self.get(self.state.used + 4 + 8 * u64::from(self.state.size))
    }

    /// Sets the entry after which the driver wants an interrupt (`VIRTIO_F_EVENT_IDX`).
    ///
    /// # Panics
    /// If the ring is not in guest memory.
    pub fn set_used_event(&self, index: u16) {
        self.put(
            self.state.available + 4 + 2 * u64::from(self.state.size),
            index,
        );
    }

    /// Sets the flag of the available ring that disables interrupts.
    ///
    /// # Panics
    /// If the ring is not in guest memory.
    pub fn set_no_interrupt(&self, none: bool) {
        self.put(self.state.available, u16::from(none));
    }
}

/// A request's buffers with their flags.
fn list(buffers: &Buffers) -> Vec<((u64, u32), Flags)> {
    let readable = buffers.readable.iter().map(|b| (*b, Flags::default()));
    let writable = buffers.writable.iter().map(|b| (*b, Flags::WRITE));
    readable.chain(writable).collect()
}
