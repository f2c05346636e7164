// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a disk counts.

use std::io;
use std::thread::sleep;
use std::time::Duration;

use virtio_models::block::{Counts, Transfer};

use crate::support::*;

/// How often it happened, and the bytes.
const fn moved(transfer: Transfer) -> (u64, u64) {
    (transfer.requests, transfer.bytes)
}

#[test]
fn each_kind_of_request_is_counted_once() {
    let mut guest = Guest::new(64);
    assert_eq!(guest.counters.get(), Counts::default());
    guest.disk().short = 512;
    assert_eq!(guest.read(1, 1536).0, OK);
    assert_eq!(guest.read(1, 512).0, OK);
    assert_eq!(guest.write(2, &[1; 1024]), OK);
    assert_eq!(guest.status(header(FLUSH, 0)), OK);
    assert_eq!(guest.zero(DISCARD, 0, 1, 0), OK);
    assert_eq!(guest.zero(WRITE_ZEROES, 0, 8, 0), OK);
    guest.ask(header(GET_ID, 0), 21);
    let counts = guest.counters.get();
    assert_eq!(moved(counts.reads), (2, 2048));
    assert_eq!(moved(counts.writes), (1, 1024));
    assert_eq!((counts.flushes, counts.erases), (1, 2));
    assert_eq!((counts.failed, counts.invalid), (0, 0));
}

#[test]
fn mistakes_of_the_guest_and_failures_of_the_host_are_counted_apart() {
    let mut guest = Guest::new(64);
    assert_eq!(guest.read(64, 512).0, IOERR);
    assert_eq!(guest.status(header(99, 0)), UNSUPP);
    assert_eq!(guest.status(vec![0; 15]), IOERR);
    let counts = guest.counters.get();
    assert_eq!((counts.failed, counts.invalid), (0, 3));
    guest.disk().faults = [Some(io::Error::from_raw_os_error(libc::EIO))].into();
    assert_eq!(guest.read(0, 512).0, IOERR);
    let counts = guest.counters.get();
    assert_eq!((counts.failed, counts.invalid), (1, 3));
    assert_eq!(moved(counts.reads), (0, 0));
}

#[test]
fn the_time_of_a_request_is_that_of_the_host() {
    let mut guest = Guest::new(64);
    guest.disk().held = true;
    guest.send(header(IN, 0), 513);
    guest.machine.pump();
    // Many ticks of the coarse clock.
    let held = Duration::from_millis(100);
    sleep(held);
    assert_eq!(guest.counters.get().reads, Transfer::default());
    guest.disk().held = false;
    guest.machine.kick(0);
    guest
        .machine
        .pump_until(|machine| guest.driver.receive(machine, 0).is_some());
    let reads = guest.counters.get().reads;
    assert!(reads.time >= held / 2, "{reads:?}");
    assert_eq!(reads.time, reads.longest);
    assert_eq!(guest.read(0, 512).0, OK);
    assert_eq!(guest.counters.get().reads.longest, reads.longest);
}

#[test]
fn counters_survive_a_new_driver() {
    let mut guest = Guest::new(64);
    assert_eq!(guest.write(0, &[1; 512]), OK);
    guest.restart();
    assert_eq!(guest.write(0, &[1; 512]), OK);
    assert_eq!(moved(guest.counters.get().writes), (2, 1024));
}
