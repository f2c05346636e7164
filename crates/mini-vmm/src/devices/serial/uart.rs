// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The registers of COM1: `vm_superio`'s UART, with the interrupts and FIFO control of a PC16550D.
//!
//! `vm_superio` implements the registers, the receive FIFO and the loopback path, and writes the output. This file
//! corrects where it differs from the data sheet (National Semiconductor, PC16550D, June 1995):
//!
//! | what | `vm_superio` 0.8 | data sheet |
//! |---|---|---|
//! | IIR, received data | cleared by each read of IIR or of a byte | a level: set while bytes wait, or while as many wait as the trigger level says (8.6, 8.11) |
//! | IIR, several sources | their bits together: "received data" and "THR empty" read as "line status" | the highest alone: line status, received data or time-out, THR empty, modem status (table IV) |
//! | IIR, THR empty | cleared by each read | cleared by a read that reports it, or by a write to THR |
//! | IIR, bits 6 and 7 | always set | set while FCR bit 0 is (8.6) |
//! | IIR, time-out | never | fewer bytes than the trigger level wait, and no more arrive (8.11) |
//! | FCR | ignored | FIFOs on and off, resets, trigger level of 1, 4, 8 or 14 bytes (8.5) |
//! | IER, THR empty | each write with the bit set interrupts | 8.7 leaves it open; chips do so when the bit becomes set |
//! | LSR, overrun | never, bytes beyond the FIFO vanish | set until LSR is read, and interrupts (8.4) |
//! | MSR, bits 0 to 3 | never | what changed since MSR was read, and interrupts (8.9); only loopback changes anything |
//! | interrupt output | an edge for each new bit in IIR | high while anything is pending |
//!
//! Five things differ from all chips, in ways that guests can't notice or don't mind:
//!
//! - The receive FIFO holds 64 bytes, as in some successors, not 16.
//! - The line has no speed. Bytes are sent at once. The four character times until a time-out also pass at once: if
//!   fewer bytes wait than the trigger level, that is a time-out.
//! - Input is never lost. Bytes that a FIFO reset clears count as not sent yet, and are sent again. So do those that
//!   wait when loopback mode (a driver's self-test) starts. After a reset the sender waits for a sign of a receiver:
//!   the receive interrupt is enabled, or LSR was read [`HOLD`] times. So drivers can clear the receiver when they
//!   start.
//! - A guest that has set RTS can stop the sender by clearing it, as with hardware flow control (`stty crtscts`).
//!   Guests that never set RTS receive anyway.
//! - Interrupts don't depend on MCR's OUT2, which PCs have between UART and interrupt controller. Firmware and small
//!   kernels don't set it, and QEMU doesn't require it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, Write};

use log::warn;
use vm_superio::serial::{NoEvents, Serial};
use vm_superio::{SerialState as Registers, Trigger};

use super::state::SerialState;
use crate::irq::IrqLine;

/// Receiver buffer and transmitter holding register; the divisor's low byte with DLAB.
const DATA: u8 = 0;
/// Interrupt enable register; the divisor's high byte with DLAB.
const IER: u8 = 1;
/// Interrupt identification register when read, FIFO control register when written.
const IIR_FCR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const MSR: u8 = 6;

pub(super) const IER_RECEIVED: u8 = 1 << 0;
const IER_THR_EMPTY: u8 = 1 << 1;
const IER_LINE_STATUS: u8 = 1 << 2;
const IER_MODEM_STATUS: u8 = 1 << 3;
pub(super) const IER_BITS: u8 = 0x0f;

/// The values of IIR by priority, and when nothing is pending (8.6, table IV).
const LINE_STATUS: u8 = 0x06;
const RECEIVED: u8 = 0x04;
const TIME_OUT: u8 = 0x0c;
const THR_EMPTY: u8 = 0x02;
const MODEM_STATUS: u8 = 0x00;
const NOTHING: u8 = 0x01;
const IIR_FIFOS: u8 = 0xc0;

pub(super) const FCR_ENABLE: u8 = 1 << 0;
const FCR_RESET_RECEIVER: u8 = 1 << 1;
const FCR_RESET_TRANSMITTER: u8 = 1 << 2;
pub(super) const FCR_TRIGGER: u8 = 0xc0;

const LCR_DLAB: u8 = 1 << 7;
const MCR_RTS: u8 = 1 << 1;
const MCR_LOOPBACK: u8 = 1 << 4;
pub(super) const LSR_DATA_READY: u8 = 1 << 0;
pub(super) const LSR_OVERRUN: u8 = 1 << 1;
const MSR_RI: u8 = 1 << 6;
pub(super) const MSR_CHANGES: u8 = 0x0f;

/// The size of `vm_superio`'s receive FIFO in bytes.
pub(super) const FIFO_SIZE: usize = 64;

/// How often a guest must read LSR after a receive FIFO reset before the sender continues.
pub(super) const HOLD: u8 = 16;

/// Discards `vm_superio`'s own interrupts.
#[derive(Debug)]
struct NoTrigger;

impl Trigger for NoTrigger {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The UART. A rising interrupt output is an edge of an [`IrqLine`].
pub(super) struct Uart<W: Write> {
    serial: Serial<NoTrigger, NoEvents, W>,
    irq: IrqLine,
    /// Whether the interrupt output is high.
    output_high: bool,
    interrupt_enable: u8,
    /// FCR's bits that are kept.
    fifo_control: u8,
    /// Whether the transmitter became empty and no interrupt has reported it yet.
    thr_empty: bool,
    /// MSR, bits 0 to 3.
    modem_changes: u8,
    overrun: bool,
    /// How many bytes of a self-test are in the FIFO. Input comes after them.
    looped: usize,
    /// Input that was removed from the FIFO. It precedes what is enqueued next.
    unsent: VecDeque<u8>,
    /// How often LSR must be read before the sender continues.
    hold: u8,
    /// Whether the guest has set RTS. Then the sender obeys it.
    uses_rts: bool,
}

impl<W: Write> Uart<W> {
    /// A UART after a reset. It writes to `writer`, which must not block.
    pub(super) fn new(irq: IrqLine, writer: W) -> Self {
        let serial = Serial::with_events(NoTrigger, NoEvents, writer);
        Uart::with_serial(serial, irq)
    }

    fn with_serial(serial: Serial<NoTrigger, NoEvents, W>, irq: IrqLine) -> Self {
        Uart {
            serial,
            irq,
            output_high: false,
            interrupt_enable: 0,
            fifo_control: 0,
            thr_empty: false,
            modem_changes: 0,
            overrun: false,
            looped: 0,
            unsent: VecDeque::new(),
            hold: 0,
            uses_rts: false,
        }
    }

    /// The guest reads `register`, 0 to 7.
    pub(super) fn read(&mut self, register: u8) -> u8 {
        let value = match register {
            DATA if !self.shows_divisor() => self.take_byte(),
            IIR_FCR => self.identify(),
            LSR => self.line_status(),
            MSR => self.serial.read(MSR) | std::mem::take(&mut self.modem_changes),
            _ => self.serial.read(register),
        };
        self.settle();
        value
    }

    /// The guest writes `register`, 0 to 7.
    pub(super) fn write(&mut self, register: u8, value: u8) {
        match register {
            DATA if !self.shows_divisor() => self.send(value),
            IER if !self.shows_divisor() => self.enable(value),
            IIR_FCR => self.control_fifos(value),
            MCR => self.control_modem(value),
            _ => self.pass_on(register, value),
        }
        self.settle();
    }

    /// Whether the sender may send.
    fn is_receiving(&mut self) -> bool {
        let is_ready = !self.uses_rts || self.serial.read(MCR) & MCR_RTS != 0;
        self.hold == 0 && is_ready && !self.is_in_loopback()
    }

    /// Whether everything enqueued has been read, and more may come.
    pub(super) fn is_drained(&mut self) -> bool {
        self.waiting() == 0 && self.unsent.is_empty() && self.is_receiving()
    }

    /// Takes as many of `bytes` as fit, and returns how many.
    pub(super) fn enqueue(&mut self, bytes: &[u8]) -> usize {
        if !self.unsent.is_empty() || !self.is_receiving() {
            return 0;
        }
        let taken = self.fill(bytes);
        self.settle();
        taken
    }

    /// The state, which a restore checks.
    pub(super) fn save(&self) -> SerialState {
        let Registers {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: _,
            interrupt_identification: _,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = self.serial.state();
        SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: self.interrupt_enable,
            fifo_control: self.fifo_control,
            thr_empty: self.thr_empty,
            line_control,
            line_status: line_status | if self.overrun { LSR_OVERRUN } else { 0 },
            modem_control,
            modem_status: modem_status | self.modem_changes,
            scratch,
            in_buffer,
            looped: self.looped as u8,
            unsent: self.unsent.iter().copied().collect(),
            hold: self.hold,
            uses_rts: self.uses_rts,
        }
    }

    /// The UART with a saved state. Its interrupt output rises again if anything is pending.
    ///
    /// # Errors
    /// When the interrupt can't be raised.
    pub(super) fn restore(state: &SerialState, irq: IrqLine, writer: W) -> io::Result<Self> {
        let registers = state.registers();
        // Raises no interrupt. It checks the FIFO.
        let serial = Serial::from_state(&registers, NoTrigger, NoEvents, writer)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let mut uart = Uart {
            interrupt_enable: state.interrupt_enable,
            fifo_control: state.fifo_control,
            thr_empty: state.thr_empty,
            modem_changes: state.modem_status & MSR_CHANGES,
            overrun: state.line_status & LSR_OVERRUN != 0,
            looped: state.looped.into(),
            unsent: state.unsent.iter().copied().collect(),
            hold: state.hold,
            uses_rts: state.uses_rts,
            ..Uart::with_serial(serial, irq)
        };
        uart.drive(uart.pending())?;
        Ok(uart)
    }

    /// The output.
    pub(super) fn writer(&self) -> &W {
        self.serial.writer()
    }

    /// Whether registers 0 and 1 are the divisor (8.1).
    fn shows_divisor(&mut self) -> bool {
        self.serial.read(LCR) & LCR_DLAB != 0
    }

    fn is_in_loopback(&mut self) -> bool {
        self.serial.read(MCR) & MCR_LOOPBACK != 0
    }

    fn has_fifos(&self) -> bool {
        self.fifo_control & FCR_ENABLE != 0
    }

    /// The number of bytes in the FIFO.
    fn waiting(&self) -> usize {
        FIFO_SIZE - self.serial.fifo_capacity()
    }

    /// How many bytes in the FIFO count as "received data" instead of a time-out.
    fn trigger_level(&self) -> usize {
        match self.fifo_control {
            0x41 => 4,
            0x81 => 8,
            0xc1 => 14,
            // Without FIFOs each byte interrupts.
            _ => 1,
        }
    }

    /// The receiver's pending interrupt.
    fn receiver_pending(&self) -> u8 {
        match self.waiting() {
            _ if self.interrupt_enable & IER_RECEIVED == 0 => NOTHING,
            0 => NOTHING,
            waiting if waiting < self.trigger_level() => TIME_OUT,
            _ => RECEIVED,
        }
    }

    /// The pending interrupt with the highest priority.
    fn pending(&self) -> u8 {
        self.highest(self.receiver_pending(), self.thr_empty)
    }

    /// Like [`Uart::pending`], with the given state of receiver and transmitter.
    fn highest(&self, receiver: u8, thr_empty: bool) -> u8 {
        let enabled = |bit| self.interrupt_enable & bit != 0;
        if self.overrun && enabled(IER_LINE_STATUS) {
            LINE_STATUS
        } else if receiver != NOTHING {
            receiver
        } else if thr_empty && enabled(IER_THR_EMPTY) {
            THR_EMPTY
        } else if self.modem_changes != 0 && enabled(IER_MODEM_STATUS) {
            MODEM_STATUS
        } else {
            NOTHING
        }
    }

    /// Updates the interrupt output for what is pending. If raising fails, it is retried at the next access.
    fn drive(&mut self, pending: u8) -> io::Result<()> {
        let high = pending != NOTHING;
        if high && !self.output_high {
            self.irq.raise()?;
        }
        self.output_high = high;
        Ok(())
    }

    /// Lowers the output unless something other than `receiver` and `thr_empty` is pending. [`Uart::settle`] may raise
    /// it again.
    fn dip(&mut self, receiver: u8, thr_empty: bool) {
        self.output_high &= self.highest(receiver, thr_empty) != NOTHING;
    }

    /// After each access: sends removed bytes again, and updates the interrupt output.
    fn settle(&mut self) {
        if !self.unsent.is_empty() && self.is_receiving() {
            let mut bytes = std::mem::take(&mut self.unsent);
            let taken = self.fill(bytes.make_contiguous());
            bytes.drain(..taken);
            self.unsent = bytes;
        }
        if let Err(error) = self.drive(self.pending()) {
            warn!("COM1: its interrupt can't be raised: {error}");
        }
    }

    /// Puts as many of `bytes` into the FIFO as fit.
    fn fill(&mut self, bytes: &[u8]) -> usize {
        let count = self.serial.fifo_capacity().min(bytes.len());
        // Can't fail: everything fits, and it is not in loopback mode.
        self.serial
            .enqueue_raw_bytes(&bytes[..count])
            .unwrap_or_default()
    }

    /// A read of RBR.
    fn take_byte(&mut self) -> u8 {
        let byte = self.serial.read(DATA);
        self.looped = self.looped.saturating_sub(1);
        // Without FIFOs the next byte arrives after this one was read. A read also restarts the time-out.
        if !self.has_fifos() || self.receiver_pending() == TIME_OUT {
            self.dip(NOTHING, self.thr_empty);
        }
        byte
    }

    /// A read of IIR.
    fn identify(&mut self) -> u8 {
        let pending = self.pending();
        if pending == THR_EMPTY {
            self.thr_empty = false;
        }
        pending | if self.has_fifos() { IIR_FIFOS } else { 0 }
    }

    /// A read of LSR.
    fn line_status(&mut self) -> u8 {
        self.hold = self.hold.saturating_sub(1);
        let overrun = match std::mem::take(&mut self.overrun) {
            true => LSR_OVERRUN,
            false => 0,
        };
        self.serial.read(LSR) | overrun
    }

    /// A write to THR: it becomes full, and empty again.
    fn send(&mut self, byte: u8) {
        self.dip(self.receiver_pending(), false);
        self.thr_empty = true;
        if !self.is_in_loopback() {
            return self.pass_on(DATA, byte);
        }
        let depth = if self.has_fifos() { FIFO_SIZE } else { 1 };
        self.overrun |= self.waiting() >= depth;
        if self.waiting() > 0 && !self.has_fifos() {
            // It replaces the byte that was not read.
            self.serial.read(DATA);
        }
        self.pass_on(DATA, byte);
        self.looped = self.waiting();
    }

    /// A write to IER.
    fn enable(&mut self, value: u8) {
        let value = value & IER_BITS;
        if value & !self.interrupt_enable & IER_THR_EMPTY != 0 {
            self.thr_empty = true;
        }
        self.interrupt_enable = value;
        if value & IER_RECEIVED != 0 {
            self.hold = 0;
        }
        self.pass_on(IER, value);
    }

    /// A write to FCR. Without the enable bit the other bits are ignored. A change of that bit clears both FIFOs.
    fn control_fifos(&mut self, value: u8) {
        let change = (value ^ self.fifo_control) & FCR_ENABLE != 0;
        let is_on = value & FCR_ENABLE != 0;
        self.fifo_control = if is_on {
            value & (FCR_ENABLE | FCR_TRIGGER)
        } else {
            0
        };
        if change || is_on && value & FCR_RESET_RECEIVER != 0 {
            self.reset_receiver();
        }
        if change || is_on && value & FCR_RESET_TRANSMITTER != 0 {
            self.thr_empty = true;
        }
    }

    fn reset_receiver(&mut self) {
        self.take_back_input();
        self.looped = 0;
        if self.interrupt_enable & IER_RECEIVED == 0 {
            self.hold = HOLD;
        }
    }

    /// Empties the FIFO. Input in it counts as not sent yet; the bytes of a self-test are returned.
    fn take_back_input(&mut self) -> VecDeque<u8> {
        let line_control = self.serial.read(LCR);
        self.pass_on(LCR, line_control & !LCR_DLAB);
        let mut bytes = VecDeque::new();
        while self.waiting() > 0 {
            bytes.push_back(self.serial.read(DATA));
        }
        self.pass_on(LCR, line_control);
        let mut input = bytes.split_off(self.looped);
        input.append(&mut self.unsent);
        self.unsent = input;
        self.dip(NOTHING, self.thr_empty);
        bytes
    }

    /// A write to MCR. In loopback mode MCR's outputs are the modem's inputs (8.8).
    fn control_modem(&mut self, value: u8) {
        if value & MCR_LOOPBACK != 0 && !self.is_in_loopback() {
            let mut looped = self.take_back_input();
            self.fill(looped.make_contiguous());
        }
        // In loopback mode the output itself stays inactive.
        self.uses_rts |= value & (MCR_RTS | MCR_LOOPBACK) == MCR_RTS;
        let before = self.serial.read(MSR);
        self.pass_on(MCR, value);
        let after = self.serial.read(MSR);
        // RI counts only when it ends.
        let changes = (before ^ after) & !MSR_RI | before & !after & MSR_RI;
        self.modem_changes |= changes >> 4;
    }

    /// Passes a write unchanged to `vm_superio`.
    fn pass_on(&mut self, register: u8, value: u8) {
        if let Err(error) = self.serial.write(register, value) {
            warn!("COM1: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
