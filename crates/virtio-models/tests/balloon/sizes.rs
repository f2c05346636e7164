// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Inflating, deflating, reports, and the target size.

use std::sync::Arc;

use virtio_models::balloon::Options;
use virtio_transport::Device;
use virtio_transport::testing::{Buffers, Driver, MEMORY, Machine, MmioPort, Port, memory};

use crate::support::*;

#[test]
fn an_inflation_is_few_ranges() {
    let mut guest = Guest::new();
    assert_eq!(
        guest.inflate(&[7, 6, 5, 20, 21, 5, 22, 8]),
        [pages(5..9), pages(20..23)]
    );
    assert_eq!(guest.counts().inflated, 7 * PAGE);
    // The requests of a burst make one call.
    for first in [0, 200, 100, 300] {
        let some: Vec<_> = (first..first + 100).collect();
        guest.queue(INFLATE, numbers(&some), 0);
    }
    assert_eq!(guest.kick(INFLATE).len(), 4);
    assert_eq!(guest.given.take(), [[pages(0..400)]]);
    assert_eq!(guest.counts().inflations, 5);
}

#[test]
fn a_deflation_is_only_acknowledged() {
    let mut guest = Guest::new();
    assert!(guest.send(DEFLATE, numbers(&[5, 6]), 0));
    assert!(guest.given.take().is_empty());
    assert_eq!(guest.counts().deflations, 1);
}

#[test]
fn reported_pages_are_given_back() {
    let mut guest = Guest::new();
    guest.offer(REPORTS, &[], &[(0x20_0000, 0x20_0000), (0x60_0000, 0x1000)]);
    guest.offer(REPORTS, &[], &[(0x40_0000, 0x20_0000)]);
    assert_eq!(guest.taken(REPORTS), 2);
    assert_eq!(guest.given.take(), [[pages(0x200..0x601)]]);
    let counts = guest.counts();
    assert_eq!(
        (counts.reports, counts.reported, counts.bad_reports),
        (2, 0x40_1000, 0)
    );
}

#[test]
fn pages_keep_the_drivers_value() {
    let mut guest = Guest::new();
    for (poison, given) in [(0, 1), (0xaaaa_aaaa, 0), (1, 0), (0, 1)] {
        guest.configure(12, poison);
        assert_eq!(guest.field(12), poison);
        guest.offer(REPORTS, &[], &[(0x20_0000, 0x20_0000)]);
        assert_eq!(guest.taken(REPORTS), 1);
        assert_eq!(guest.given.take().len(), given, "{poison:#x}");
        // What the driver fills itself goes back.
        assert_eq!(guest.inflate(&[5]), [pages(5..6)]);
    }
}

#[test]
fn the_driver_learns_of_a_new_target() {
    let mut guest = Guest::new();
    assert_eq!((guest.field(0), guest.field(4)), (0, 0));
    guest.machine.port.take_interrupts();
    guest.control.set_target(5000);
    guest.pump();
    assert_eq!(guest.field(0), 5000);
    assert!(guest.machine.port.take_interrupts().config);
    guest.configure(4, 1234);
    assert_eq!(guest.control.actual(), 1234);
    assert_eq!((guest.field(0), guest.field(4)), (5000, 1234));
    // The driver can't change the target.
    guest.configure(0, 99);
    assert_eq!((guest.field(0), guest.control.target()), (5000, 5000));
}

#[test]
fn a_target_waits_for_the_driver_and_outlives_a_reset() {
    let mut guest = Guest::new();
    guest.configure(4, 77);
    guest.configure(12, 78);
    guest.machine.set_status(0);
    guest.pump();
    assert_eq!(guest.control.actual(), 0);
    guest.control.set_target(42);
    let wanted = !0;
    guest.driver = Driver::start(&mut guest.machine, wanted);
    guest.pump();
    assert_eq!(
        (guest.field(0), guest.field(4), guest.field(12)),
        (42, 0, 0)
    );
}

#[test]
fn sizes_are_restored() {
    let mut guest = Guest::new();
    guest.control.set_target(5000);
    guest.configure(4, 1234);
    guest.configure(12, 7);
    guest.queue(STATS, stats(&[(4, 1)]), 0);
    guest.kick(STATS);
    let mut guest = guest.restored();
    assert_eq!(
        (guest.field(0), guest.field(4), guest.field(12)),
        (5000, 1234, 7)
    );
    assert_eq!(
        (guest.control.target(), guest.control.actual()),
        (5000, 1234)
    );
    // The value of free pages holds.
    guest.offer(REPORTS, &[], &[(0x20_0000, 0x20_0000)]);
    assert_eq!(guest.taken(REPORTS), 1);
    assert!(guest.given.take().is_empty());
}

#[test]
fn a_driver_may_number_its_queues_without_gaps() {
    let reporting = Options {
        reporting: true,
        ..Options::default()
    };
    for number in [2, 4] {
        let (control, given) = (Arc::default(), Notes::default());
        let device = device(reporting, &control, &given);
        let mut machine = Machine::<MmioPort>::new(Box::new(device), &memory(MEMORY));
        let mut driver = Driver::prepare(&mut machine, !0);
        // `QueueSel`, and `QueueReady`.
        for unused in [2_u32, 3, 4].into_iter().filter(|queue| *queue != number) {
            machine.write(0x30, &unused.to_le_bytes());
            machine.write(0x44, &[0; 4]);
        }
        driver.finish(&mut machine);
        driver.rings[number as usize].send(&Buffers {
            readable: Vec::new(),
            writable: vec![(0x4000, 0x2000)],
        });
        machine.kick(number as u16);
        machine.pump();
        assert_eq!(given.take(), [[pages(0x4..0x6)]], "{number}");
    }
}

#[test]
fn a_device_offers_what_it_was_made_for() {
    let offered = |options| {
        let (control, given) = (Arc::default(), Notes::default());
        let layout = Device::layout(&device(options, &control, &given));
        (layout.features & 0xff_ffff, layout.queues.len())
    };
    let none = Options::default();
    assert_eq!(offered(none), (0, 2));
    assert_eq!(
        offered(Options {
            stats: true,
            ..none
        }),
        (0b10, 3)
    );
    assert_eq!(
        offered(Options {
            deflate_on_oom: true,
            ..none
        }),
        (0b100, 2)
    );
    assert_eq!(
        offered(Options {
            hinting: true,
            ..none
        }),
        (0b1_1000, 4)
    );
    assert_eq!(
        offered(Options {
            reporting: true,
            ..none
        }),
        (0b11_0000, 5)
    );
    assert_eq!(offered(ALL), (0b11_1110, 5));
}
