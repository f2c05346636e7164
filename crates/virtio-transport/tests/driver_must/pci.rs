// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rules for the PCI transport.

use std::sync::Arc;

use virtio_transport::AnyDevice;
use virtio_transport::layout::Layout;
use virtio_transport::pci::{
    COMMON, Capability, DEVICE, ISR, NO_VECTOR, NOTIFY, PciTransport, Vectors,
};
use virtio_transport::registers::Effect;
use virtio_transport::testing::{Driver, Echo, Machine, Memory, PciPort, Port};

use crate::common;
use crate::support::{READY, get_16, get_32, is_live, machine, prepared, serve, started, works};

type Pci = Machine<PciPort>;

/// The common configuration as a whole.
fn common(machine: &mut Pci) -> Vec<u8> {
    let mut image = vec![0; 0x40];
    machine.port.read(COMMON, &mut image);
    image
}

/// The fields of the common configuration: offset, width, and whether they are writable.
const FIELDS: &[(u64, usize, bool)] = &[
    (0x00, 4, true),
    (0x04, 4, false),
    (0x08, 4, true),
    (0x0c, 4, true),
    (0x10, 2, true),
    (0x12, 2, false),
    (0x14, 1, true),
    (0x15, 1, false),
    (0x16, 2, true),
    (0x18, 2, true),
    (0x1a, 2, true),
    (0x1c, 2, true),
    (0x1e, 2, false),
    (0x20, 8, true),
    (0x28, 8, true),
    (0x30, 8, true),
    (0x38, 2, false),
    (0x3a, 2, false),
];

pub fn a_field_is_accessed_by_another_width() {
    let (mut machine, _) = prepared::<PciPort>();
    let whole = common(&mut machine);
    // Reads can have any width and offset. They return parts of the whole, and 0 beyond the end.
    for at in 0..0x48 {
        for width in 1..=8 {
            let mut data = vec![0xcc; width];
            machine.port.read(COMMON + at as u64, &mut data);
            let mut wanted = whole[at.min(0x40)..].to_vec();
            wanted.resize(width.max(wanted.len()), 0);
            assert_eq!(data, wanted[..width], "{width} bytes at {at:#x}");
        }
    }
    // Writes of another width, or inside a field, are ignored.
    for at in 0..0x48_u64 {
        for width in 1..=8 {
            let is_field = |(offset, len, _): &(u64, usize, bool)| {
                let halves = *len == 8 && width == 4 && at == offset + 4;
                halves || at == *offset && (width == *len || *len == 8 && width == 4)
            };
            if FIELDS.iter().any(is_field) {
                continue;
            }
            for byte in [0, 1, 0xff] {
                assert_eq!(
                    machine.port.write(COMMON + at, &vec![byte; width]),
                    Effect::None
                );
                assert_eq!(common(&mut machine), whole, "{width} bytes at {at:#x}");
            }
        }
    }
    // A 64-bit address can also be written as a whole.
    machine.set_status(0);
    Driver::prepare(&mut machine, u64::MAX);
    let (mut machine, _) = at_features_ok();
    machine.write(COMMON + 0x20, &0x1_2345_6780_u64.to_le_bytes());
    assert_eq!(get_32(&mut machine, COMMON + 0x20), 0x2345_6780);
    assert_eq!(get_32(&mut machine, COMMON + 0x24), 1);
}

pub fn the_pci_configuration_is_accessed_by_another_width() {
    common::the_configuration_is_accessed_by_another_width::<PciPort>();
}

/// A machine at `FEATURES_OK`, without queues.
fn at_features_ok() -> (Pci, ()) {
    let mut machine = machine::<PciPort>();
    machine.set_status(1);
    machine.set_status(3);
    machine.port.set_driver_features(1, 1);
    machine.set_status(11);
    assert_eq!(machine.port.status(), 11);
    (machine, ())
}

struct NoVectors;

impl Vectors for NoVectors {
    fn count(&self) -> u16 {
        3
    }

    fn fire(&self, vector: u16) {
        panic!("vector {vector} is fired");
    }
}

fn transport() -> PciTransport {
    let echo = Echo::<Memory>::new();
    let echo: &dyn AnyDevice<Memory> = &echo;
    PciTransport::new(echo.layout(), echo.config(), Arc::new(NoVectors)).unwrap()
}

pub fn a_capability_is_written() {
    let transport = transport();
    let capabilities = transport.capabilities();
    let (last, fixed) = capabilities.split_last().unwrap();
    assert_eq!(*last, Capability::Live(18));
    let bodies = [
        // Length, kind, BAR, ID and padding; then offset and length in the BAR.
        "10010000 0000 00200000 40000000",
        "14020000 0000 00400000 08000000 04000000",
        "10030000 0000 00280000 01000000",
        "10040000 0000 00300000 08000000",
    ];
    for (capability, body) in fixed.iter().zip(bodies) {
        let Capability::Fixed(bytes) = capability else {
            panic!("{capability:?}");
        };
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, body.replace(' ', ""));
    }
    assert_eq!(fixed.len(), bodies.len());
    // In the window capability, length and kind are read-only, too.
    let mut transport = transport;
    for at in 0..24 {
        for width in [1, 2, 4] {
            let _ = transport.write_window(at, &[0xff, 0xff, 0xff, 0xff][..width]);
        }
    }
    let mut head = [0; 8];
    transport.read_window(2, &mut head);
    assert_eq!(head, [20, 5, 0xff, 0, 0, 0, 0xff, 0xff]);
}

pub fn a_read_only_field_is_written() {
    let (mut machine, mut driver) = started::<PciPort>(u64::MAX);
    let before = common(&mut machine);
    for (at, width, _) in FIELDS.iter().filter(|(_, _, written)| !written) {
        for byte in [0, 1, 0xff] {
            machine.write(COMMON + at, &vec![byte; *width]);
            assert_eq!(common(&mut machine), before, "field {at:#x}");
        }
    }
    serve(&mut machine, &mut driver);
}

pub fn a_queue_size_is_no_power_of_two() {
    let (mut machine, ()) = at_features_ok();
    for size in [0_u16, 3, 63, 65, 128, 0x8000, 0xffff] {
        machine.write(COMMON + 0x18, &size.to_le_bytes());
        assert_eq!(get_16(&mut machine, COMMON + 0x18), 64, "size {size}");
    }
    machine.write(COMMON + 0x18, &[32, 0]);
    assert_eq!(get_16(&mut machine, COMMON + 0x18), 32);
}

pub fn a_queue_is_enabled_first() {
    let (mut machine, mut driver) = prepared::<PciPort>();
    machine.write(COMMON + 0x16, &[0, 0]);
    let before = common(&mut machine);
    machine.write(COMMON + 0x18, &[8, 0]);
    for at in (0x20..0x38).step_by(4) {
        machine.write(COMMON + at, &[0x40, 0, 0, 0]);
    }
    assert_eq!(common(&mut machine), before);
    driver.finish(&mut machine);
    serve(&mut machine, &mut driver);
}

pub fn a_driver_begins_before_its_reset_is_done() {
    let (mut machine, _) = started::<PciPort>(u64::MAX);
    let effect = machine.port.set_status(0);
    assert!(matches!(effect, Effect::Post(_)), "no vCPU waits");
    assert_eq!(machine.port.status(), READY);
    assert_eq!(machine.port.set_status(1), Effect::None);
    assert_eq!(machine.port.set_status(0), Effect::None);
    machine.effect(effect);
    machine.pump();
    assert_eq!(machine.port.status(), 0);
    assert_eq!(get_16(&mut machine, COMMON + 0x10), NO_VECTOR);
    works(&mut machine);
}

pub fn a_queue_is_disabled() {
    let (mut machine, mut driver) = prepared::<PciPort>();
    for value in [0_u16, 2, 0xffff] {
        machine.write(COMMON + 0x16, &[0, 0]);
        machine.write(COMMON + 0x1c, &value.to_le_bytes());
        assert!(machine.port.is_queue_ready(0));
    }
    driver.finish(&mut machine);
    machine.write(COMMON + 0x16, &[0, 0]);
    machine.write(COMMON + 0x1c, &[0, 0]);
    serve(&mut machine, &mut driver);
}

/// Sets the window.
fn aim(transport: &mut PciTransport, bar: u8, offset: u64, length: u32) {
    assert_eq!(transport.write_window(4, &[bar]), Effect::None);
    let offset = (offset as u32).to_le_bytes();
    assert_eq!(transport.write_window(8, &offset), Effect::None);
    assert_eq!(
        transport.write_window(12, &length.to_le_bytes()),
        Effect::None
    );
}

fn through(transport: &mut PciTransport, width: usize) -> Vec<u8> {
    let mut data = vec![0xcc; width];
    transport.read_window(16, &mut data);
    data
}

pub fn a_window_is_not_aligned() {
    let mut transport = transport();
    // The last byte of the device's configuration is 0x42.
    aim(&mut transport, 0, DEVICE + 4, 2);
    assert_eq!(through(&mut transport, 2), [0, 0x42]);
    aim(&mut transport, 0, DEVICE + 3, 2);
    assert_eq!(through(&mut transport, 2), [0, 0]);
    aim(&mut transport, 0, DEVICE + 2, 4);
    assert_eq!(through(&mut transport, 4), [0; 4]);
    // Of a longer access the window takes what it has; a shorter one is nothing.
    aim(&mut transport, 0, DEVICE + 4, 2);
    assert_eq!(through(&mut transport, 4), [0, 0x42, 0, 0]);
    aim(&mut transport, 0, DEVICE + 4, 2);
    assert_eq!(through(&mut transport, 1), [0]);
    aim(&mut transport, 0, COMMON + 0x14, 2);
    let _ = transport.write_window(16, &[1]);
    aim(&mut transport, 0, COMMON + 0x15, 2);
    let _ = transport.write_window(16, &[1, 1]);
    assert_eq!(transport.registers().status(), 0);
    aim(&mut transport, 0, COMMON + 0x14, 1);
    assert_eq!(
        transport.write_window(16, &[1, 0xff, 0xff, 0xff]),
        Effect::None
    );
    assert_eq!(transport.registers().status(), 1, "it works as it should");
}

pub fn a_window_is_aimed_at_nothing() {
    let mut transport = transport();
    for (bar, offset, length) in [
        (1, DEVICE + 4, 2),
        (0xff, DEVICE + 4, 2),
        (0, 0, 4),
        (0, 0x1000, 4),
        (0, 0x7ffc, 4),
        (0, 0x8000, 4),
        (0, 0xffff_fffc, 4),
        (0, DEVICE + 4, 0),
        (0, DEVICE, 3),
        (0, DEVICE, 8),
        (0, DEVICE, u32::MAX),
    ] {
        aim(&mut transport, bar, offset, length);
        for width in [1, 2, 3, 4] {
            assert_eq!(through(&mut transport, width), vec![0; width]);
            assert_eq!(transport.write_window(16, &vec![0xff; width]), Effect::None);
        }
    }
}

pub fn an_event_gets_a_vector_that_does_not_exist() {
    let (mut machine, ()) = at_features_ok();
    for at in [0x10, 0x1a] {
        for vector in [3_u16, 64, 0x7ff, 0x8000, 0xfffe, NO_VECTOR] {
            machine.write(COMMON + at, &[1, 0]);
            assert_eq!(get_16(&mut machine, COMMON + at), 1);
            machine.write(COMMON + at, &vector.to_le_bytes());
            assert_eq!(
                get_16(&mut machine, COMMON + at),
                NO_VECTOR,
                "vector {vector:#x}"
            );
        }
    }
    // A missing queue has none.
    machine.write(COMMON + 0x16, &[2, 0]);
    machine.write(COMMON + 0x1a, &[1, 0]);
    assert_eq!(get_16(&mut machine, COMMON + 0x1a), NO_VECTOR);
    // Without a vector, an interrupt is a bit of the ISR, which a read clears.
    let mut transport = transport();
    transport.interrupt().queue(1);
    transport.interrupt().queue(99);
    transport.interrupt().config();
    for wanted in [3, 0] {
        let mut isr = [0xcc; 4];
        transport.read_bar(ISR, &mut isr);
        assert_eq!(isr, [wanted, 0, 0, 0]);
    }
}

pub fn a_notification_has_another_form() {
    let (mut machine, _) = started::<PciPort>(u64::MAX);
    // The address selects the queue. Value and width of the write don't matter.
    for data in [&[0xff][..], &[7, 7], &[1, 2, 3, 4], &[0; 8]] {
        assert_eq!(machine.port.write(NOTIFY, data), Effect::Kick(0));
        assert_eq!(machine.port.write(NOTIFY + 4, data), Effect::Kick(1));
        for beside in [
            NOTIFY + 1,
            NOTIFY + 2,
            NOTIFY + 8,
            NOTIFY + 0x3ffc,
            NOTIFY - 4,
        ] {
            assert_eq!(machine.port.write(beside, data), Effect::None);
        }
    }
    assert_eq!(get_32(&mut machine, NOTIFY), 0);
    assert!(is_live(&mut machine));
    // A device with the most queues fits.
    let layout = Layout {
        id: 1,
        features: 0,
        requires: &[],
        queues: vec![1; 1024],
        config_len: 0,
    };
    assert_eq!(PciTransport::vectors(&layout), 256);
    assert!(PciTransport::new(layout, Vec::new(), Arc::new(NoVectors)).is_ok());
}
