// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! COM1's saved state, and what of it is believed.

use serde::{Deserialize, Serialize};
use vm_superio::SerialState as UartState;

use crate::devices::RestoreError;

/// Bits that `vm_superio` keeps in each register; it has no constants for them.
const INTERRUPT_ENABLE_BITS: u8 = 0x0f;
const LINE_STATUS_IDLE: u8 = 0x60;
const LINE_STATUS_DATA_READY: u8 = 0x01;
const INTERRUPT_IDS: [u8; 4] = [0x01, 0x02, 0x04, 0x06];
const MODEM_STATUS: u8 = 0xb0;
const FIFO_SIZE: usize = 64;

/// The saved state of a [`crate::devices::SerialDevice`]: the registers of a 16550A and its receive FIFO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialState {
    /// Divisor latch, low byte.
    pub baud_divisor_low: u8,
    /// Divisor latch, high byte.
    pub baud_divisor_high: u8,
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// Interrupt identification register.
    pub interrupt_identification: u8,
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
    /// Received bytes that the guest has not read, oldest first; 64 at most.
    pub in_buffer: Vec<u8>,
}

impl From<UartState> for SerialState {
    fn from(state: UartState) -> Self {
        let UartState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = state;
        SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        }
    }
}

impl TryFrom<&SerialState> for UartState {
    type Error = RestoreError;

    fn try_from(state: &SerialState) -> Result<Self, RestoreError> {
        let SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            ref in_buffer,
        } = *state;
        let check = |is_valid: bool, field, value: u64| {
            if is_valid {
                return Ok(());
            }
            Err(RestoreError::Field {
                device: "COM1",
                field,
                value,
            })
        };
        check(
            interrupt_enable & !INTERRUPT_ENABLE_BITS == 0,
            "interrupt_enable",
            interrupt_enable.into(),
        )?;
        check(
            INTERRUPT_IDS.contains(&interrupt_identification),
            "interrupt_identification",
            interrupt_identification.into(),
        )?;
        let data_ready = if in_buffer.is_empty() {
            0
        } else {
            LINE_STATUS_DATA_READY
        };
        check(
            line_status == LINE_STATUS_IDLE | data_ready,
            "line_status",
            line_status.into(),
        )?;
        check(
            modem_status == MODEM_STATUS,
            "modem_status",
            modem_status.into(),
        )?;
        check(
            in_buffer.len() <= FIFO_SIZE,
            "in_buffer.len",
            in_buffer.len() as u64,
        )?;
        Ok(UartState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: in_buffer.clone(),
        })
    }
}
