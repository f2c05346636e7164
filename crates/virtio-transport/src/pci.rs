// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The PCI transport: the virtio part of a modern function (virtio 1.4, section 4.1).
//!
//! The VMM provides configuration space, BARs and MSI-X. It assembles the function from [`Identity`],
//! [`PciTransport::capabilities`], and BAR 0 with space for the MSI-X table. There is no legacy interface and no INTx:
//! without MSI-X an interrupt only sets a bit in the ISR.
//!
//! BAR 0, [`BAR_SIZE`] bytes:
//!
//! | offset | is |
//! |---|---|
//! | [`MSIX_TABLE`] | the VMM's MSI-X table |
//! | [`MSIX_PBA`] | the VMM's MSI-X pending bits |
//! | [`COMMON`] | the common configuration |
//! | [`ISR`] | the interrupt status |
//! | [`DEVICE`] | the device's configuration |
//! | [`NOTIFY`] | 4 bytes per queue, on a page of their own, for ioeventfds |

mod common;
mod interrupt;
mod window;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::device::{Interrupt, RestoreError};
use crate::layout::{Layout, LayoutError};
use crate::message::{Activation, Answer};
use crate::queue::Position;
use crate::registers::{Effect, Notice, Registers, RegistersState};

pub use interrupt::{InterruptState, NO_VECTOR, Vectors};
pub use window::{Capability, WindowState};

use interrupt::PciInterrupt;
use window::Window;

/// The length of BAR 0.
pub const BAR_SIZE: u64 = 0x8000;
/// The offset of the MSI-X table.
pub const MSIX_TABLE: u64 = 0;
/// The offset of MSI-X's pending bits.
pub const MSIX_PBA: u64 = 0x1000;
/// The offset of the common configuration.
pub const COMMON: u64 = 0x2000;
/// The offset of the interrupt status.
pub const ISR: u64 = 0x2800;
/// The offset of the device's configuration.
pub const DEVICE: u64 = 0x3000;
/// The offset of the notification registers. A write of any value to `NOTIFY + n * NOTIFY_STEP` notifies queue `n`.
pub const NOTIFY: u64 = 0x4000;
/// The distance of the queues' notification addresses (`notify_off_multiplier`).
pub const NOTIFY_STEP: u32 = 4;

/// The IDs in the function's configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision: 1 or more without a legacy interface (4.1.2.1).
    pub revision: u8,
    /// Subsystem vendor.
    pub subsystem_vendor: u16,
    /// Subsystem: 0x40 or more without a legacy interface (4.1.2.1).
    pub subsystem: u16,
    /// Base class, subclass and interface.
    pub class: [u8; 3],
}

/// A device behind a PCI function.
///
/// A VMM keeps it in a lock and holds that for one access at a time. Its driver waits for a reset by reading the
/// status, so no vCPU waits for it. Only writes to the device's configuration are [`Effect::PostAndWait`].
pub struct PciTransport {
    registers: Registers,
    interrupt: Arc<PciInterrupt>,
    window: Window,
}

/// A transport's state. Plain, untrusted data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciState {
    /// The state that both transports have.
    pub registers: RegistersState,
    /// Vectors and interrupt status.
    pub interrupt: InterruptState,
    /// The window in configuration space.
    pub window: WindowState,
}

impl PciState {
    /// The name of its kind in a snapshot.
    pub const KIND: &'static str = "virtio-pci";
    /// The form of this structure: raised when it changes.
    pub const VERSION: u32 = 1;
}

impl PciTransport {
    /// A device before its driver's first access. `config` is a copy of its configuration; `vectors` are the function's
    /// MSI-X vectors, [`PciTransport::vectors`] of them.
    ///
    /// # Errors
    /// [`LayoutError`] if the transport doesn't support the device.
    pub fn new(
        layout: Layout,
        config: Vec<u8>,
        vectors: Arc<dyn Vectors>,
    ) -> Result<Self, LayoutError> {
        let queues = layout.queues.len();
        let registers = Registers::new(layout, config)?;
        Ok(PciTransport {
            registers,
            interrupt: Arc::new(PciInterrupt::new(queues, vectors)),
            window: Window::default(),
        })
    }

    /// How many MSI-X vectors the function of a device has: one per queue and one for the configuration, as far as the
    /// table has room, which is 256. Drivers of more queues let some share a vector.
    pub fn vectors(layout: &Layout) -> u16 {
        // Fits: at most 256.
        (layout.queues.len() + 1).min(256) as u16
    }

    /// The IDs of the function.
    pub fn identity(&self) -> Identity {
        let id = self.registers.layout().id;
        Identity {
            vendor: 0x1af4,
            device: 0x1040 + id,
            revision: 1,
            subsystem_vendor: 0x1af4,
            subsystem: 0x40 + id,
            class: match id {
                // Ethernet controller; mass storage; SCSI; communication; other.
                1 => [0x02, 0x00, 0x00],
                2 => [0x01, 0x80, 0x00],
                8 => [0x01, 0x00, 0x00],
                3 | 19 => [0x07, 0x80, 0x00],
                _ => [0xff, 0x00, 0x00],
            },
        }
    }

    /// The vendor-specific capabilities, in their order in configuration space.
    pub fn capabilities(&self) -> Vec<Capability> {
        window::capabilities(self.registers.layout())
    }

    /// The device's way to interrupt.
    pub fn interrupt(&self) -> Arc<dyn Interrupt> {
        Arc::clone(&self.interrupt) as _
    }

    /// Status, features and queues.
    pub const fn registers(&self) -> &Registers {
        &self.registers
    }

    /// The driver reads any number of bytes at `offset` of BAR 0. Unused bytes read as 0.
    pub fn read_bar(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            COMMON..ISR => self.read_common(offset - COMMON, data),
            ISR => {
                if let Some(byte) = data.first_mut() {
                    *byte = self.interrupt.take_isr();
                }
            }
            DEVICE..NOTIFY => self.registers.read_config(offset - DEVICE, data),
            _ => {}
        }
    }

    /// The driver writes at `offset` of BAR 0. A field of the common configuration must be written as a whole, a 64-bit
    /// one also in halves (4.1.3.1). Other writes are ignored.
    pub fn write_bar(&mut self, offset: u64, data: &[u8]) -> Effect {
        match offset {
            COMMON..ISR => self.write_common(offset - COMMON, data),
            DEVICE..NOTIFY => self.registers.write_config(offset - DEVICE, data),
            NOTIFY..BAR_SIZE if offset.is_multiple_of(NOTIFY_STEP.into()) => {
                // Fits: it is inside the BAR.
                let queue = (offset - NOTIFY) as u32 / NOTIFY_STEP;
                self.registers.kick(queue)
            }
            _ => Effect::None,
        }
    }

    /// The driver reads in the window capability, `at` bytes from its start.
    pub fn read_window(&mut self, at: u8, data: &mut [u8]) {
        self.window.read(at, data);
        if let Some((offset, len)) = self.window.target(at, data.len()) {
            self.read_bar(offset, &mut data[..len]);
        }
    }

    /// The driver writes in the window capability, `at` bytes from its start.
    pub fn write_window(&mut self, at: u8, data: &[u8]) -> Effect {
        self.window.write(at, data);
        match self.window.target(at, data.len()) {
            Some((offset, len)) => self.write_bar(offset, &data[..len]),
            None => Effect::None,
        }
    }

    /// Handles an answer of the device's thread. Release the lock before acting on the notice ([`Interrupt::config`]).
    pub fn answer(&mut self, answer: &Answer) -> Notice {
        let epoch = self.registers.epoch();
        let notice = self.registers.answer(answer);
        if self.registers.epoch() != epoch {
            self.interrupt.reset();
        }
        notice
    }

    /// Whether the device has answered everything that vCPUs wait for.
    pub const fn is_settled(&self) -> bool {
        self.registers.is_settled()
    }

    /// The state; `None` until it is settled.
    pub fn save(&self) -> Option<PciState> {
        Some(PciState {
            registers: self.registers.save()?,
            interrupt: self.interrupt.save(),
            window: self.window.save(),
        })
    }

    /// Restores a state to a new transport: see [`Registers::restore`].
    ///
    /// # Errors
    /// As for [`Registers::restore`].
    pub fn restore(
        &mut self,
        state: &PciState,
        positions: Option<&[Option<Position>]>,
    ) -> Result<Option<Activation>, RestoreError> {
        self.interrupt.check(&state.interrupt)?;
        let activation = self.registers.restore(&state.registers, positions)?;
        self.interrupt.restore(&state.interrupt);
        self.window = Window::from(state.window);
        Ok(activation)
    }
}

impl fmt::Debug for PciTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciTransport")
            .field("registers", &self.registers)
            .field("interrupt", &self.interrupt.save())
            .field("window", &self.window)
            .finish()
    }
}
