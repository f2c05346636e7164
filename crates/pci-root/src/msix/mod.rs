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

/// An interrupt as a memory write. On x86 the address selects the CPUs and the data the vector (Intel SDM, volume 3,
/// section 12.11). The guest chooses both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Message {
    /// The address of the write.
    pub address: u64,
    /// The data of the write.
    pub data: u32,
}

/// Delivers messages: on KVM, `KVM_SIGNAL_MSI`.
///
/// Both methods are called with the table's lock held, so that a mask or a move can't overtake a message. They must
/// not call into the [`Msix`] that called them, and must not wait for a thread that might.
pub trait MsiSink: Send + Sync {
    /// Delivers a message. Its contents come from the guest, so drop what can't be delivered.
    fn send(&self, message: Message);

    /// A vector's message has changed, or is `None` while it is masked. Implement this if the kernel or another process
    /// raises vectors, for example by an irqfd, whose route must follow.
    fn changed(&self, vector: u16, message: Option<Message>) {
        let _ = (vector, message);
    }
}

/// The result of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fired {
    /// The message was sent.
    Sent,
    /// The vector is masked. It is pending, and its message is sent when the guest unmasks it.
    Pending,
    /// MSI-X is off, or there is no such vector.
    Dropped,
}

/// An invalid number of vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a function can't have {0} MSI-X vectors: give it 1 to {MAX_VECTORS}")]
pub struct VectorCountError(
    /// The number.
    pub u16,
);

/// The MSI-X vectors of one function.
///
/// The device fires them from any thread; the guest masks and changes them from its vCPUs. There is one lock, under
/// which no other lock of this crate is taken.
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
    /// `vectors` vectors, all masked, with MSI-X off.
    ///
    /// # Errors
    /// The number is 0 or more than [`MAX_VECTORS`].
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

    /// The number of vectors.
    pub fn vectors(&self) -> u16 {
        self.vectors
    }

    /// The size of the table in bytes.
    pub fn table_size(&self) -> u64 {
        u64::from(self.vectors) * ENTRY_SIZE
    }

    /// The size of the pending bits in bytes: 8 for each 64 vectors.
    pub fn pba_size(&self) -> u64 {
        u64::from(self.vectors).div_ceil(64) * 8
    }

    /// Raises a vector.
    pub fn fire(&self, vector: u16) -> Fired {
        lock(&self.table).fire(vector, &*self.sink)
    }

    /// A vector's current message; `None` if it is masked, or if MSI-X is off.
    pub fn message(&self, vector: u16) -> Option<Message> {
        lock(&self.table).message(vector)
    }

    /// The upper byte of Message Control: bit 7 is MSI-X Enable, bit 6 Function Mask.
    pub fn control(&self) -> u8 {
        lock(&self.table).control()
    }

    /// The guest writes the upper byte of Message Control. Disabling MSI-X clears the pending bits.
    pub fn write_control(&self, value: u8) {
        lock(&self.table).write_control(value, &*self.sink);
    }

    /// Reads from the table, with any width. Beyond its end there are zeros.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        lock(&self.table).read(offset, data);
    }

    /// Writes to the table, with any width, byte by byte. Reserved bits stay zero. Bytes beyond the end are dropped.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        lock(&self.table).write(offset, data, &*self.sink);
    }

    /// Reads from the pending bits, with any width. Beyond their end there are zeros.
    pub fn read_pba(&self, offset: u64, data: &mut [u8]) {
        lock(&self.table).read_pba(offset, data);
    }

    /// The state as plain data.
    pub fn save(&self) -> MsixState {
        lock(&self.table).save()
    }

    /// Checks that a state fits.
    ///
    /// # Errors
    /// See [`MsixStateError`].
    pub fn check(&self, state: &MsixState) -> Result<(), MsixStateError> {
        state.check(self.vectors)
    }

    /// Restores a state. Sends no message: a state that would require one is refused.
    ///
    /// # Errors
    /// The state doesn't fit; nothing has changed then.
    pub fn restore(&self, state: &MsixState) -> Result<(), MsixStateError> {
        self.check(state)?;
        lock(&self.table).restore(state, &*self.sink);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
