// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests and hosts that do anything, in any order.

use proptest::prelude::*;

use super::*;

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
