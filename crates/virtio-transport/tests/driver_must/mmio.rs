// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rules for the MMIO transport.

use virtio_transport::registers::Effect;
use virtio_transport::testing::{Machine, MmioPort, Port};

use crate::common;
use crate::support::{get_32, is_live, machine, prepared, serve, started};

type Mmio = Machine<MmioPort>;

/// The readable registers.
const READ: &[u64] = &[
    0x00, 0x04, 0x08, 0x0c, 0x10, 0x34, 0x44, 0x60, 0x70, 0xb0, 0xb4, 0xb8, 0xbc, 0xfc,
];
/// The writable registers.
const WRITTEN: &[u64] = &[
    0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4,
];

/// All readable registers.
fn image(machine: &mut Mmio) -> Vec<u32> {
    (0..0x100)
        .step_by(4)
        .map(|at| get_32(machine, at))
        .collect()
}

fn set_32(machine: &mut Mmio, offset: u64, value: u32) {
    machine.write(offset, &value.to_le_bytes());
}

pub fn a_register_is_accessed_that_does_not_exist() {
    let (mut machine, mut driver) = started::<MmioPort>(u64::MAX);
    let before = image(&mut machine);
    assert_eq!(before[..4], [0x7472_6976, 2, 42, 0]);
    for at in (0..0x100).step_by(4) {
        if !READ.contains(&at) {
            assert_eq!(before[at as usize / 4], 0, "register {at:#x}");
        }
        if !WRITTEN.contains(&at) {
            for value in [0, 1, u32::MAX] {
                assert_eq!(machine.port.write(at, &value.to_le_bytes()), Effect::None);
            }
            assert_eq!(image(&mut machine), before, "register {at:#x}");
        }
    }
    serve(&mut machine, &mut driver);
}

pub fn a_read_only_register_is_written() {
    let (mut machine, mut driver) = prepared::<MmioPort>();
    let before = image(&mut machine);
    for at in READ.iter().filter(|at| !WRITTEN.contains(at)) {
        for value in [0, 1, u32::MAX] {
            set_32(&mut machine, *at, value);
            assert_eq!(image(&mut machine), before, "register {at:#x}");
        }
    }
    driver.finish(&mut machine);
    serve(&mut machine, &mut driver);
}

pub fn a_write_only_register_is_read() {
    let (mut machine, _) = started::<MmioPort>(u64::MAX);
    for at in WRITTEN.iter().filter(|at| !READ.contains(at)) {
        assert_eq!(get_32(&mut machine, *at), 0, "register {at:#x}");
    }
}

pub fn a_register_is_accessed_by_another_width() {
    let (mut machine, mut driver) = started::<MmioPort>(u64::MAX);
    let before = image(&mut machine);
    for at in 0..0x100 {
        for width in 1..=8 {
            if width == 4 && at % 4 == 0 {
                continue;
            }
            let mut data = vec![0xcc; width];
            machine.port.read(at, &mut data);
            assert_eq!(data, vec![0; width], "{width} bytes at {at:#x}");
            for byte in [0, 1, 0xff] {
                assert_eq!(machine.port.write(at, &vec![byte; width]), Effect::None);
            }
        }
    }
    assert_eq!(image(&mut machine), before);
    serve(&mut machine, &mut driver);
}

pub fn the_mmio_configuration_is_accessed_by_another_width() {
    common::the_configuration_is_accessed_by_another_width::<MmioPort>();
}

pub fn features_are_not_selected() {
    let mut machine = machine::<MmioPort>();
    let offered = machine.worker.device().layout().offered();
    assert_eq!(
        get_32(&mut machine, 0x10),
        offered as u32,
        "it is the lower half"
    );
    machine.set_status(1);
    machine.set_status(3);
    set_32(&mut machine, 0x20, 1);
    set_32(&mut machine, 0x24, 1);
    set_32(&mut machine, 0x20, 1);
    machine.set_status(11);
    assert_eq!(machine.port.registers().parameters().0, 1 | 1 << 32);
}

pub fn a_queue_size_is_not_offered() {
    for size in [0, 3, 65, 128, 0x1_0040, u32::MAX] {
        let (mut machine, driver) = prepared::<MmioPort>();
        set_32(&mut machine, 0x30, 0);
        set_32(&mut machine, 0x44, 0);
        set_32(&mut machine, 0x38, size);
        set_32(&mut machine, 0x44, 1);
        driver.finish(&mut machine);
        assert!(is_live(&mut machine));
        let (_, queues) = machine.port.registers().parameters();
        assert_eq!(queues[0].map(|queue| queue.size), Some(64), "size {size}");
    }
}

pub fn a_ready_queue_is_changed() {
    let (mut machine, driver) = prepared::<MmioPort>();
    let before = machine.port.registers().parameters();
    set_32(&mut machine, 0x30, 1);
    let registers = [0x38, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4];
    for at in registers {
        set_32(&mut machine, at, 16);
        assert_eq!(
            machine.port.registers().parameters(),
            before,
            "register {at:#x}"
        );
    }
    for value in [2, u32::MAX] {
        set_32(&mut machine, 0x44, value);
        assert!(machine.port.is_queue_ready(1));
    }
    // Before DRIVER_OK it may be undone, but not later.
    set_32(&mut machine, 0x44, 0);
    assert!(!machine.port.is_queue_ready(1));
    driver.finish(&mut machine);
    assert!(is_live(&mut machine));
    for queue in [0, 1] {
        set_32(&mut machine, 0x30, queue);
        set_32(&mut machine, 0x44, 1 - queue);
        set_32(&mut machine, 0x44, 1 - queue);
        set_32(&mut machine, 0x44, queue);
        assert_eq!(machine.port.is_queue_ready(queue as u16), queue == 0);
    }
}

pub fn an_undefined_interrupt_is_acknowledged() {
    let (mut machine, _) = started::<MmioPort>(u64::MAX);
    machine.port.interrupt().queue(0);
    machine.port.interrupt().config();
    set_32(&mut machine, 0x64, 0xffff_fffc);
    assert_eq!(get_32(&mut machine, 0x60), 3);
    set_32(&mut machine, 0x64, 0xffff_fffe);
    assert_eq!(get_32(&mut machine, 0x60), 1);
    set_32(&mut machine, 0x64, u32::MAX);
    assert_eq!(get_32(&mut machine, 0x60), 0);
}

pub fn shared_memory_is_used() {
    let (mut machine, _) = started::<MmioPort>(u64::MAX);
    for region in [0, 1, u32::MAX] {
        set_32(&mut machine, 0xac, region);
        for at in [0xb0, 0xb4, 0xb8, 0xbc] {
            assert_eq!(get_32(&mut machine, at), u32::MAX, "there is no region");
        }
    }
}

pub fn an_interrupt_is_not_acknowledged() {
    let (mut machine, mut driver) = started::<MmioPort>(u64::MAX);
    for _ in 0..3 {
        let ring = &driver.rings[0];
        ring.set_used_event(ring.available());
        serve(&mut machine, &mut driver);
        assert_eq!(get_32(&mut machine, 0x60) & 1, 1, "the bit stays");
    }
    assert!(
        machine.port.take_interrupts().queue,
        "and each time there is an edge"
    );
    // A reset clears it.
    machine.port.interrupt().config();
    machine.set_status(0);
    machine.pump_until(|machine| machine.port.status() == 0);
    assert_eq!(get_32(&mut machine, 0x60), 0);
}
