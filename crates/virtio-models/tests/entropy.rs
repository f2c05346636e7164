// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Runs virtio-transport's suite on the entropy device, and tests its own behaviour.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use virtio_models::entropy::{Entropy, MAX_REQUEST};
use virtio_models::rate::{Limit, Limiter, Limits};
use virtio_transport::testing::{
    Driver, MEMORY, Machine, Memory, MmioPort, Reply, Request, Subject, memory,
};

/// Requests for 1 to 60 random bytes.
struct Randoms;

fn request(writable: u32) -> Request {
    Request {
        queue: 0,
        readable: Vec::new(),
        writable,
    }
}

impl Subject for Randoms {
    type Device = Entropy<Memory>;

    fn device(&self) -> Self::Device {
        Entropy::new()
    }

    fn request(&self, n: u32) -> Request {
        request(1 + n % 60)
    }

    fn check(&self, n: u32, _: u64, reply: &Reply) {
        assert_eq!(reply.len, 1 + n % 60);
        let blank = reply.bytes.iter().filter(|byte| **byte == Driver::BLANK);
        assert!(blank.count() < 8, "{:x?}", reply.bytes);
    }
}

virtio_transport::device_suite!(entropy, Randoms);

/// The answer to one request.
fn answer(request: &Request) -> Reply {
    let mut machine = Machine::<MmioPort>::new(Box::new(Entropy::new()), &memory(MEMORY));
    let mut driver = Driver::start(&mut machine, u64::MAX);
    driver.send(&machine, request);
    machine.kick(0);
    machine.pump();
    driver.receive(&machine, 0).expect("an answer").1
}

#[test]
fn a_request_gets_no_more_than_the_cap() {
    let cap = MAX_REQUEST as u32;
    let reply = answer(&request(cap + 4096));
    assert_eq!(reply.len, cap);
    let rest = &reply.bytes[cap as usize..];
    assert!(rest.iter().all(|byte| *byte == Driver::BLANK));
}

#[test]
fn no_two_answers_are_alike() {
    let (a, b) = (answer(&request(64)), answer(&request(64)));
    assert_ne!(a.bytes, b.bytes);
}

#[test]
fn a_request_without_room_is_answered() {
    let readable = Request {
        readable: vec![1, 2, 3],
        ..request(0)
    };
    assert_eq!(answer(&readable).len, 0);
}

/// The rules for drivers (virtio 1.4, 5.4.6.1), and what happens to one that breaks them.
///
/// No device sees whether a driver examines the used length: "MUST examine the length written".
#[test]
fn the_rules_of_drivers_are_about_buffers() {
    println!("5.4.6.1: MUST NOT place device-readable buffers into the queue");
    let odd = Request {
        readable: vec![Driver::BLANK; 100],
        ..request(60)
    };
    let reply = answer(&odd);
    assert_eq!(reply.len, 60, "they are ignored");
    Randoms.check(59, 0, &reply);
}

#[test]
fn a_full_queue_leaves_other_devices_their_turn() {
    let mut machine = Machine::<MmioPort>::new(Box::new(Entropy::new()), &memory(MEMORY));
    let mut driver = Driver::start(&mut machine, 0);
    machine.pump();
    for _ in 0..20 {
        driver.send(&machine, &request(8));
    }
    machine.kick(0);
    machine.step();
    assert_eq!(driver.receive_all(&machine).len(), 16);
    machine.pump();
    assert_eq!(driver.receive_all(&machine).len(), 4);
}

/// A limiter of this many requests per second, whose clock stands.
fn limiter(requests: u64) -> Option<Limiter> {
    let limits = Limits {
        iops: Limit::per_second(requests),
        ..Limits::default()
    };
    Limiter::with_clock(limits, Box::new(|| Duration::ZERO)).expect("a timer")
}

#[test]
fn requests_beyond_the_limit_wait_for_it() {
    let clock = Arc::new(AtomicU64::new(0));
    let now = Arc::clone(&clock);
    let limits = Limits {
        bandwidth: Limit::per_second(8000),
        ..Limits::default()
    };
    let read = Box::new(move || Duration::from_millis(now.load(Ordering::Relaxed)));
    let limiter = Limiter::with_clock(limits, read).expect("a timer");
    let device = Entropy::new().with_limiter(limiter);
    let mut machine = Machine::<MmioPort>::new(Box::new(device), &memory(MEMORY));
    let mut driver = Driver::start(&mut machine, u64::MAX);
    for _ in 0..10 {
        driver.send(&machine, &request(8));
    }
    machine.kick(0);
    for answered in 1..=10 {
        machine.pump_until(|machine| {
            driver.receive_all(machine);
            driver.in_flight() <= 10 - answered
        });
        assert_eq!(
            driver.in_flight(),
            10 - answered,
            "a byte is a millisecond's eighth"
        );
        clock.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn what_waits_for_the_limit_is_there_after_a_pause() {
    let device = Entropy::new().with_limiter(limiter(1));
    let mut machine = Machine::<MmioPort>::new(Box::new(device), &memory(MEMORY));
    let mut driver = Driver::start(&mut machine, u64::MAX);
    for _ in 0..2 {
        driver.send(&machine, &request(8));
    }
    machine.kick(0);
    machine.pump();
    machine.pause().expect("a pause");
    assert_eq!(machine.poller.watched(), 0);
    machine.resume();
    machine.pump();
    driver.receive_all(&machine);
    assert_eq!(driver.in_flight(), 1);
}
