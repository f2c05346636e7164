// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every register with every width.

use crate::testing::{Driver, Machine, Port};

use super::{Subject, Traffic, machine, works};

/// The widths of accesses, including those that no instruction has.
const WIDTHS: [usize; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

/// The configuration reads the same with every width, and 0 beyond its end. Writes to it change nothing else.
///
/// # Panics
/// If this doesn't hold.
pub fn configuration_at_every_width<P: Port, S: Subject>(subject: &S) {
    let mut machine = machine::<P, S>(subject);
    let whole = machine.worker.device().config();
    let end = whole.len() as u64 + 16;
    for at in 0..end {
        for width in WIDTHS {
            let mut data = [0xcc; 8];
            machine.port.read(P::CONFIG + at, &mut data[..width]);
            let wanted = |i: usize| whole.get(at as usize + i).copied().unwrap_or(0);
            assert!(
                (0..width).all(|i| data[i] == wanted(i)),
                "{width} bytes at {at:#x}"
            );
            assert!(data[width..].iter().all(|byte| *byte == 0xcc));
        }
    }
    let generation = machine.port.generation();
    let mut traffic = Traffic::start(subject, &mut machine, u64::MAX);
    assert_eq!(machine.port.generation(), generation);
    for at in 0..end {
        for width in WIDTHS {
            for byte in [0, 1, 0x80, 0xff] {
                machine.write(P::CONFIG + at, &[byte; 8][..width]);
            }
        }
    }
    let published = machine.worker.device().config();
    let mut read = vec![0; published.len()];
    machine.port.read(P::CONFIG, &mut read);
    assert_eq!(
        read, published,
        "the driver reads what the device made of it"
    );
    assert_eq!(
        machine.worker.device().layout().config_len as usize,
        read.len()
    );
    traffic.driver.rings.clear();
    works(subject, &mut machine);
}

/// Reads and writes every register with every width, with values that are likely to have an effect. Unless
/// `spare_status`, the device may be reset.
fn touch_all<P: Port>(machine: &mut Machine<P>, spare_status: bool) {
    let (status, len) = P::STATUS;
    for offset in 0..P::SPAN {
        for width in WIDTHS {
            let mut data = [0; 8];
            machine.port.read(offset, &mut data[..width]);
            let end = offset + width as u64;
            if spare_status && offset < status + len as u64 && end > status {
                continue;
            }
            for value in [
                u64::MAX,
                0,
                1,
                4,
                0x0101_0101_0101_0101,
                0x8000_0000_8000_8000,
            ] {
                machine.write(offset, &value.to_le_bytes()[..width]);
            }
        }
    }
}

/// No register access does harm: the queues of a running device stay, and a device works after its reset.
///
/// # Panics
/// If this doesn't hold.
pub fn every_register_at_every_width<P: Port, S: Subject>(subject: &S) {
    // Before the driver's first access.
    let mut machine = machine::<P, S>(subject);
    touch_all(&mut machine, false);
    machine.pump();
    works(subject, &mut machine);
    // Half set up.
    Driver::prepare(&mut machine, u64::MAX);
    touch_all(&mut machine, false);
    machine.pump();
    works(subject, &mut machine);
    // While it runs.
    Driver::start(&mut machine, u64::MAX);
    machine.pump();
    let before = machine.port.registers().parameters();
    touch_all(&mut machine, true);
    assert_eq!(machine.port.registers().parameters(), before);
    assert!(machine.failures.is_empty(), "{:?}", machine.failures);
    machine.pump();
    assert!(machine.worker.is_running());
    touch_all(&mut machine, false);
    machine.pump();
    works(subject, &mut machine);
}
