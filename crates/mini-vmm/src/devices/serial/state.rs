// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! COM1's saved state, and its checks.

use serde::{Deserialize, Serialize};
use vm_superio::SerialState as Registers;

use super::uart::{
    FCR_ENABLE, FCR_TRIGGER, FIFO_SIZE, HOLD, IER_BITS, LSR_DATA_READY, LSR_OVERRUN, MSR_CHANGES,
};
use crate::devices::RestoreError;

/// What `vm_superio` always has in these registers; it has no constants for them.
const LINE_STATUS_IDLE: u8 = 0x60;
const MODEM_STATUS: u8 = 0xb0;
const INTERRUPT_IDENTIFICATION: u8 = 0x01;

/// The saved state of a [`crate::devices::SerialDevice`]: the registers of a 16550A and its receive FIFO.
///
/// The interrupt identification register is not included, since it follows from the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialState {
    /// Divisor latch, low byte.
    pub baud_divisor_low: u8,
    /// Divisor latch, high byte.
    pub baud_divisor_high: u8,
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// FIFO control register: whether there are FIFOs, and the trigger level. 0 without FIFOs.
    pub fifo_control: u8,
    /// Whether the transmitter became empty and no interrupt has reported it yet.
    pub thr_empty: bool,
    /// Line control register.
    pub line_control: u8,
    /// Line status register.
    pub line_status: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Modem status register.
    pub modem_status: u8,
    /// Scratch register.
    pub scratch: u8,
    /// Received bytes that the guest has not read, oldest first; at most 64.
    pub in_buffer: Vec<u8>,
    /// How many of these, at the start, the guest sent itself in loopback mode.
    pub looped: u8,
    /// Input that the guest cleared from the FIFO and that is delivered again, oldest first; at most 64 bytes.
    pub unsent: Vec<u8>,
    /// How often the guest must read the line status before input is delivered again; at most 16.
    pub hold: u8,
    /// Whether the guest has set RTS outside of loopback mode. Then clearing it stops the input.
    pub uses_rts: bool,
}

impl SerialState {
    /// The part of it that `vm_superio` keeps.
    pub(super) fn registers(&self) -> Registers {
        Registers {
            baud_divisor_low: self.baud_divisor_low,
            baud_divisor_high: self.baud_divisor_high,
            interrupt_enable: self.interrupt_enable,
            interrupt_identification: INTERRUPT_IDENTIFICATION,
            line_control: self.line_control,
            line_status: self.line_status & !LSR_OVERRUN,
            modem_control: self.modem_control,
            modem_status: self.modem_status & !MSR_CHANGES,
            scratch: self.scratch,
            in_buffer: self.in_buffer.clone(),
        }
    }

    /// Checks that the device can have this state.
    pub(super) fn check(&self) -> Result<(), RestoreError> {
        let check = |is_valid: bool, field, value: usize| {
            if is_valid {
                return Ok(());
            }
            Err(RestoreError::Field {
                device: "COM1",
                field,
                value: value as u64,
            })
        };
        let register = |is_valid, field, value: u8| check(is_valid, field, value.into());
        let data_ready = if self.in_buffer.is_empty() {
            0
        } else {
            LSR_DATA_READY
        };
        let fifos = match self.fifo_control & FCR_ENABLE {
            0 => 0,
            _ => FCR_ENABLE | FCR_TRIGGER,
        };
        register(
            self.interrupt_enable & !IER_BITS == 0,
            "interrupt_enable",
            self.interrupt_enable,
        )?;
        register(
            self.fifo_control & !fifos == 0,
            "fifo_control",
            self.fifo_control,
        )?;
        register(
            self.line_status & !LSR_OVERRUN == LINE_STATUS_IDLE | data_ready,
            "line_status",
            self.line_status,
        )?;
        register(
            self.modem_status & !MSR_CHANGES == MODEM_STATUS,
            "modem_status",
            self.modem_status,
        )?;
        register(self.hold <= HOLD, "hold", self.hold)?;
        let (waiting, unsent) = (self.in_buffer.len(), self.unsent.len());
        check(waiting <= FIFO_SIZE, "in_buffer.len", waiting)?;
        check(unsent <= FIFO_SIZE, "unsent.len", unsent)?;
        register(usize::from(self.looped) <= waiting, "looped", self.looped)
    }
}
