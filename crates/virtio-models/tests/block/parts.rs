// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests that are performed in parts, and copies of misaligned buffers.

use std::io;

use virtio_models::block::{Cache, Disk};
use virtio_transport::device::Event;
use vm_memory::{Bytes, GuestAddress};

use crate::support::*;

/// Where the header, the status and the data of requests are in guest memory, behind the rings.
const HEADER: u64 = 0xa_0000;
const STATUS: u64 = 0xa_0100;
const DATA: u64 = 0xa_1000;
const KIB: u32 = 1 << 10;

/// Makes a request available whose data is in these buffers.
fn offer(guest: &mut Guest, queue: u16, kind: u32, sector: u64, data: &[(u64, u32)]) {
    write_header(guest, HEADER, kind, sector);
    let buffers = transfer(kind, HEADER, data.iter().copied(), STATUS);
    guest.driver.rings[usize::from(queue)].send(&buffers);
    guest.machine.kick(queue);
}

/// Waits for the answer to the only request. Returns its used length and status.
fn answer(guest: &mut Guest) -> (u32, u8) {
    let (ring, machine) = (&mut guest.driver.rings[0], &mut guest.machine);
    let mut used = None;
    machine.pump_until(|_| {
        used = ring.take();
        used.is_some()
    });
    machine.pump();
    assert!(ring.take().is_none(), "one answer");
    let status = machine.memory.read_obj(GuestAddress(STATUS));
    (used.expect("an answer").len, status.expect("a status"))
}

#[test]
fn a_large_transfer_is_many_operations_and_one_answer() {
    let mut guest = Guest::new(8192);
    let bytes: Vec<u8> = (0..96 << 10).map(|i| (i / 5) as u8).collect();
    let written = guest.machine.memory.write_slice(&bytes, GuestAddress(DATA));
    written.expect("the data");
    // 3.75 MiB, since the same memory is written again and again.
    let data = [(DATA, 96 * KIB); 40];
    offer(&mut guest, 0, OUT, 8, &data);
    assert_eq!(answer(&mut guest), (1, OK));
    let disk = guest.disk();
    assert_eq!(disk.bytes[4096..4096 + 40 * bytes.len()], bytes.repeat(40));
    assert_eq!(disk.bytes[4095], pattern(4095));
    let log = [
        "write 4096",
        "write 1052672",
        "write 2101248",
        "write 3149824",
    ];
    assert_eq!(disk.log, log);
    drop(disk);
    offer(&mut guest, 0, IN, 8, &data);
    assert_eq!(answer(&mut guest), (40 * 96 * KIB + 1, OK));
    let mut read = vec![0; bytes.len()];
    let copied = guest
        .machine
        .memory
        .read_slice(&mut read, GuestAddress(DATA));
    copied.expect("the data");
    assert_eq!(read, bytes);
    assert_eq!(
        guest.disk().log[4..],
        log.map(|entry| entry.replace("write", "read"))
    );
}

#[test]
fn a_fault_in_a_later_part_is_an_error() {
    let mut guest = Guest::new(8192);
    guest.disk().faults = [None, None, Some(io::Error::from_raw_os_error(libc::EIO))].into();
    offer(&mut guest, 0, IN, 0, &[(DATA, 96 * KIB); 40]);
    assert_eq!(answer(&mut guest), (2 << 20, IOERR));
    assert_eq!(guest.disk().log.len(), 3);
    let notices = guest.notices();
    assert!(notices[0].contains("read at sector 4096"), "{notices:?}");
}

#[test]
fn large_ranges_are_zeroed_and_discarded_in_parts() {
    let mut guest = Guest::new(32 << 10);
    assert_eq!(guest.zero(WRITE_ZEROES, 8, (32 << 10) - 8, 0), OK);
    let log = [
        "zeroes 4096 4190208",
        "zeroes 4194304 4194304",
        "zeroes 8388608 4194304",
        "zeroes 12582912 4194304",
    ];
    assert_eq!(guest.disk().log, log);
    assert!(guest.disk().bytes[4096..].iter().all(|byte| *byte == 0));
    assert_eq!(guest.disk().bytes[4095], pattern(4095));
    guest.disk().log.clear();
    guest.disk().more = 1 << 30;
    guest.resize();
    guest.machine.pump();
    assert_eq!(guest.zero(DISCARD, 1, 2 << 20, 0), OK);
    let log = guest.disk().log.clone();
    assert_eq!(log.len(), 17);
    assert_eq!(log[0], "discard 512 67108352");
    assert_eq!(log[1], "discard 67108864 67108864");
    assert_eq!(log[16], "discard 1073741824 512");
}

#[test]
fn a_write_in_parts_is_flushed_once() {
    let disk = Disk {
        cache: Cache::Writethrough,
        ..Disk::default()
    };
    let mut guest = Guest::with(16 << 10, disk, u64::MAX);
    assert_eq!(guest.zero(WRITE_ZEROES, 0, 16 << 10, 0), OK);
    assert_eq!(guest.disk().log[1..], ["zeroes 4194304 4194304", "flush"]);
}

#[test]
fn zeros_are_written_for_what_the_host_does_not_zero() {
    for error in [libc::EINVAL, libc::EOPNOTSUPP] {
        let mut guest = Guest::new(16 << 10);
        for _ in 0..2 {
            let fault = Some(io::Error::from_raw_os_error(error));
            guest.disk().faults = [None, fault].into();
            assert_eq!(guest.zero(WRITE_ZEROES, 2, (16 << 10) - 3, 0), OK);
        }
        let disk = guest.disk();
        let end = disk.bytes.len() - 512;
        assert!(disk.bytes[1024..end].iter().all(|byte| *byte == 0));
        assert_eq!(disk.bytes[1023], pattern(1023));
        assert_eq!(disk.bytes[end], pattern(end));
        assert_eq!(disk.log[2], "write 4194304", "what is left");
        drop(disk);
        let notices = guest.notices();
        assert_eq!(notices.len(), 1, "{notices:?}");
        assert!(notices[0].contains("can't do a write of zeros"));
    }
}

/// A disk with blocks of 4 KiB, used without direct I/O: the host discards and zeroes whole blocks only.
#[test]
fn ranges_too_small_for_the_host_are_no_errors() {
    let mut guest = Guest::new(64);
    guest.disk().erases = 4096;
    for _ in 0..3 {
        assert_eq!(guest.zero(WRITE_ZEROES, 1, 2, 0), OK);
        assert_eq!(guest.zero(WRITE_ZEROES, 8, 8, 1), OK);
        assert_eq!(guest.zero(DISCARD, 1, 1, 0), UNSUPP);
        assert_eq!(guest.zero(DISCARD, 16, 8, 0), OK);
    }
    assert!(guest.disk().bytes[512..1536].iter().all(|byte| *byte == 0));
    assert_eq!(guest.disk().bytes[1536], pattern(1536));
    let notices = guest.notices();
    assert_eq!(notices.len(), 2, "{notices:?}");
    assert!(notices[1].contains("can't do a discard"), "{notices:?}");
}

/// Direct I/O needs whole blocks in each buffer, but less alignment of addresses: a disk with blocks of 4 KiB.
#[test]
fn buffers_of_partial_blocks_are_copied() {
    let disk = Disk {
        block_size: 4096,
        alignment: 4,
        length_alignment: 4096,
        ..Disk::default()
    };
    let mut guest = Guest::with(64, disk, u64::MAX);
    (guest.disk().alignment, guest.disk().length_alignment) = (4, 4096);
    let memory = guest.machine.memory.clone();
    let fill = |at, byte| memory.write_slice(&[byte; 2048], GuestAddress(at));
    fill(DATA, 1).expect("the data");
    fill(DATA + 8192, 2).expect("the data");
    let halves = [(DATA, 2048), (DATA + 8192, 2048)];
    offer(&mut guest, 0, OUT, 8, &halves);
    assert_eq!(answer(&mut guest), (1, OK));
    assert_eq!(guest.disk().bytes[4096..6144], [1; 2048]);
    assert_eq!(guest.disk().bytes[6144..8192], [2; 2048]);
    fill(DATA, 0).expect("the data");
    offer(&mut guest, 0, IN, 8, &halves);
    assert_eq!(answer(&mut guest), (4097, OK));
    assert_eq!(
        memory.read_obj::<u8>(GuestAddress(DATA + 2047)).ok(),
        Some(1)
    );
    // A whole block at an address that is a multiple of 4 is not copied.
    offer(&mut guest, 0, IN, 8, &[(DATA + 4, 4096)]);
    assert_eq!(answer(&mut guest), (4097, OK));
}

#[test]
fn copies_in_flight_are_limited() {
    let disk = Disk {
        alignment: 512,
        queues: 4,
        ..Disk::default()
    };
    let mut guest = Guest::with(256, disk, u64::MAX);
    guest.disk().held = true;
    let each = 80;
    for queue in 0..4 {
        for _ in 0..each {
            offer(&mut guest, queue, IN, 0, &[(DATA + 8, 128 * KIB)]);
        }
    }
    guest.machine.pump();
    assert_eq!(guest.disk().in_flight, 256, "16 MiB in copies of 64 KiB");
    guest.disk().held = false;
    let (rings, machine) = (&mut guest.driver.rings, &mut guest.machine);
    machine.kick(0);
    let mut answered = [0; 4];
    machine.pump_until(|_| {
        for (ring, answered) in rings.iter_mut().zip(&mut answered) {
            while let Some(used) = ring.take() {
                assert_eq!(used.len, 128 * KIB + 1);
                *answered += 1;
            }
        }
        answered == [each; 4]
    });
    let mut read = vec![0; 128 << 10];
    let copied = machine.memory.read_slice(&mut read, GuestAddress(DATA + 8));
    copied.expect("the data");
    assert!(read.iter().enumerate().all(|(i, byte)| *byte == pattern(i)));
}

/// A request that fails gives its space back.
#[test]
fn copies_that_fail_are_not_in_flight() {
    let disk = Disk {
        alignment: 512,
        ..Disk::default()
    };
    let mut guest = Guest::with(256, disk, u64::MAX);
    for _ in 0..300 {
        guest.disk().faults = [Some(io::Error::from_raw_os_error(libc::EIO))].into();
        offer(&mut guest, 0, OUT, 0, &[(DATA + 8, 64 * KIB)]);
        assert_eq!(answer(&mut guest), (1, IOERR));
    }
}

#[test]
fn a_refused_submission_is_tried_again() {
    let mut guest = Guest::new(64);
    for refusals in [1, 2, 70] {
        guest.disk().refusals = refusals;
        assert_eq!(guest.write(1, &[refusals as u8; 512]), OK);
        assert_eq!(guest.disk().refusals, 0);
    }
    // Also when the device stops.
    guest.disk().refusals = 3;
    guest.send(header(FLUSH, 0), 1);
    let (worker, poller) = (&mut guest.machine.worker, &mut guest.machine.poller);
    worker.process(poller, Event::Queue(0), &mut Vec::new());
    assert_eq!(guest.disk().in_flight, 1);
    guest.machine.pause().expect("a stop");
    assert_eq!(guest.driver.receive_all(&guest.machine).len(), 1);
}
