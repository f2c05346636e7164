// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! More requests, or larger ones, than the device or the host takes at once.

use std::sync::atomic::Ordering;

use virtio_models::block::Disk;
use virtio_models::rate::{Limit, Limits};
use virtio_transport::device::Event;
use virtio_transport::testing::{DriverRing, Port};

use crate::faults::limiter;
use crate::support::*;

/// Where the tables, the header and the status of requests are in guest memory, behind the rings.
const TABLE: u64 = 0xa_0000;
const HEADER: u64 = 0xb_0000;
const STATUS: u64 = 0xb_0100;
const DATA: u64 = 0xb_1000;
/// The longest chain.
const DESCRIPTORS: usize = 1024;

fn fragmented(kind: u32, ring: &mut DriverRing) {
    let data = (0..DESCRIPTORS as u64 - 2).map(|i| (DATA + i % 64 * 1024, 512));
    ring.send_indirect(TABLE, &transfer(kind, HEADER, data, STATUS));
}

/// Takes the answers of all queues until there are `each` of every queue.
fn collect(guest: &mut Guest, each: u32) {
    let (rings, machine) = (&mut guest.driver.rings, &mut guest.machine);
    let mut answered = vec![0; rings.len()];
    machine.pump_until(|_| {
        for (ring, answered) in rings.iter_mut().zip(&mut answered) {
            while ring.take().is_some() {
                *answered += 1;
            }
        }
        answered.iter().all(|answered| *answered == each)
    });
}

#[test]
fn pieces_in_flight_are_limited() {
    for kind in [IN, OUT] {
        let disk = Disk {
            queues: 4,
            ..Disk::default()
        };
        let mut guest = Guest::with(2048, disk, u64::MAX);
        guest.disk().held = true;
        write_header(&guest, HEADER, kind, 0);
        for queue in 0..4 {
            for _ in 0..150 {
                fragmented(kind, &mut guest.driver.rings[usize::from(queue)]);
            }
            guest.machine.kick(queue);
        }
        guest.machine.pump();
        assert_eq!(guest.disk().in_flight, 64, "64 Ki pieces");
        guest.disk().held = false;
        guest.machine.kick(0);
        collect(&mut guest, 150);
        assert_eq!(guest.disk().in_flight, 0);
    }
}

#[test]
fn a_crowded_disk_stops_and_starts() {
    let mut guest = Guest::new(2048);
    write_header(&guest, HEADER, IN, 0);
    guest.disk().held = true;
    for _ in 0..150 {
        fragmented(IN, &mut guest.driver.rings[0]);
    }
    guest.machine.kick(0);
    guest.machine.pump();
    guest.disk().held = false;
    guest.machine.pause().expect("a stop");
    assert_eq!(guest.driver.rings[0].available(), 150);
    let log = guest.disk().log.len();
    assert_eq!(log, 64, "what waits is not taken");
    guest.machine.resume();
    collect(&mut guest, 150);
}

/// Requests wait for space, then for the limiter, and the other way round.
#[test]
fn a_crowded_disk_keeps_its_limit() {
    let limits = Limits {
        iops: Limit::per_second(100),
        bandwidth: None,
    };
    let disk = Disk {
        queues: 2,
        ..Disk::default()
    };
    let (limiter, clock) = limiter(limits);
    let mut guest = Guest::limited(2048, disk, u64::MAX, limiter);
    write_header(&guest, HEADER, IN, 0);
    guest.disk().held = true;
    for queue in 0..2 {
        for _ in 0..100 {
            fragmented(IN, &mut guest.driver.rings[usize::from(queue)]);
        }
        guest.machine.kick(queue);
    }
    // One for each 10 ms, until there is no space.
    for _ in 0..100 {
        clock.fetch_add(10, Ordering::Relaxed);
        guest.machine.kick(0);
        guest.machine.pump();
    }
    assert_eq!(guest.disk().in_flight, 64);
    guest.disk().held = false;
    guest.machine.kick(0);
    guest.machine.pump();
    // Idle for a second, it has saved what it may take in a tenth of one.
    let taken = guest.disk().log.len();
    assert!((64..=64 + 11).contains(&taken), "{taken}");
    clock.fetch_add(10_000, Ordering::Relaxed);
    let (rings, machine) = (&mut guest.driver.rings, &mut guest.machine);
    let mut answered = 0;
    machine.pump_until(|_| {
        for ring in rings.iter_mut() {
            while ring.take().is_some() {
                answered += 1;
            }
        }
        clock.fetch_add(10, Ordering::Relaxed);
        answered == 200
    });
}

/// With nothing in flight, no completion ends the wait.
#[test]
fn a_host_that_refuses_a_submission_is_asked_again_later() {
    let mut guest = Guest::new(64);
    guest.machine.pump();
    let watched = guest.machine.poller.watched();
    guest.disk().refusals = 1;
    guest.send(header(FLUSH, 0), 1);
    let (worker, poller) = (&mut guest.machine.worker, &mut guest.machine.poller);
    worker.process(poller, Event::Queue(0), &mut Vec::new());
    assert_eq!(worker.again(), None, "the thread would spin");
    assert_eq!(poller.watched(), watched + 1, "a timer");
    collect(&mut guest, 1);
}

/// A device that drains gets no events of its queues.
#[test]
fn a_reset_ends_although_the_host_refused_a_submission() {
    let mut guest = Guest::new(64);
    guest.machine.pump();
    guest.disk().refusals = 3;
    guest.send(header(FLUSH, 0), 1);
    let (worker, poller) = (&mut guest.machine.worker, &mut guest.machine.poller);
    worker.process(poller, Event::Queue(0), &mut Vec::new());
    guest.machine.set_status(0);
    guest
        .machine
        .pump_until(|machine| machine.port.status() == 0);
    assert_eq!(guest.disk().refusals, 0);
}
