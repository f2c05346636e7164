// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rounds of hints.

use virtio_models::balloon::{HintError, Hinting};
use virtio_transport::testing::Port;

use crate::support::*;

const PAGES: (u64, u32) = (0x40_0000, 0x40_0000);

fn hinting(host_command: u32, guest_command: Option<u32>) -> Hinting {
    Hinting {
        host_command,
        guest_command,
    }
}

impl Guest {
    /// Starts a round. Returns its number, which the driver sees.
    fn round(&mut self, acknowledge: bool) -> u32 {
        self.control.start_hinting(acknowledge).expect("a driver");
        self.pump();
        let command = self.field(8);
        assert!(command > DONE);
        command
    }

    /// The driver names a command.
    fn say(&mut self, command: u32) {
        let at = self.note(&command.to_le_bytes());
        self.offer(HINTS, &[(at, 4)], &[]);
        assert_eq!(self.taken(HINTS), 1);
    }

    /// The driver hints. Returns how many calls the host got.
    fn hint(&mut self) -> usize {
        self.offer(HINTS, &[], &[PAGES]);
        assert_eq!(self.taken(HINTS), 1);
        self.given.take().len()
    }
}

#[test]
fn a_round_gives_pages_back_until_it_is_stopped() {
    let mut guest = Guest::new();
    assert_eq!(guest.control.hinting(), hinting(STOP, None));
    let round = guest.round(false);
    guest.say(round);
    assert_eq!((guest.hint(), guest.hint()), (1, 1));
    guest.say(STOP);
    assert_eq!(guest.control.hinting(), hinting(round, Some(STOP)));
    assert_eq!(guest.field(8), round, "the driver keeps the pages");
    assert_eq!(guest.hint(), 0, "of no round");
    guest.control.stop_hinting();
    guest.pump();
    assert_eq!(guest.field(8), DONE);
    let counts = guest.counts();
    assert_eq!(
        (counts.hints, counts.hinted, counts.bad_hints),
        (5, 0x80_0000, 1)
    );
}

#[test]
fn the_end_of_a_round_may_be_acknowledged_at_once() {
    let mut guest = Guest::new();
    let round = guest.round(true);
    // An end that belongs to no round.
    guest.say(STOP);
    assert_eq!(guest.field(8), round);
    guest.say(round);
    assert_eq!(guest.hint(), 1);
    guest.machine.port.take_interrupts();
    guest.say(STOP);
    assert_eq!(guest.field(8), DONE);
    assert_eq!(guest.control.hinting(), hinting(DONE, Some(STOP)));
    assert_eq!(guest.hint(), 0);
    let second = guest.round(true);
    assert!(second > round);
    guest.say(second);
    assert_eq!(guest.hint(), 1);
}

#[test]
fn hints_of_another_round_are_ignored() {
    let mut guest = Guest::new();
    assert_eq!(guest.hint(), 0, "before any");
    for command in [STOP, DONE, 2, u32::MAX] {
        guest.say(command);
        assert_eq!(guest.hint(), 0, "{command}");
    }
    let first = guest.round(false);
    guest.say(first);
    let second = guest.round(false);
    assert_eq!(guest.hint(), 0);
    guest.say(second);
    assert_eq!(guest.hint(), 1);
    guest.control.stop_hinting();
    guest.pump();
    guest.say(second);
    assert_eq!(guest.hint(), 0);
}

#[test]
fn a_command_may_come_with_pages() {
    let mut guest = Guest::new();
    let round = guest.round(false);
    let at = guest.note(&round.to_le_bytes());
    guest.offer(HINTS, &[(at, 4)], &[PAGES]);
    assert_eq!(guest.taken(HINTS), 1);
    assert_eq!(guest.given.take(), [[pages(0x400..0x800)]]);
}

#[test]
fn commands_of_a_wrong_length_are_as_good_as_they_can_be() {
    let mut guest = Guest::new();
    let round = guest.round(false);
    let at = guest.note(&[&round.to_le_bytes()[..], &[9; 4]].concat());
    for len in [1, 3] {
        guest.offer(HINTS, &[(at, len)], &[]);
        assert_eq!(guest.taken(HINTS), 1);
    }
    assert_eq!(guest.hint(), 0);
    guest.offer(HINTS, &[(1 << 40, 4)], &[]);
    assert_eq!(guest.taken(HINTS), 1);
    assert_eq!(guest.control.hinting().guest_command, None);
    guest.offer(HINTS, &[(at, 8)], &[]);
    assert_eq!(guest.taken(HINTS), 1);
    assert_eq!(guest.counts().bad_hints, 5);
}

#[test]
fn a_restored_driver_may_use_what_it_hinted() {
    let mut guest = Guest::new();
    let round = guest.round(false);
    guest.say(round);
    guest.hint();
    let mut guest = guest.restored();
    assert_eq!(guest.field(8), DONE);
    assert_eq!(guest.hint(), 0);
    // Its driver may still have the old number in its queue.
    assert!(guest.round(false) > round);
    let mut guest = Guest::new().restored();
    assert_eq!(guest.field(8), STOP);
}

#[test]
fn nobody_hints_without_a_driver() {
    let guest = Guest::wanting(ALL, !(1 << 3));
    assert_eq!(guest.control.start_hinting(true), Err(HintError));
    guest.control.stop_hinting();
    assert_eq!(guest.control.hinting(), hinting(STOP, None));
    let mut guest = Guest::new();
    guest.machine.pause().expect("a device that stops");
    assert_eq!(guest.control.start_hinting(true), Err(HintError));
    guest.machine.resume();
    guest.round(true);
    guest.machine.set_status(0);
    guest.pump();
    assert_eq!(guest.control.start_hinting(true), Err(HintError));
    assert_eq!(guest.control.hinting(), hinting(STOP, None));
}
