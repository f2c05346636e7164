// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Limits of what a guest sends and receives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use virtio_models::rate::{Limit, Limiter, Limits};

use crate::frames::PLAIN;
use crate::support::*;

/// A limiter of this many frames per second, with its clock in nanoseconds.
pub fn limiter(frames: u64) -> (Option<Limiter>, Arc<AtomicU64>) {
    let clock = Arc::new(AtomicU64::new(0));
    let now = Arc::clone(&clock);
    let limits = Limits {
        iops: Limit::per_second(frames),
        ..Limits::default()
    };
    let read = Box::new(move || Duration::from_nanos(now.load(Ordering::Relaxed)));
    let limiter = Limiter::with_clock(limits, read).expect("a timer");
    (limiter, clock)
}

#[test]
fn each_direction_keeps_its_limit() {
    let wire = Wire::new();
    let (rx, rx_clock) = limiter(1_000_000);
    let (tx, tx_clock) = limiter(1_000_000);
    let mut guest = Guest::with(config(), std::slice::from_ref(&wire), u64::MAX, (rx, tx));
    for _ in 0..100 {
        guest.post(0, &[200]);
        wire.deliver(PLAIN, frame(60));
        guest.queue(1, &[&PLAIN[..], &frame(60)].concat(), &[], 0);
    }
    guest.machine.kick(0);
    guest.machine.kick(1);
    let mut received = 0;
    // The timer ends each wait, but only the clock counts.
    let mut wait_for = |guest: &mut Guest, frames: (usize, usize)| {
        let counters = Arc::clone(&guest.counters);
        let wanted = (frames.0 as u64, frames.1 as u64);
        let is_there = |_: &mut _| (counters.received(), counters.sent()) == wanted;
        guest.machine.pump_until(is_there);
        received += guest.received().len();
        assert_eq!(received, frames.0);
    };
    wait_for(&mut guest, (1, 1));
    rx_clock.fetch_add(10_000, Ordering::Relaxed);
    wait_for(&mut guest, (11, 1));
    tx_clock.fetch_add(50_000, Ordering::Relaxed);
    wait_for(&mut guest, (11, 51));
    rx_clock.fetch_add(1_000_000, Ordering::Relaxed);
    tx_clock.fetch_add(1_000_000, Ordering::Relaxed);
    wait_for(&mut guest, (100, 100));
}

#[test]
fn limits_change_while_frames_wait() {
    // A byte per second: one frame, and then none for a minute.
    let slow = Limits {
        bandwidth: Limit::per_second(1),
        ..Limits::default()
    };
    let wire = Wire::new();
    let mut guest = Guest::one(&wire, u64::MAX);
    let exchange = |guest: &mut Guest, count| {
        for _ in 0..count {
            guest.post(0, &[200]);
            wire.deliver(PLAIN, frame(60));
            guest.queue(1, &[&PLAIN[..], &frame(60)].concat(), &[], 0);
        }
        guest.machine.kick(0);
        guest.machine.kick(1);
        guest.machine.pump();
        (guest.counters.received(), guest.counters.sent())
    };
    assert_eq!(exchange(&mut guest, 3), (3, 3));
    guest.control.limit(slow, Limits::default());
    guest.machine.pump();
    assert_eq!(exchange(&mut guest, 3), (4, 6));
    guest.control.limit(Limits::default(), slow);
    guest.machine.pump();
    assert_eq!(exchange(&mut guest, 3), (9, 7));
    guest.control.limit(Limits::default(), Limits::default());
    guest.machine.pump();
    assert_eq!(exchange(&mut guest, 0), (9, 9));
    // The next driver has what was said last.
    guest.control.limit(slow, slow);
    guest.restart(u64::MAX);
    assert_eq!(exchange(&mut guest, 3), (10, 10));
}

/// Both limits allow a frame at a time, by turns.
#[test]
fn each_pair_has_its_share_of_both_limits() {
    share_both_limits(|_| {});
}

#[test]
fn a_notification_overtakes_no_pair_that_waits() {
    share_both_limits(|guest| {
        guest.machine.kick(2);
        guest.machine.kick(3);
    });
}

/// Two pairs have forty frames each way. `before` is called before each frame.
fn share_both_limits(before: impl Fn(&mut Guest)) {
    let wires = [Wire::new(), Wire::new()];
    let (rx, rx_clock) = limiter(1_000_000);
    let (tx, tx_clock) = limiter(1_000_000);
    let mut guest = Guest::with(config(), &wires, u64::MAX, (rx, tx));
    assert_eq!(guest.command(4, &[4, 0, 2, 0]), 0);
    for pair in [0, 1] {
        for _ in 0..40 {
            guest.post(2 * pair, &[200]);
            wires[usize::from(pair)].deliver(PLAIN, frame(60));
            let sent = [&PLAIN[..], &frame(60)].concat();
            guest.queue(2 * pair + 1, &sent, &[], 0);
        }
    }
    (0..4).for_each(|queue| guest.machine.kick(queue));
    for round in 1..=40 {
        let counters = Arc::clone(&guest.counters);
        let is_there = |_: &mut _| (counters.received(), counters.sent()) == (round, round);
        guest.machine.pump_until(is_there);
        rx_clock.fetch_add(1_000, Ordering::Relaxed);
        before(&mut guest);
        let is_there = |_: &mut _| counters.received() == round + 1;
        guest.machine.pump_until(is_there);
        tx_clock.fetch_add(1_000, Ordering::Relaxed);
        before(&mut guest);
    }
    for wire in &wires {
        let line = wire.line();
        let (received, sent) = (40 - line.incoming.len(), line.sent.len());
        assert!((18..24).contains(&received), "{received} received");
        assert!((18..24).contains(&sent), "{sent} sent");
    }
}
