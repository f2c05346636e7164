// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Host failures, and drivers that continue.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use virtio_models::block::{Block, Disk, Engine, Image, Notice};
use virtio_models::rate::{Limit, Limiter, Limits};
use virtio_transport::device::Event;
use virtio_transport::testing::{
    Driver, Flags, MEMORY, Machine, Memory, MmioPort, Request, memory,
};
use virtio_transport::worker::SaveError;
use vm_memory::{Bytes, GuestAddress};

use crate::support::*;

fn os(error: i32) -> Option<io::Error> {
    Some(io::Error::from_raw_os_error(error))
}

#[test]
fn errors_of_the_host_are_answers_and_said_once() {
    let mut guest = Guest::new(64);
    for _ in 0..100 {
        guest.disk().faults = [os(libc::ENOSPC), os(libc::EIO), os(libc::EIO)].into();
        assert_eq!(guest.write(2, &[1; 512]), IOERR);
        assert_eq!(guest.read(3, 512).0, IOERR);
        assert_eq!(guest.status(header(FLUSH, 0)), IOERR);
    }
    let notices = guest.notices();
    assert_eq!(notices.len(), 2, "{notices:?}");
    assert!(notices[0].contains("write at sector 2") && notices[0].contains("No space"));
    assert!(notices[1].contains("read at sector 3"));
    assert_eq!(guest.write(2, &[1; 512]), OK);
    assert_eq!(guest.status(header(FLUSH, 0)), OK);
}

#[test]
fn kinds_of_errors_are_not_said_without_end() {
    let mut guest = Guest::new(64);
    for error in 20..120 {
        guest.disk().faults = [os(error)].into();
        assert_eq!(guest.read(3, 512).0, IOERR);
    }
    assert_eq!(guest.notices().len(), 16);
}

#[test]
fn what_the_host_interrupts_is_repeated() {
    for alignment in [1, 4096] {
        let disk = Disk {
            alignment,
            ..Disk::default()
        };
        let mut guest = Guest::with(64, disk, u64::MAX);
        for error in [libc::EINTR, libc::EAGAIN] {
            let fail = |guest: &Guest| {
                let faults = (0..16).map(|_| os(error));
                guest.disk().faults = faults.chain([None]).collect();
            };
            fail(&guest);
            assert_eq!(guest.write(2, &[3; 1024]), OK);
            fail(&guest);
            assert_eq!(guest.read(2, 1024), (OK, vec![3; 1024]));
            fail(&guest);
            assert_eq!(guest.status(header(FLUSH, 0)), OK);
            fail(&guest);
            assert_eq!(guest.zero(WRITE_ZEROES, 2, 1, 0), OK);
            assert_eq!(guest.read(2, 512), (OK, vec![0; 512]));
        }
        assert!(guest.notices().is_empty());
        // But not for ever.
        guest.disk().faults = (0..40).map(|_| os(libc::EINTR)).collect();
        assert_eq!(guest.read(2, 512).0, IOERR);
        assert_eq!(guest.notices().len(), 1);
        guest.disk().faults.clear();
        assert_eq!(guest.read(2, 512).0, OK);
    }
}

#[test]
fn what_is_moved_in_parts_is_moved_as_a_whole() {
    let mut guest = Guest::new(64);
    for short in [1, 511, 513, 1000] {
        guest.disk().short = short;
        let wanted: Vec<u8> = (0..2048).map(pattern).collect();
        assert_eq!(guest.read(0, 2048), (OK, wanted));
        let data: Vec<u8> = (0..2048).map(|i| (i * 3 + short) as u8).collect();
        assert_eq!(guest.write(32, &data), OK);
        assert_eq!(guest.disk().bytes[32 * 512..36 * 512], data);
    }
}

#[test]
fn a_fault_in_the_middle_is_an_error() {
    let mut guest = Guest::new(64);
    guest.disk().short = 512;
    guest.disk().faults = [None, os(libc::EIO)].into();
    let reply = guest.ask(header(IN, 0), 2049);
    assert_eq!(reply.bytes[2048], IOERR);
    assert_eq!(reply.len, 512, "a sector; the status doesn't follow it");
}

#[test]
fn a_truncated_image_is_an_error() {
    let mut guest = Guest::new(64);
    guest.disk().bytes.truncate(1000);
    assert_eq!(guest.read(1, 512).0, IOERR);
    assert_eq!(guest.read(5, 512).0, IOERR);
    assert_eq!(guest.write(5, &[1; 512]), IOERR);
    assert_eq!(guest.read(0, 512).0, OK);
}

#[test]
fn a_discard_that_the_host_can_not_do_is_unsupported() {
    let mut guest = Guest::new(64);
    for _ in 0..2 {
        guest.disk().faults = [os(libc::EOPNOTSUPP), os(libc::EIO)].into();
        assert_eq!(guest.zero(DISCARD, 0, 1, 0), UNSUPP);
        assert_eq!(guest.zero(DISCARD, 0, 1, 0), IOERR);
    }
    let notices = guest.notices();
    assert_eq!(notices.len(), 2, "{notices:?}");
    assert!(notices[0].contains("can't do a discard"), "{notices:?}");
}

#[test]
fn misaligned_buffers_are_copied() {
    let disk = Disk {
        alignment: 512,
        ..Disk::default()
    };
    let mut guest = Guest::with(600, disk, u64::MAX);
    guest.disk().alignment = 512;
    // The driver's buffers are aligned to 16 bytes, in three parts, and larger than one copied piece.
    let data: Vec<u8> = (0..150 << 10).map(|i| (i / 7) as u8).collect();
    assert_eq!(guest.write(1, &data), OK);
    assert_eq!(guest.disk().bytes[512..512 + data.len()], data);
    assert_eq!(guest.read(1, data.len() as u32), (OK, data));
    assert_eq!(guest.disk().log.len(), 6);
}

#[test]
fn a_reset_and_a_pause_wait_for_what_is_in_flight() {
    let mut guest = Guest::new(64);
    guest.disk().held = true;
    guest.send(header(IN, 0), 513);
    guest.machine.pump();
    let (poller, mut answers) = (&mut guest.machine.poller, Vec::new());
    let now = std::time::Instant::now();
    let paused = guest.machine.worker.pause(poller, now, &mut answers);
    assert_eq!(paused.unwrap_err().in_flight, 1);
    let reset = virtio_transport::message::Command::Reset { epoch: 99 };
    let worker = &mut guest.machine.worker;
    worker.perform(&mut guest.machine.poller, reset, &mut answers);
    assert!(worker.is_draining() && answers.is_empty());
    guest.disk().held = false;
    let source = virtio_transport::device::Event::Source(0);
    let worker = &mut guest.machine.worker;
    worker.process(&mut guest.machine.poller, source, &mut answers);
    assert!(!worker.is_draining());
    assert_eq!(answers.len(), 1, "the reset is done");
    assert_eq!(guest.machine.poller.watched(), 0);
}

#[test]
fn a_flush_before_a_save_has_a_deadline() {
    let mut guest = Guest::new(64);
    assert_eq!(guest.write(0, &[1; 512]), OK);
    guest.machine.pause().unwrap();
    guest.disk().held = true;
    for _ in 0..2 {
        let late = guest.machine.worker.save(Instant::now()).unwrap_err();
        let SaveError::Flush(error) = late else {
            panic!("{late}");
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
    // The flushes that were given up fail now. They are not mistaken for the new one.
    guest.disk().held = false;
    guest.disk().faults = [os(libc::EIO), os(libc::EIO), None].into();
    guest.machine.save();
    guest.disk().faults = [os(libc::EIO)].into();
    let failed = guest.machine.worker.save(Instant::now()).unwrap_err();
    assert!(matches!(failed, SaveError::Flush(_)), "{failed}");
    guest.machine.resume();
    assert_eq!(guest.read(0, 512), (OK, vec![1; 512]));
}

#[test]
fn a_status_in_a_hole_harms_nobody() {
    let mut guest = Guest::new(64);
    let ring = &mut guest.driver.rings[0];
    let hole = virtio_transport::testing::MEMORY as u64;
    let (at, len) = (hole - 0x1000, 16);
    let memory = &guest.machine.memory;
    let written = memory.write_slice(&header(IN, 0), GuestAddress(at));
    written.unwrap();
    ring.descriptor(0, (at, len), Flags::NEXT, 1);
    ring.descriptor(1, (at + 512, 512), Flags::NEXT.and(Flags::WRITE), 2);
    ring.descriptor(2, (hole, 1), Flags::WRITE, 0);
    ring.offer(0);
    guest.machine.kick(0);
    guest.machine.pump();
    let used = guest.driver.rings[0].take().expect("an answer");
    assert_eq!((used.head, used.len), (0, 512));
}

/// Limits with a clock that stands. It counts milliseconds.
pub fn limiter(limits: Limits) -> (Option<Limiter>, Arc<AtomicU64>) {
    let clock = Arc::new(AtomicU64::new(0));
    let time = Arc::clone(&clock);
    let now = move || Duration::from_millis(time.load(Ordering::Relaxed));
    let limiter = Limiter::with_clock(limits, Box::new(now)).expect("a timer");
    (limiter, clock)
}

/// A disk with a limit and a clock that stands.
fn limited(limits: Limits, disk: Disk) -> (Guest, Arc<AtomicU64>) {
    let (limiter, clock) = limiter(limits);
    (Guest::limited(64, disk, u64::MAX, limiter), clock)
}

/// Waits for all answers.
fn finish(guest: &mut Guest) {
    let (driver, machine) = (&mut guest.driver, &mut guest.machine);
    machine.pump_until(|machine| {
        driver.receive_all(machine);
        driver.in_flight() == 0
    });
}

#[test]
fn a_limited_disk_goes_on_as_its_clock_does() {
    let limits = Limits {
        iops: Limit::per_second(1000),
        bandwidth: Limit::per_second(1 << 30),
    };
    let (mut guest, clock) = limited(limits, Disk::default());
    for sector in 0..10 {
        guest.send(header(IN, sector), 513);
    }
    for answered in 1..=10 {
        let (driver, machine) = (&mut guest.driver, &mut guest.machine);
        machine.pump_until(|machine| {
            driver.receive_all(machine);
            driver.in_flight() <= 10 - answered
        });
        // The clock stands, so timers that end change nothing.
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(1));
            machine.pump();
        }
        driver.receive_all(machine);
        assert_eq!(driver.in_flight(), 10 - answered);
        clock.fetch_add(1, Ordering::Relaxed);
    }
    // What waits is no request in flight.
    guest.send(header(IN, 0), 513);
    guest.send(header(IN, 0), 513);
    guest.machine.pump();
    guest.machine.pause().unwrap();
    assert_eq!(guest.machine.poller.watched(), 0);
}

#[test]
fn more_requests_than_a_turn_follow_a_wait_for_the_limiter() {
    let limits = Limits {
        iops: None,
        bandwidth: Limit::per_second(1 << 20),
    };
    let (mut guest, clock) = limited(limits, Disk::default());
    guest.send(header(IN, 0), 4097);
    guest.machine.pump();
    // They cost nothing, but wait for the end of the debt.
    for _ in 0..70 {
        guest.send(header(FLUSH, 0), 1);
    }
    guest.machine.pump();
    clock.store(1000, Ordering::Relaxed);
    finish(&mut guest);
}

#[test]
fn zeros_count_as_bytes() {
    let limits = Limits {
        iops: None,
        bandwidth: Limit::per_second(1 << 20),
    };
    let (mut guest, clock) = limited(limits, Disk::default());
    assert_eq!(guest.zero(WRITE_ZEROES, 0, 64, 0), OK);
    guest.send(header(IN, 0), 513);
    guest.machine.pump();
    assert_eq!(guest.driver.in_flight(), 1, "it waits for the zeros");
    clock.store(1000, Ordering::Relaxed);
    finish(&mut guest);
}

#[test]
fn a_limit_is_shared_by_all_queues() {
    share_a_limit(|_| {});
}

#[test]
fn a_notification_overtakes_no_queue_that_waits() {
    share_a_limit(|guest| guest.machine.kick(1));
}

/// Two queues have eight requests each, and one at a time is allowed. `before` is called before each.
fn share_a_limit(before: impl Fn(&mut Guest)) {
    let limits = Limits {
        iops: Limit::per_second(1000),
        bandwidth: None,
    };
    let disk = Disk {
        queues: 2,
        ..Disk::default()
    };
    let (mut guest, clock) = limited(limits, disk);
    for queue in [0, 1] {
        for _ in 0..8 {
            let request = Request {
                queue,
                readable: header(IN, 0),
                writable: 513,
            };
            guest.driver.send(&guest.machine, &request);
        }
        guest.machine.kick(queue);
    }
    let mut answered = [0_u32; 2];
    for total in 1..=8 {
        before(&mut guest);
        let (driver, machine) = (&mut guest.driver, &mut guest.machine);
        machine.pump_until(|machine| {
            for queue in [0, 1] {
                while driver.receive(machine, queue).is_some() {
                    answered[usize::from(queue)] += 1;
                }
            }
            answered[0] + answered[1] >= total
        });
        clock.fetch_add(1, Ordering::Relaxed);
    }
    assert!(answered[0].abs_diff(answered[1]) <= 2, "{answered:?}");
}

#[test]
fn a_flood_of_requests_leaves_others_their_turn() {
    let mut guest = Guest::new(64);
    guest.machine.pump();
    for _ in 0..90 {
        let request = Request {
            queue: 0,
            readable: header(FLUSH, 0),
            writable: 1,
        };
        guest.driver.send(&guest.machine, &request);
    }
    let (worker, poller) = (&mut guest.machine.worker, &mut guest.machine.poller);
    let mut answers = Vec::new();
    worker.process(poller, Event::Queue(0), &mut answers);
    assert_eq!(worker.again(), Some(Event::Queue(0)));
    assert_eq!(guest.disk().log.len(), 64);
    let (worker, poller) = (&mut guest.machine.worker, &mut guest.machine.poller);
    worker.process(poller, Event::Queue(0), &mut answers);
    assert_eq!(worker.again(), None);
    assert_eq!(guest.driver.receive_all(&guest.machine).len(), 90);
}

#[test]
fn a_file_that_is_cut_is_an_error_of_its_requests() {
    for threads in [false, true] {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * 512).unwrap();
        let image = Image::raw(file.try_clone().unwrap(), Disk::default()).unwrap();
        let image = if threads {
            image.with_engine(Engine::Sync)
        } else {
            image
        };
        let (said, notices) = std::sync::mpsc::channel();
        let report = Box::new(move |notice| said.send(notice).unwrap());
        let block = Block::<Memory>::new(image, report);
        let mut machine = Machine::<MmioPort>::new(Box::new(block), &memory(MEMORY));
        let mut driver = Driver::start(&mut machine, u64::MAX);
        let mut status = |machine: &mut Machine<MmioPort>| {
            let request = Request {
                queue: 0,
                readable: header(IN, 9),
                writable: 513,
            };
            driver.send(machine, &request);
            machine.kick(0);
            let mut status = None;
            machine.pump_until(|machine| {
                let reply = driver.receive(machine, 0);
                status = reply.map(|(_, reply)| reply.bytes[512]);
                status.is_some()
            });
            status
        };
        assert_eq!(status(&mut machine), Some(OK));
        file.set_len(512).unwrap();
        assert_eq!(status(&mut machine), Some(IOERR));
        assert_eq!(status(&mut machine), Some(IOERR));
        file.set_len(64 * 512).unwrap();
        assert_eq!(status(&mut machine), Some(OK));
        let failed = notices
            .try_iter()
            .filter(|n| matches!(n, Notice::Failed { .. }));
        assert_eq!(failed.count(), 1);
    }
}
