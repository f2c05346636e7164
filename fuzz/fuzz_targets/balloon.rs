// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A balloon whose driver and VMM do what the input says: requests with any bytes at any addresses, configuration, rounds
//! of hints, pauses; or rings made of bytes. The host gets whole pages in order, and the device works after a reset.

#![no_main]

use std::ops::Range;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use virtio_models::balloon::{Balloon, Control, Host, Options, PAGE_SIZE};
use virtio_transport::testing::{
    Buffers, Driver, MEMORY, Machine, Memory, MmioPort, Request, memory,
};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

/// Checks what it gets.
struct Checked;

impl Host<Memory> for Checked {
    fn give_back(&mut self, _: &<Memory as GuestAddressSpace>::M, ranges: &[Range<u64>]) -> u64 {
        assert!(!ranges.is_empty());
        assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
        assert!(ranges.iter().all(|range| range.start < range.end));
        assert!(ranges.iter().all(|range| (range.start | range.end) % PAGE_SIZE == 0));
        ranges.len() as u64
    }
}

/// What a driver or the VMM does.
fn act(machine: &mut Machine<MmioPort>, driver: &mut Driver, control: &Control, step: &[u8; 8]) {
    let [what, queue, a, b, c, d, e, f] = *step;
    let at = MEMORY as u64 - PAGE_SIZE;
    let number = u32::from_le_bytes([a, b, c, d]);
    match what % 8 {
        0..5 => {
            let bytes = [a, b, c, d, e, f, a, b];
            let written = machine.memory.write_slice(&bytes.repeat(64), GuestAddress(at));
            written.expect("guest memory");
            let queue = u16::from(queue % 5);
            let address = u64::from(number) << (e % 34);
            let buffers = Buffers {
                readable: vec![(at, u32::from(f) * 2)],
                writable: vec![(address, u32::from(e) << (f % 20))],
            };
            driver.rings[usize::from(queue)].send(&buffers);
            machine.kick(queue);
            machine.pump();
            while driver.rings[usize::from(queue)].take().is_some() {}
        }
        5 => {
            let offset = 0x100 + u64::from(queue % 16);
            machine.write(offset, &[a, b, c, d][..usize::from(e % 4) + 1]);
        }
        6 => match queue % 4 {
            0 => control.set_target(number),
            1 => control.set_interval(number | 1 << 10),
            2 => drop(control.start_hinting(a % 2 == 0)),
            _ => control.stop_hinting(),
        },
        _ => {
            machine.pause().expect("a device that stops");
            machine.save();
            machine.resume();
        }
    }
    machine.pump();
}

/// A device that works returns what it gets.
fn works(machine: &mut Machine<MmioPort>) {
    let mut driver = Driver::start(machine, u64::MAX);
    machine.pump();
    for queue in [0, 1] {
        let readable = vec![1, 0, 0, 0];
        let request = Request {
            queue,
            readable,
            writable: 0,
        };
        driver.send(machine, &request);
        machine.kick(queue);
        machine.pump();
    }
    assert_eq!(driver.receive_all(machine).len(), 2);
}

fuzz_target!(|input: &[u8]| {
    let Some((&choices, bytes)) = input.split_first() else {
        return;
    };
    let options = Options {
        deflate_on_oom: true,
        stats: true,
        reporting: true,
        hinting: true,
    };
    let control = Arc::new(Control::new(0, 3600));
    let device = Balloon::<Memory>::new(options, Arc::clone(&control), Box::new(Checked));
    let mut machine = Machine::<MmioPort>::new(Box::new(device), &memory(MEMORY));
    // Leaves out a ring's feature, or one of the device's.
    let without = [0, 1 << 29, 1 << 28, 1 << 4][usize::from(choices >> 1) % 4];
    let mut driver = Driver::start(&mut machine, !without);
    machine.pump();
    if choices % 2 == 0 {
        let bytes = &bytes[..bytes.len().min(0x6000)];
        let written = machine.memory.write_slice(bytes, GuestAddress(0));
        written.expect("guest memory");
        (0..5).for_each(|queue| machine.kick(queue));
        machine.pump();
    } else {
        // A kept buffer needs descriptors, which are returned at the next request only.
        for step in bytes.as_chunks().0.iter().take(60) {
            act(&mut machine, &mut driver, &control, step);
        }
        assert!(machine.failures.is_empty());
    }
    works(&mut machine);
});
