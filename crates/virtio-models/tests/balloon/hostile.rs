// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Drivers that break the rules.

use proptest::prelude::*;
use virtio_transport::testing::Driver;

use crate::support::*;

#[test]
fn pages_may_be_anywhere() {
    // The host ignores what is no memory.
    let mut guest = Guest::new();
    let given = guest.inflate(&[u32::MAX, 0, u32::MAX - 1, 0, 1 << 20]);
    assert_eq!(
        given,
        [
            pages(0..1),
            pages(1 << 20..(1 << 20) + 1),
            pages(0xffff_fffe..0x1_0000_0000)
        ]
    );
    guest.offer(
        REPORTS,
        &[],
        &[(u64::MAX - 0x10_0000, 0x10_0000), (1 << 50, 0x3000)],
    );
    assert_eq!(guest.taken(REPORTS), 1);
    assert_eq!(guest.given.take().len(), 1);
}

#[test]
fn odd_inflations_are_taken_as_far_as_possible() {
    let mut guest = Guest::new();
    let mut bytes = numbers(&[3, 4]);
    bytes.pop();
    assert!(guest.send(INFLATE, bytes, 0));
    assert_eq!(guest.given.take(), [[pages(3..4)]]);
    assert!(guest.send(INFLATE, vec![1, 2, 3], 0));
    assert!(guest.send(INFLATE, Vec::new(), 100));
    // The pages behind a hole are lost.
    let at = guest.note(&numbers(&[7]));
    guest.offer(INFLATE, &[(at, 4), (1 << 40, 4)], &[]);
    guest.offer(INFLATE, &[(1 << 40, 400)], &[]);
    assert_eq!(guest.taken(INFLATE), 2);
    assert!(guest.given.take().is_empty());
    assert_eq!(guest.counts().bad_inflations, 5);
}

#[test]
fn an_endless_inflation_holds_nobody() {
    let mut guest = Guest::new();
    let at = guest.note(&numbers(&(0..1024).map(|n| 2 * n).collect::<Vec<_>>()));
    // 30,720 pages that are no neighbours, as few of them as there are.
    for _ in 0..30 {
        guest.offer(INFLATE, &[(at, 4096)], &[]);
    }
    assert_eq!(guest.taken(INFLATE), 30);
    let calls = guest.given.take();
    assert!(calls.len() >= 7, "{}", calls.len());
    assert!(calls.iter().all(|call| call.len() == 1024));
    // One request of 1 GiB.
    let piece = (0, 1 << 19);
    guest.offer(INFLATE, &[piece; 100], &[]);
    assert_eq!(guest.taken(INFLATE), 1);
    assert_eq!(guest.counts().bad_inflations, 1);
}

#[test]
fn a_report_in_the_wrong_direction_is_no_report() {
    let mut guest = Guest::new();
    guest.offer(REPORTS, &[(0x20_0000, 0x1000)], &[]);
    guest.offer(REPORTS, &[(0x20_0000, 0x1000)], &[(0x40_0000, 0x1000)]);
    assert_eq!(guest.taken(REPORTS), 2);
    assert_eq!(guest.given.take(), [[pages(0x400..0x401)]]);
    assert_eq!(guest.counts().bad_reports, 2);
}

#[test]
fn a_full_queue_leaves_other_devices_their_turn() {
    let mut guest = Guest::new();
    for page in 0..40 {
        guest.queue(INFLATE, numbers(&[page]), 0);
    }
    guest.machine.kick(INFLATE);
    guest.machine.step();
    assert_eq!(guest.driver.receive_all(&guest.machine).len(), 32);
    guest.machine.pump();
    assert_eq!(guest.driver.receive_all(&guest.machine).len(), 8);
}

#[test]
fn configuration_may_be_written_in_pieces() {
    let mut guest = Guest::new();
    guest.configure(4, 0x1234_5678);
    guest.machine.write(0x105, &[0xff]);
    guest.machine.write(0x10e, &[0xee, 0xdd]);
    guest.pump();
    assert_eq!(guest.field(4), 0x1234_ff78);
    assert_eq!(guest.field(12), 0xddee_0000);
    guest.machine.write(0x10c, &[1; 8]);
    assert_eq!(guest.field(12), 0xddee_0000, "not all inside");
}

/// A step of a driver or of the VMM.
#[derive(Clone, Debug)]
enum Step {
    Request(u16, Vec<u8>, u32),
    Raw(u16, (u64, u32), (u64, u32)),
    Configure(u64, u32),
    Target(u32),
    Interval(u32),
    Hint(bool),
    Stop,
    Pause,
    Restore,
    Reset,
}

fn any_step() -> impl Strategy<Value = Step> {
    let buffer = || (any::<u64>(), 1..1_u32 << 24).prop_map(|(at, len)| (at >> (at % 60), len));
    let bytes = prop::collection::vec(0..4_u8, 0..40);
    prop_oneof![
        8 => (0..5_u16, bytes, 0..40_u32).prop_map(|(queue, bytes, room)| Step::Request(queue, bytes, room)),
        8 => (0..5_u16, buffer(), buffer()).prop_map(|(queue, a, b)| Step::Raw(queue, a, b)),
        2 => (0..4_u64, any::<u32>()).prop_map(|(at, value)| Step::Configure(4 * at, value)),
        1 => any::<u32>().prop_map(Step::Target),
        1 => (0..3_u32).prop_map(|n| Step::Interval(3600 * n)),
        2 => any::<bool>().prop_map(Step::Hint),
        1 => Just(Step::Stop),
        1 => Just(Step::Pause),
        1 => Just(Step::Restore),
        1 => Just(Step::Reset),
    ]
}

fn act(mut guest: Guest, step: Step) -> Guest {
    match step {
        Step::Request(queue, bytes, room) => {
            let at = guest.note(&bytes);
            let readable = [(at, bytes.len() as u32)];
            guest.offer(queue, &readable, &[(at + 2048, room)]);
            guest.taken(queue);
        }
        Step::Raw(queue, a, b) => {
            guest.offer(queue, &[a], &[b]);
            guest.taken(queue);
        }
        Step::Configure(at, value) => guest.configure(at, value),
        Step::Target(pages) => guest.control.set_target(pages),
        Step::Interval(seconds) => guest.control.set_interval(seconds),
        Step::Hint(acknowledge) => drop(guest.control.start_hinting(acknowledge)),
        Step::Stop => guest.control.stop_hinting(),
        Step::Pause => {
            guest.machine.pause().expect("a device that stops");
            guest.machine.resume();
        }
        Step::Restore => guest = guest.restored(),
        Step::Reset => guest.driver = Driver::start(&mut guest.machine, !0),
    }
    guest.pump();
    guest
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_a_driver_does_the_device_works(steps in prop::collection::vec(any_step(), 0..40)) {
        let mut guest = Guest::new();
        for step in steps {
            guest = act(guest, step);
            prop_assert_eq!(guest.field(0), guest.control.target());
            prop_assert_eq!(guest.field(4), guest.control.actual());
            for call in guest.given.take() {
                prop_assert!(!call.is_empty());
                prop_assert!(call.windows(2).all(|pair| pair[0].end < pair[1].start));
                prop_assert!(call.iter().all(|range| range.start < range.end));
                prop_assert!(call.iter().all(|range| (range.start | range.end) % PAGE == 0));
            }
        }
        guest.driver = Driver::start(&mut guest.machine, !0);
        guest.machine.failures.clear();
        guest.machine.pump();
        prop_assert_eq!(guest.inflate(&[1, 2]), [pages(1..3)]);
    }
}
