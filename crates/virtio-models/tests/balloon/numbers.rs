// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Statistics.

use crate::support::*;

fn told(guest: &Guest) -> Vec<(&'static str, u64)> {
    guest.control.stats().iter().collect()
}

#[test]
fn a_buffer_is_kept_until_the_next_request() {
    let mut guest = Guest::new();
    assert!(!guest.send(STATS, stats(&[(4, 1000), (5, 2000)]), 0));
    assert_eq!(
        told(&guest),
        [("free_memory", 1000), ("total_memory", 2000)]
    );
    // A new interval begins with a request.
    guest.control.set_interval(1800);
    guest.pump();
    assert_eq!(guest.kick(DEFLATE).len(), 1);
    assert!(!guest.send(STATS, stats(&[(5, 1), (4, 999)]), 0));
    assert_eq!(told(&guest), [("free_memory", 999), ("total_memory", 1)]);
    // The same one is no news.
    guest.control.set_interval(1800);
    guest.pump();
    assert!(guest.kick(DEFLATE).is_empty());
    assert_eq!(guest.counts().stats, 2);
}

#[test]
fn the_timer_asks() {
    let mut guest = Guest::new();
    guest.control.set_interval(1);
    guest.pump();
    guest.queue(STATS, stats(&[(0, 1)]), 0);
    guest.machine.kick(STATS);
    let Guest {
        machine, driver, ..
    } = &mut guest;
    for _ in 0..2 {
        machine.pump_until(|machine| driver.receive(machine, STATS).is_some());
        let request = virtio_transport::testing::Request {
            queue: STATS,
            readable: stats(&[(1, 5)]),
            writable: 0,
        };
        driver.send(machine, &request);
        machine.kick(STATS);
    }
    machine.pump();
    assert_eq!(told(&guest), [("swap_in", 1), ("swap_out", 5)]);
}

#[test]
fn an_interval_of_nothing_asks_no_more() {
    let mut guest = Guest::new();
    guest.control.set_interval(0);
    guest.pump();
    assert!(!guest.send(STATS, stats(&[(0, 1)]), 0));
    guest.control.set_interval(3600);
    guest.pump();
    assert_eq!(guest.kick(STATS).len(), 1);
}

#[test]
fn unknown_numbers_are_ignored_and_missing_ones_stay() {
    let mut guest = Guest::new();
    let mut known: Vec<_> = (0..16).map(|tag| (tag, 100 + u64::from(tag))).collect();
    guest.queue(STATS, stats(&known), 0);
    guest.kick(STATS);
    assert_eq!(told(&guest).len(), 16);
    for (name, value) in [
        ("swap_in", 100),
        ("hugetlb_failures", 109),
        ("direct_reclaim", 115),
    ] {
        assert!(told(&guest).contains(&(name, value)), "{name}");
    }
    known = vec![(16, 1), (u16::MAX, 2), (7, u64::MAX)];
    guest.control.set_interval(7);
    guest.pump();
    guest.queue(STATS, stats(&known), 0);
    guest.kick(STATS);
    assert!(told(&guest).contains(&("disk_caches", u64::MAX)));
    assert!(told(&guest).contains(&("free_memory", 104)));
    assert_eq!(told(&guest).len(), 16);
    assert_eq!(guest.counts().bad_stats, 0);
}

#[test]
fn bad_statistics_are_read_as_far_as_possible() {
    for cut in [1, 9, 11, 19] {
        let mut guest = Guest::new();
        let mut bytes = stats(&[(4, 1), (5, 2)]);
        bytes.truncate(cut);
        guest.queue(STATS, bytes, 0);
        guest.kick(STATS);
        assert_eq!(told(&guest).len(), cut / 10, "{cut}");
        assert_eq!(guest.counts().bad_stats, 1);
    }
    // Outside of memory, and in buffers for the device.
    let mut guest = Guest::new();
    guest.offer(STATS, &[(1 << 40, 20)], &[]);
    assert_eq!(guest.taken(STATS), 0);
    assert_eq!(guest.counts().bad_stats, 1);
    let mut guest = Guest::new();
    assert!(!guest.send(STATS, Vec::new(), 20));
    assert!(told(&guest).is_empty());
}

#[test]
fn a_flood_is_read_once_per_request() {
    let mut guest = Guest::new();
    for n in 0..20 {
        guest.queue(STATS, stats(&[(4, n)]), 0);
    }
    guest.queue(STATS, stats(&[(4, 7)]).repeat(100), 0);
    for n in 0..20 {
        assert_eq!(guest.kick(STATS).len(), usize::from(n > 0));
        assert_eq!(told(&guest), [("free_memory", n)]);
        guest.control.set_interval(100 + n as u32);
        guest.machine.pump();
    }
    assert_eq!(guest.counts().stats, 21);
    assert_eq!(guest.counts().bad_stats, 1, "too long");
}

#[test]
fn a_kept_buffer_is_there_after_a_pause_and_a_restore() {
    let mut guest = Guest::new();
    guest.queue(STATS, stats(&[(4, 5)]), 0);
    guest.kick(STATS);
    guest.machine.pause().expect("a device that stops");
    assert_eq!(guest.machine.poller.watched(), 0);
    guest.machine.resume();
    guest.pump();
    let mut guest = guest.restored();
    assert_eq!(told(&guest), [("free_memory", 5)]);
    assert!(guest.kick(STATS).is_empty());
    guest.control.set_interval(7);
    guest.pump();
    assert_eq!(guest.kick(STATS).len(), 1);
}

#[test]
fn a_reset_forgets_them() {
    let mut guest = Guest::new();
    guest.queue(STATS, stats(&[(4, 5)]), 0);
    guest.kick(STATS);
    guest.machine.set_status(0);
    guest.pump();
    assert!(told(&guest).is_empty());
}
