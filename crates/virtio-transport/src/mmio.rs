// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The MMIO transport, version 2 (virtio 1.4, section 4.2).
//!
//! A page of registers and one interrupt. Its driver doesn't wait for a reset, so the vCPU does:
//! [`Effect::PostAndWait`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use crate::device::{Interrupt, RestoreError};
use crate::layout::{Layout, LayoutError};
use crate::message::{Activation, Answer, Command};
use crate::queue::Position;
use crate::registers::{Effect, Half, Notice, Registers, RegistersState, Ring};

/// The size of the register range, in bytes.
pub const SIZE: u64 = 0x1000;
/// The offset of the notification register. The 32 bits written are the queue's number. Use it for ioeventfds.
pub const QUEUE_NOTIFY: u64 = 0x50;

/// "virt".
const MAGIC: u32 = 0x7472_6976;
/// Not the legacy version.
const VERSION: u32 = 2;
/// The offset of the configuration.
const CONFIG: u64 = 0x100;

/// A queue has used buffers (4.2.2).
const USED_BUFFER: u32 = 1;
/// The configuration changed.
const CONFIG_CHANGE: u32 = 2;

/// The device's interrupt line.
///
/// It is edge-triggered. The status register has the reason. The driver clears the bits that it has seen, then handles
/// them; a later reason raises another edge.
pub trait Line: Send + Sync {
    /// Raises it.
    fn raise(&self);
}

/// Interrupts with a status register and a line.
struct MmioInterrupt {
    status: AtomicU32,
    line: Arc<dyn Line>,
}

impl MmioInterrupt {
    fn raise(&self, why: u32) {
        self.status.fetch_or(why, Ordering::SeqCst);
        self.line.raise();
    }
}

impl Interrupt for MmioInterrupt {
    fn queue(&self, _queue: u16) {
        self.raise(USED_BUFFER);
    }

    fn config(&self) {
        self.raise(CONFIG_CHANGE);
    }

    fn repeat(&self) {
        if self.status.load(Ordering::SeqCst) != 0 {
            self.line.raise();
        }
    }
}

/// A device behind MMIO registers.
///
/// A VMM keeps it in a lock and holds that for one access at a time.
pub struct MmioTransport {
    registers: Registers,
    vendor: u32,
    interrupt: Arc<MmioInterrupt>,
}

/// A transport's state. Plain, untrusted data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioState {
    /// The state that both transports have.
    pub registers: RegistersState,
    /// The interrupt status register.
    pub interrupt_status: u32,
}

impl MmioState {
    /// The name of its kind in a snapshot.
    pub const KIND: &'static str = "virtio-mmio";
    /// The form of this structure: raised when it changes.
    pub const VERSION: u32 = 1;
}

impl MmioTransport {
    /// A device before its driver's first access. `config` is a copy of its configuration. `vendor` is the vendor ID,
    /// which drivers don't use.
    ///
    /// # Errors
    /// [`LayoutError`] if the transport doesn't support the device.
    pub fn new(
        layout: Layout,
        config: Vec<u8>,
        vendor: u32,
        line: Arc<dyn Line>,
    ) -> Result<Self, LayoutError> {
        Ok(MmioTransport {
            registers: Registers::new(layout, config)?,
            vendor,
            interrupt: Arc::new(MmioInterrupt {
                status: AtomicU32::new(0),
                line,
            }),
        })
    }

    /// The device's way to interrupt.
    pub fn interrupt(&self) -> Arc<dyn Interrupt> {
        Arc::clone(&self.interrupt) as _
    }

    /// Status, features and queues.
    pub const fn registers(&self) -> &Registers {
        &self.registers
    }

    /// The driver reads at `offset` of the registers. Registers are read with 32 bits. Other reads and unknown
    /// registers return 0. The configuration can be read with any width.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(at) = offset.checked_sub(CONFIG) {
            return self.registers.read_config(at, data);
        }
        data.fill(0);
        if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = self.register(offset).to_le_bytes();
        }
    }

    fn register(&self, offset: u64) -> u32 {
        let registers = &self.registers;
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => registers.layout().id.into(),
            0x0c => self.vendor,
            0x10 => registers.device_features(),
            0x34 => registers.max_queue_size().into(),
            0x44 => registers
                .queue()
                .is_some_and(|queue| queue.is_ready())
                .into(),
            0x60 => self.interrupt.status.load(Ordering::SeqCst),
            0x70 => registers.status().into(),
            // Length and address of a shared memory region: there is none (4.2.2.1).
            0xb0 | 0xb4 | 0xb8 | 0xbc => u32::MAX,
            0xfc => registers.generation(),
            _ => 0,
        }
    }

    /// The driver writes at `offset` of the registers. Registers are written with 32 bits. Other writes and unknown
    /// registers are ignored. The configuration can be written with any width.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        if let Some(at) = offset.checked_sub(CONFIG) {
            return self.registers.write_config(at, data);
        }
        let Ok(data) = <[u8; 4]>::try_from(data) else {
            return Effect::None;
        };
        let value = u32::from_le_bytes(data);
        let registers = &mut self.registers;
        match offset {
            0x14 => registers.select_device_features(value),
            0x20 => registers.set_driver_features(value),
            0x24 => registers.select_driver_features(value),
            0x30 => registers.select_queue(value),
            0x38 => registers.set_queue_size(value),
            0x44 if value == 1 => registers.enable_queue(),
            0x44 if value == 0 => registers.disable_queue(),
            QUEUE_NOTIFY => return registers.kick(value),
            0x64 => {
                self.interrupt.status.fetch_and(!value, Ordering::SeqCst);
            }
            0x70 => return self.set_status(value),
            0x80 => registers.set_queue_address(Ring::Descriptors, Half::Low, value),
            0x84 => registers.set_queue_address(Ring::Descriptors, Half::High, value),
            0x90 => registers.set_queue_address(Ring::Available, Half::Low, value),
            0x94 => registers.set_queue_address(Ring::Available, Half::High, value),
            0xa0 => registers.set_queue_address(Ring::Used, Half::Low, value),
            0xa4 => registers.set_queue_address(Ring::Used, Half::High, value),
            _ => {}
        }
        Effect::None
    }

    fn set_status(&mut self, value: u32) -> Effect {
        // Bits above the eighth are not defined.
        let Ok(value) = u8::try_from(value) else {
            return Effect::None;
        };
        let epoch = self.registers.epoch();
        let effect = self.registers.set_status(value);
        self.quiet_after(epoch);
        match effect {
            Effect::Post(command @ Command::Reset { .. }) => Effect::PostAndWait(command),
            other => other,
        }
    }

    /// Handles an answer of the device's thread. Release the lock before acting on the notice ([`Interrupt::config`]).
    pub fn answer(&mut self, answer: &Answer) -> Notice {
        let epoch = self.registers.epoch();
        let notice = self.registers.answer(answer);
        self.quiet_after(epoch);
        notice
    }

    /// Clears interrupts of an epoch that has ended.
    fn quiet_after(&self, epoch: u64) {
        if self.registers.epoch() != epoch {
            self.interrupt.status.store(0, Ordering::SeqCst);
        }
    }

    /// Whether the device has answered everything that vCPUs wait for.
    pub const fn is_settled(&self) -> bool {
        self.registers.is_settled()
    }

    /// The state; `None` until it is settled.
    pub fn save(&self) -> Option<MmioState> {
        Some(MmioState {
            registers: self.registers.save()?,
            interrupt_status: self.interrupt.status.load(Ordering::SeqCst),
        })
    }

    /// Restores a state to a new transport: see [`Registers::restore`].
    ///
    /// # Errors
    /// As for [`Registers::restore`].
    pub fn restore(
        &mut self,
        state: &MmioState,
        positions: Option<&[Option<Position>]>,
    ) -> Result<Option<Activation>, RestoreError> {
        if state.interrupt_status & !(USED_BUFFER | CONFIG_CHANGE) != 0 {
            return Err(RestoreError::Value("the interrupt status has unknown bits"));
        }
        let activation = self.registers.restore(&state.registers, positions)?;
        let status = &self.interrupt.status;
        status.store(state.interrupt_status, Ordering::SeqCst);
        Ok(activation)
    }
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport")
            .field("registers", &self.registers)
            .field("interrupt_status", &self.interrupt.status)
            .finish_non_exhaustive()
    }
}
