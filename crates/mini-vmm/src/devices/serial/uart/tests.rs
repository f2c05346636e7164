// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The registers against the data sheet, by tables and by random sequences.

use proptest::prelude::*;

use super::*;

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

/// The expected IIR for a state: table IV of the data sheet.
fn identification(state: &SerialState) -> u8 {
    let (enabled, waiting) = (state.interrupt_enable, state.in_buffer.len());
    let level = FIFOS
        .iter()
        .find(|(fifo_control, _)| *fifo_control == state.fifo_control)
        .map(|(_, level)| *level);
    let pending = [
        (4, state.line_status & 0x1e != 0, 0x06),
        (1, waiting >= level.unwrap_or(1), 0x04),
        (1, waiting > 0, 0x0c),
        (2, state.thr_empty, 0x02),
        (8, state.modem_status & 0x0f != 0, 0x00),
    ];
    let highest = pending
        .iter()
        .find(|(bit, is_set, _)| enabled & bit != 0 && *is_set);
    highest.map_or(1, |(_, _, id)| *id) | if level.is_some() { 0xc0 } else { 0 }
}

#[derive(Clone, Debug)]
enum Step {
    Host(usize),
    Read(u8),
    Write(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..100usize).prop_map(Step::Host),
        (0..8u8).prop_map(Step::Read),
        Just(Step::Read(DATA)),
        (0..8u8, any::<u8>()).prop_map(|(register, value)| Step::Write(register, value)),
        any::<u8>().prop_map(|value| Step::Write(IIR_FCR, value & 0xc7 | 1)),
        (0..16u8).prop_map(|value| Step::Write(IER, value)),
        Just(Step::Write(LCR, 0x03)),
        Just(Step::Write(MCR, 0x0b)),
    ]
}

/// Input on its way, oldest first.
fn in_flight(state: &SerialState) -> Vec<u8> {
    [&state.in_buffer[state.looped.into()..], &state.unsent].concat()
}

proptest! {
    /// Whatever guest and host do: no byte is lost, doubled or reordered, IIR matches the state, and if something is
    /// pending, the output has risen since nothing was.
    #[test]
    fn nothing_is_lost(steps in prop::collection::vec(step(), 1..200)) {
        let mut uart = uart();
        let mut next = 0u8;
        for step in steps {
            let before = uart.save();
            let mut input = in_flight(&before);
            let divisor = before.line_control & 0x80 != 0;
            match step {
                Step::Host(count) => {
                    let bytes: Vec<u8> = (0..count).map(|i| next.wrapping_add(i as u8)).collect();
                    let taken = uart.enqueue(&bytes);
                    input.extend(&bytes[..taken]);
                    next = next.wrapping_add(taken as u8);
                }
                Step::Read(register) => {
                    let value = uart.read(register);
                    match register {
                        DATA if !divisor => {
                            prop_assert_eq!(value, before.in_buffer.first().copied().unwrap_or(0));
                            if before.looped == 0 && !before.in_buffer.is_empty() {
                                input.remove(0);
                            }
                        }
                        IIR_FCR => prop_assert_eq!(value, identification(&before)),
                        LSR => prop_assert_eq!(value, before.line_status),
                        _ => {}
                    }
                }
                Step::Write(register, value) => uart.write(register, value),
            }
            let after = uart.save();
            prop_assert_eq!(in_flight(&after), input);
            prop_assert!(after.check().is_ok(), "{:?}", after);
            let (was_high, is_high) = (identification(&before) & 1 == 0, identification(&after) & 1 == 0);
            let edges = edges(&uart);
            prop_assert!(edges <= u64::from(is_high), "{} edges", edges);
            prop_assert!(edges == 1 || was_high || !is_high, "no edge: {:?}", after);
            let restored = Uart::restore(&after, IrqLine::unconnected(), Vec::new()).unwrap();
            prop_assert_eq!(restored.save(), after);
            prop_assert_eq!(super::tests::edges(&restored), u64::from(is_high));
        }
    }

    /// A driver that is woken only by edges gets everything, however it reads and is disturbed.
    #[test]
    fn edges_are_enough(
        handler in handler(),
        disturbances in prop::collection::vec(disturbance(), 1..50),
        count in 1..2000usize,
    ) {
        let (fifo_control, _) = handler;
        let mut uart = uart_with(fifo_control, 0x05);
        let input: Vec<u8> = (0..count).map(|i| i as u8).collect();
        let (mut sent, mut received) = (0, Vec::new());
        let mut disturbances = disturbances.iter();
        loop {
            let taken = uart.enqueue(&input[sent..]);
            sent += taken;
            let disturbance = disturbances.next();
            disturb(&mut uart, disturbance.unwrap_or(&Disturbance::Nothing));
            // An interrupt controller keeps one edge while the handler runs.
            let interrupts = edges(&uart);
            if interrupts > 0 {
                (handler.1)(&mut uart, &mut received);
            }
            if taken == 0 && interrupts == 0 && disturbance.is_none() {
                break;
            }
        }
        prop_assert_eq!(received, input);
    }
}

/// FCR, and what an interrupt handler does.
type Handler = (u8, fn(&mut Uart<Vec<u8>>, &mut Vec<u8>));

fn handler() -> impl Strategy<Value = Handler> {
    let of_linux = |fcr| (fcr, linux as fn(&mut Uart<Vec<u8>>, &mut Vec<u8>));
    prop_oneof![
        prop::sample::select(vec![0x00, 0x01, 0x41, 0x81, 0xc1]).prop_map(of_linux),
        prop::sample::select(vec![0x01, 0x41, 0x81, 0xc1])
            .prop_map(|fcr| { (fcr, by_the_book as fn(&mut Uart<Vec<u8>>, &mut Vec<u8>)) }),
        Just((0x00, one_byte as fn(&mut Uart<Vec<u8>>, &mut Vec<u8>))),
    ]
}

/// Linux's 8250 driver: at most 256 bytes, then IIR again, until it says that nothing is pending.
fn linux(uart: &mut Uart<Vec<u8>>, received: &mut Vec<u8>) {
    while uart.read(IIR_FCR) & 1 == 0 {
        for _ in 0..256 {
            if uart.read(LSR) & 1 == 0 {
                break;
            }
            received.push(uart.read(DATA));
        }
    }
}

/// Reads as many bytes as the trigger level says, again while they wait; after a time-out one byte, and leaves.
fn by_the_book(uart: &mut Uart<Vec<u8>>, received: &mut Vec<u8>) {
    loop {
        match uart.read(IIR_FCR) & 0x0f {
            0x04 => {
                let level = uart.trigger_level();
                received.extend(read_bytes(uart, level));
            }
            0x0c => return received.push(uart.read(DATA)),
            0x06 => drop(uart.read(LSR)),
            0x01 => return,
            // The transmitter's, when it was a print's.
            _ => {}
        }
    }
}

/// Reads one byte per interrupt, which is enough without FIFOs.
fn one_byte(uart: &mut Uart<Vec<u8>>, received: &mut Vec<u8>) {
    if uart.read(LSR) & 1 != 0 {
        received.push(uart.read(DATA));
    }
}

#[derive(Clone, Debug)]
enum Disturbance {
    Nothing,
    /// A kernel message, with interrupts off.
    Print(usize),
    /// The transmitter's interrupt is enabled and disabled.
    Transmit,
    /// Settings are written again.
    Settings,
}

fn disturbance() -> impl Strategy<Value = Disturbance> {
    prop_oneof![
        Just(Disturbance::Nothing),
        (0..20usize).prop_map(Disturbance::Print),
        Just(Disturbance::Transmit),
        Just(Disturbance::Settings),
    ]
}

fn disturb(uart: &mut Uart<Vec<u8>>, disturbance: &Disturbance) {
    match *disturbance {
        Disturbance::Nothing => {}
        Disturbance::Print(count) => {
            uart.write(IER, 0);
            (0..count).for_each(|_| uart.write(DATA, b'x'));
            uart.write(IER, 0x05);
        }
        Disturbance::Transmit => {
            uart.write(IER, 0x07);
            uart.write(DATA, b'x');
            uart.write(IER, 0x05);
        }
        Disturbance::Settings => {
            let fifo_control = uart.save().fifo_control;
            uart.write(IIR_FCR, fifo_control);
            uart.write(LCR, 0x83);
            uart.write(DATA, 1);
            uart.write(LCR, 0x03);
        }
    }
}
