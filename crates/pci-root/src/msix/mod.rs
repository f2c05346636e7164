// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! MSI-X (PCI Local Bus Specification 3.0, section 6.8.2): the table, the pending bits, and when a message is sent.

mod state;
mod table;

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::sync::lock;

pub use state::{MsixState, MsixStateError, VectorState};
use table::Table;

/// Bytes of a table entry.
pub const ENTRY_SIZE: u64 = 16;
/// The most vectors that a function may have.
pub const MAX_VECTORS: u16 = 2048;

/// MSI-X is on: bit 15 of Message Control, here in its upper byte.
const ENABLE: u8 = 1 << 7;
/// All vectors are masked: bit 14 of Message Control, here in its upper byte.
const FUNCTION_MASK: u8 = 1 << 6;

/// An interrupt as a memory write. On x86 the address names the CPUs and the data the vector (Intel SDM, volume 3,
/// section 12.11). The guest chose both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Message {
    /// Where the device writes.
    pub address: u64,
    /// What it writes.
    pub data: u32,
}

/// Who takes messages: on KVM, `KVM_SIGNAL_MSI`.
///
/// Both methods are called with the table's lock held, so that a mask or a move can't overtake a message. They must
/// not call into the [`Msix`] that called them, and must not wait for a thread that might.
pub trait MsiSink: Send + Sync {
    /// Delivers a message. A guest can have put anything into it, so what can't be delivered is dropped.
    fn send(&self, message: Message);

    /// A vector has another message from now on, or none while it is masked. Implement this if the kernel or another process
    /// raises vectors, for example by an irqfd, whose route has to follow.
    fn changed(&self, vector: u16, message: Option<Message>) {
        let _ = (vector, message);
    }
}

/// What became of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fired {
    /// The message was sent.
    Sent,
    /// The vector is masked. It is pending, and its message is sent when the guest unmasks it.
    Pending,
    /// MSI-X is off, or there is no such vector.
    Dropped,
}

/// A number of vectors that no function can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a function can't have {0} MSI-X vectors: give it 1 to {MAX_VECTORS}")]
pub struct VectorCountError(
    /// How many were asked for.
    pub u16,
);

/// The MSI-X vectors of one function.
///
/// The device fires them from any thread; the guest masks and moves them from its vCPUs. There is one lock. No other
/// lock of this crate is taken under it.
///
/// # Example
/// ```
/// use std::sync::{Arc, Mutex};
/// use pci_root::{Fired, Message, MsiSink, Msix};
///
/// #[derive(Default)]
/// struct Sent(Mutex<Vec<Message>>);
/// impl MsiSink for Sent {
///     fn send(&self, message: Message) {
///         self.0.lock().unwrap().push(message);
///     }
/// }
///
/// let sent = Arc::new(Sent::default());
/// let msix = Msix::new(2, sent.clone())?;
/// assert_eq!(msix.fire(1), Fired::Dropped); // MSI-X is off.
///
/// msix.write_control(0x80);                 // The guest switches it on,
/// assert_eq!(msix.fire(1), Fired::Pending);
/// msix.write_table(16, &0xfee0_0000u64.to_le_bytes());
/// msix.write_table(24, &0x31u64.to_le_bytes()); // and writes the data and unmasks vector 1.
/// assert_eq!(*sent.0.lock().unwrap(), [Message { address: 0xfee0_0000, data: 0x31 }]);
/// # Ok::<(), pci_root::VectorCountError>(())
/// ```
pub struct Msix {
    table: Mutex<Table>,
    vectors: u16,
    sink: Arc<dyn MsiSink>,
}

impl fmt::Debug for Msix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vectors = self.vectors;
        f.debug_struct("Msix")
            .field("vectors", &vectors)
            .finish_non_exhaustive()
    }
}

impl Msix {
    /// So many vectors, all masked, with MSI-X off.
    ///
    /// # Errors
    /// There are none, or more than [`MAX_VECTORS`].
    pub fn new(vectors: u16, sink: Arc<dyn MsiSink>) -> Result<Self, VectorCountError> {
        if !(1..=MAX_VECTORS).contains(&vectors) {
            return Err(VectorCountError(vectors));
        }
        let table = Mutex::new(Table::new(vectors));
        Ok(Msix {
            table,
            vectors,
            sink,
        })
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        self.vectors
    }

    /// Bytes of the table.
    pub fn table_size(&self) -> u64 {
        u64::from(self.vectors) * ENTRY_SIZE
    }

    /// Bytes of the pending bits: 8 for each 64 vectors.
    pub fn pba_size(&self) -> u64 {
        u64::from(self.vectors).div_ceil(64) * 8
    }

    /// Raises a vector.
    pub fn fire(&self, vector: u16) -> Fired {
        lock(&self.table).fire(vector, &*self.sink)
    }

    /// The message that a vector has now; `None` if it is masked, or if MSI-X is off.
    pub fn message(&self, vector: u16) -> Option<Message> {
        lock(&self.table).message(vector)
    }

    /// The upper byte of Message Control: bit 7 is MSI-X Enable, bit 6 Function Mask.
    pub fn control(&self) -> u8 {
        lock(&self.table).control()
    }

    /// The guest writes the upper byte of Message Control. MSI-X that goes off forgets what was pending.
    pub fn write_control(&self, value: u8) {
        lock(&self.table).write_control(value, &*self.sink);
    }

    /// Reads from the table, at any width. What is beyond its end reads as zeros.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        lock(&self.table).read(offset, data);
    }

    /// Writes into the table, at any width, byte by byte. Reserved bits stay zero; what is beyond the end is dropped.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        lock(&self.table).write(offset, data, &*self.sink);
    }

    /// Reads from the pending bits, at any width. What is beyond their end reads as zeros.
    pub fn read_pba(&self, offset: u64, data: &mut [u8]) {
        lock(&self.table).read_pba(offset, data);
    }

    /// All of it as plain data.
    pub fn save(&self) -> MsixState {
        lock(&self.table).save()
    }

    /// Whether a state fits.
    ///
    /// # Errors
    /// See [`MsixStateError`].
    pub fn check(&self, state: &MsixState) -> Result<(), MsixStateError> {
        state.check(self.vectors)
    }

    /// Takes a state. No message is sent: a state in which one would have to be is refused.
    ///
    /// # Errors
    /// The state doesn't fit; then nothing is changed.
    pub fn restore(&self, state: &MsixState) -> Result<(), MsixStateError> {
        self.check(state)?;
        lock(&self.table).restore(state, &*self.sink);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
