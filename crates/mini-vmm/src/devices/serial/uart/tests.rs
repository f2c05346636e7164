// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The registers against the data sheet, by tables and by random sequences.

use super::*;

mod random;

const SCRATCH: u8 = 7;
const LOOPBACK: u8 = 0x10;

/// FCR values with FIFOs enabled, and their trigger levels.
const FIFOS: [(u8, usize); 4] = [(0x01, 1), (0x41, 4), (0x81, 8), (0xc1, 14)];

fn uart() -> Uart<Vec<u8>> {
    Uart::new(IrqLine::unconnected(), Vec::new())
}

/// A UART with these values in FCR and IER.
fn uart_with(fifo_control: u8, interrupt_enable: u8) -> Uart<Vec<u8>> {
    let mut uart = uart();
    uart.write(IIR_FCR, fifo_control);
    uart.write(IER, interrupt_enable);
    edges(&uart);
    uart
}

/// How often the interrupt output has risen since the last call.
fn edges(uart: &Uart<Vec<u8>>) -> u64 {
    uart.irq.event().unwrap().read().unwrap_or(0)
}

fn read_bytes(uart: &mut Uart<Vec<u8>>, count: usize) -> Vec<u8> {
    (0..count).map(|_| uart.read(DATA)).collect()
}

/// A UART with transmitter, modem and line errors pending, and a byte received.
fn everything_pending(interrupt_enable: u8) -> Uart<Vec<u8>> {
    let mut uart = uart_with(0x01, 0);
    uart.write(MCR, LOOPBACK);
    for _ in 0..=FIFO_SIZE {
        uart.write(DATA, b'x');
    }
    uart.write(IER, interrupt_enable);
    uart
}

#[test]
fn received_data_is_a_level() {
    let mut uart = uart_with(0x07, 0x01);
    assert_eq!(uart.enqueue(b"abcdefgh"), 8);
    assert_eq!(edges(&uart), 1);
    for left in (1..=8).rev() {
        assert_eq!(uart.read(IIR_FCR), 0xc4, "{left} left");
        assert_eq!(uart.read(IIR_FCR), 0xc4, "{left} left, again");
        assert_eq!(uart.read(LSR), 0x61);
        uart.read(DATA);
    }
    assert_eq!(uart.read(IIR_FCR), 0xc1);
    assert_eq!(uart.read(LSR), 0x60);
    assert_eq!(edges(&uart), 0, "it was high all the time");
}

#[test]
fn below_the_trigger_level_it_is_a_time_out() {
    for (fifo_control, level) in FIFOS {
        for waiting in 0..=FIFO_SIZE {
            let mut uart = uart_with(fifo_control, 0x01);
            uart.enqueue(&vec![0; waiting]);
            let expected = match waiting {
                0 => 0xc1,
                few if few < level => 0xcc,
                _ => 0xc4,
            };
            assert_eq!(uart.read(IIR_FCR), expected, "{waiting} of {level}");
            assert_eq!(edges(&uart), u64::from(waiting > 0));
            uart.write(IER, 0x0e);
            assert_eq!(uart.read(IIR_FCR), 0xc2, "not enabled");
        }
    }
    let mut without_fifos = uart_with(0xc0, 0x01);
    without_fifos.enqueue(b"x");
    assert_eq!(without_fifos.read(IIR_FCR), 0x04);
}

#[test]
fn the_highest_priority_is_told() {
    for interrupt_enable in 0..16 {
        let has = |bit| interrupt_enable & bit != 0;
        let expected = match interrupt_enable {
            _ if has(0x04) => 0xc6,
            _ if has(0x01) => 0xc4,
            _ if has(0x02) => 0xc2,
            _ if has(0x08) => 0xc0,
            _ => 0xc1,
        };
        let mut uart = everything_pending(interrupt_enable);
        assert_eq!(uart.read(IIR_FCR), expected, "IER {interrupt_enable:#x}");
        assert_eq!(edges(&uart), u64::from(interrupt_enable != 0));
    }
    // Each is cleared as the data sheet says, and the next one is reported.
    let mut uart = everything_pending(0x0f);
    assert_eq!(uart.read(IIR_FCR), 0xc6);
    assert_eq!(uart.read(LSR), 0x63);
    assert_eq!(uart.read(LSR), 0x61, "an overrun is told once");
    assert_eq!(uart.read(IIR_FCR), 0xc4);
    read_bytes(&mut uart, FIFO_SIZE);
    assert_eq!(uart.read(IIR_FCR), 0xc2);
    assert_eq!(uart.read(IIR_FCR), 0xc0);
    // DSR, CTS and DCD fell.
    assert_eq!(uart.read(MSR), 0x0b);
    assert_eq!(uart.read(MSR), 0x00);
    assert_eq!(uart.read(IIR_FCR), 0xc1);
}

#[test]
fn the_empty_transmitter_is_told_once() {
    let mut uart = uart_with(0, 0x02);
    assert_eq!(uart.read(IIR_FCR), 0x02, "the bit became set");
    assert_eq!(uart.read(IIR_FCR), 0x01);
    uart.write(IER, 0x02);
    assert_eq!(uart.read(IIR_FCR), 0x01, "the bit was set before");
    uart.write(IER, 0x00);
    uart.write(IER, 0x02);
    assert_eq!(uart.read(IIR_FCR), 0x02);
    edges(&uart);
    for sent in 1..=3 {
        uart.write(DATA, b'x');
        assert_eq!(edges(&uart), 1, "{sent}: without a read of IIR, too");
    }
    assert_eq!(uart.read(LSR), 0x60);
    uart.write(IER, 0x03);
    uart.enqueue(b"y");
    assert_eq!(uart.read(IIR_FCR), 0x04, "this clears nothing");
    uart.read(DATA);
    assert_eq!(uart.read(IIR_FCR), 0x02);
    assert_eq!(*uart.writer(), b"xxx");
}

#[test]
fn fifo_control_is_taken_with_its_enable_bit_only() {
    for value in 0..=0xff {
        let mut uart = uart_with(value, 0x02);
        let bits = uart.read(IIR_FCR) & 0xf0;
        assert_eq!(bits, if value & 1 == 0 { 0 } else { 0xc0 }, "{value:#x}");
        let kept = if value & 1 == 0 { 0 } else { value & 0xc1 };
        assert_eq!(uart.save().fifo_control, kept);
    }
    let mut uart = uart_with(0, 0x02);
    uart.read(IIR_FCR);
    uart.enqueue(b"x");
    uart.write(IIR_FCR, 0x06);
    assert_eq!((uart.read(IIR_FCR), uart.read(LSR)), (0x01, 0x61));
    uart.write(IIR_FCR, 0x01);
    assert_eq!((uart.read(IIR_FCR), uart.read(LSR)), (0xc2, 0x60));
    uart.write(IIR_FCR, 0x01);
    assert_eq!(uart.read(IIR_FCR), 0xc1, "no change, no reset");
    uart.write(IIR_FCR, 0x05);
    assert_eq!(uart.read(IIR_FCR), 0xc2);
    uart.write(IIR_FCR, 0x00);
    assert_eq!(uart.read(IIR_FCR), 0x02);
}

#[test]
fn a_reset_clears_the_fifo_and_loses_no_input() {
    for end_of_hold in ["the interrupt is enabled", "LSR is read"] {
        let mut uart = uart_with(0x01, 0x01);
        uart.write(IER, 0x00);
        assert_eq!(uart.enqueue(b"abc"), 3);
        uart.read(DATA);
        uart.write(IIR_FCR, 0x03);
        assert_eq!(uart.enqueue(b"too early"), 0);
        assert!(!uart.is_drained());
        assert_eq!(uart.read(LSR), 0x60);
        assert_eq!(uart.read(DATA), 0, "the FIFO is empty");
        match end_of_hold {
            "LSR is read" => {
                let polls = (1..).take_while(|_| uart.read(LSR) == 0x60).count();
                assert!(polls < HOLD.into(), "{polls}");
            }
            _ => uart.write(IER, 0x01),
        }
        assert_eq!(uart.enqueue(b"d"), 1, "{end_of_hold}");
        assert_eq!(read_bytes(&mut uart, 3), b"bcd");
        assert!(uart.is_drained());
    }
}

#[test]
fn a_reset_of_an_enabled_receiver_interrupts_anew() {
    let mut uart = uart_with(0x81, 0x01);
    uart.enqueue(b"abc");
    assert_eq!(edges(&uart), 1);
    uart.write(IIR_FCR, 0x83);
    assert_eq!(edges(&uart), 1);
    assert_eq!(read_bytes(&mut uart, 3), b"abc");
}

/// What Linux does when it opens the port (`serial8250_do_startup`, 6.1).
#[test]
fn a_driver_that_starts_loses_no_input() {
    let mut uart = uart();
    uart.enqueue(b"script");
    for value in [0x01, 0x07, 0x00] {
        uart.write(IIR_FCR, value);
    }
    for register in [LSR, DATA, IIR_FCR, MSR, LSR] {
        uart.read(register);
    }
    uart.write(LCR, 0x03);
    uart.write(MCR, 0x08);
    for register in [LSR, DATA, IIR_FCR, MSR] {
        uart.read(register);
    }
    uart.write(IER, 0x05);
    uart.write(IIR_FCR, 0x81);
    assert_eq!(uart.read(IIR_FCR), 0xcc);
    assert_eq!(read_bytes(&mut uart, 6), b"script");
}

#[test]
fn loopback_returns_what_is_sent() {
    let mut uart = uart_with(0x01, 0x01);
    uart.enqueue(b"input");
    uart.write(MCR, LOOPBACK);
    assert_eq!(uart.read(LSR), 0x60, "input is not in the way");
    assert_eq!(uart.enqueue(b"more"), 0);
    for byte in 0..=255 {
        uart.write(DATA, byte);
    }
    let looped: Vec<u8> = (0..64).collect();
    assert_eq!(uart.read(LSR), 0x63, "it was too much");
    assert_eq!(read_bytes(&mut uart, 60), looped[..60]);
    uart.write(MCR, 0x08);
    assert_eq!(read_bytes(&mut uart, 4), looped[60..], "they stay");
    assert_eq!(read_bytes(&mut uart, 5), b"input");
    assert!(uart.writer().is_empty());

    uart.enqueue(b"input");
    uart.write(MCR, LOOPBACK);
    uart.write(DATA, b'x');
    uart.write(MCR, 0x08);
    uart.write(IIR_FCR, 0x03);
    assert_eq!(read_bytes(&mut uart, 5), b"input", "a reset drops the rest");
}

#[test]
fn a_guest_that_uses_rts_stops_input_by_it() {
    let mut uart = uart_with(0x01, 0x01);
    assert_eq!(uart.enqueue(b"a"), 1, "RTS was never set");
    // The output is inactive in loopback mode.
    uart.write(MCR, LOOPBACK | 0x02);
    uart.write(MCR, 0x08);
    assert_eq!(uart.enqueue(b"b"), 1);
    uart.write(MCR, 0x0b);
    assert_eq!(uart.enqueue(b"c"), 1);
    uart.write(MCR, 0x09);
    assert_eq!(uart.enqueue(b"d"), 0);
    assert_eq!(read_bytes(&mut uart, 3), b"abc", "they came before");
    assert!(!uart.is_drained());
    uart.write(MCR, 0x0b);
    assert!(uart.is_drained());
    assert_eq!(uart.enqueue(b"d"), 1);
}

#[test]
fn without_fifos_loopback_holds_one_byte() {
    let mut uart = uart_with(0, 0);
    uart.enqueue(b"input");
    uart.write(MCR, LOOPBACK);
    uart.write(DATA, b'a');
    assert_eq!(uart.read(LSR), 0x61);
    uart.write(DATA, b'b');
    assert_eq!(uart.read(LSR), 0x63);
    assert_eq!(uart.read(DATA), b'b');
    assert_eq!(uart.read(LSR), 0x60);
}

#[test]
fn loopback_connects_the_modem_lines() {
    let mut uart = uart_with(0, 0);
    assert_eq!(uart.read(MSR), 0xb0, "CTS, DSR and DCD, as ever");
    uart.write(MCR, LOOPBACK);
    uart.read(MSR);
    // DTR, RTS, OUT1 and OUT2 are DSR, CTS, RI and DCD. RI counts when it ends.
    for (output, line, begins, ends) in [
        (0x01, 0x20, 0x02, 0x02),
        (0x02, 0x10, 0x01, 0x01),
        (0x04, 0x40, 0x00, 0x04),
        (0x08, 0x80, 0x08, 0x08),
    ] {
        uart.write(MCR, LOOPBACK | output);
        assert_eq!(uart.read(MSR), line | begins);
        assert_eq!(uart.read(MSR), line);
        uart.write(MCR, LOOPBACK);
        assert_eq!(uart.read(MSR), ends);
    }
}

#[test]
fn the_divisor_hides_two_registers() {
    let mut uart = uart_with(0x01, 0x01);
    uart.enqueue(b"x");
    uart.write(LCR, 0x83);
    uart.write(DATA, 0x34);
    uart.write(IER, 0x12);
    assert_eq!((uart.read(DATA), uart.read(IER)), (0x34, 0x12));
    assert_eq!(
        uart.read(IIR_FCR),
        0xc4,
        "nothing was read, nothing disabled"
    );
    // The FIFO is cleared anyway.
    uart.write(IER, 0x00);
    uart.write(IIR_FCR, 0x03);
    uart.write(LCR, 0x03);
    assert_eq!((uart.read(DATA), uart.read(IER)), (b'x', 0x01));
    assert!(uart.writer().is_empty());
}

#[test]
fn plain_registers_keep_what_is_written() {
    let mut uart = uart();
    for value in 0..=0xff {
        uart.write(SCRATCH, value);
        uart.write(IER, value);
        assert_eq!(uart.read(SCRATCH), value);
        assert_eq!(uart.read(IER), value & 0x0f);
        uart.write(LSR, value);
        uart.write(MSR, value);
        assert_eq!((uart.read(LSR), uart.read(MSR)), (0x60, 0xb0));
    }
}

#[test]
fn an_interrupt_that_could_not_be_raised_is_raised_later() {
    let attempts = std::sync::atomic::AtomicU32::new(0);
    let line =
        IrqLine::new(
            move |_| match attempts.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => Err(io::Error::other("no file descriptor left")),
                _ => Ok(()),
            },
        );
    let mut uart = Uart::new(line, Vec::new());
    uart.write(IER, 0x01);
    uart.enqueue(b"x");
    uart.read(SCRATCH);
    assert_eq!(edges(&uart), 1);
}
