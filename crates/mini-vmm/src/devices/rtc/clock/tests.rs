// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use proptest::prelude::*;

use super::*;

/// 2001-09-09 01:46:40, a Sunday.
const NOW: i64 = 1_000_000_000;

fn get(clock: &mut Clock, index: u8, now: i64) -> u8 {
    clock.index = index;
    clock.read(now, 0)
}

fn set(clock: &mut Clock, index: u8, value: u8, now: i64) {
    clock.index = index;
    clock.write(value, now);
}

fn all(clock: &mut Clock, now: i64) -> [u8; 7] {
    [YEAR, MONTH, DAY_OF_MONTH, WEEKDAY, HOURS, MINUTES, SECONDS]
        .map(|index| get(clock, index, now))
}

#[test]
fn memory_is_saved_as_digits_and_lists_are_read() {
    let mut clock = Clock::new(NOW);
    clock.memory[1] = 0xab;
    let mut saved = serde_json::to_value(&clock).unwrap();
    assert!(saved["memory"].as_str().unwrap().starts_with("00ab00"));
    assert_eq!(
        serde_json::from_value::<Clock>(saved.clone()).unwrap(),
        clock
    );
    saved["memory"] = serde_json::json!(clock.memory);
    assert_eq!(serde_json::from_value::<Clock>(saved).unwrap(), clock);
}

#[test]
fn it_shows_the_hosts_time_in_every_form() {
    let mut clock = Clock::new(NOW);
    assert_eq!(
        all(&mut clock, NOW),
        [0x01, 0x09, 0x09, 1, 0x01, 0x46, 0x40]
    );
    set(&mut clock, B, B_24_HOURS | B_BINARY, NOW);
    assert_eq!(all(&mut clock, NOW + 3), [1, 9, 9, 1, 1, 46, 43]);
    for (b, hours) in [
        (B_BINARY, [12, 1, 12 | PM, 11 | PM]),
        (0, [0x12, 0x01, 0x12 | PM, 0x11 | PM]),
        (B_24_HOURS, [0x00, 0x01, 0x12, 0x23]),
    ] {
        set(&mut clock, B, b, NOW);
        let midnight = NOW - NOW % DAY;
        let shown = [0, 1, 12, 23].map(|hour| get(&mut clock, HOURS, midnight + hour * 3_600));
        assert_eq!(shown, hours);
    }
}

#[test]
fn it_is_set_at_once_or_when_all_is_written() {
    let mut clock = Clock::new(NOW);
    set(&mut clock, MINUTES, 0x50, NOW);
    assert_eq!(clock.ahead, 240);
    assert_eq!(get(&mut clock, MINUTES, NOW + 60), 0x51);

    set(&mut clock, B, B_SET | B_24_HOURS, NOW);
    for (index, value) in [
        (YEAR, 0x24),
        (MONTH, 0x02),
        (DAY_OF_MONTH, 0x29),
        (HOURS, 0x23),
        (MINUTES, 0x59),
        (SECONDS, 0x58),
    ] {
        set(&mut clock, index, value, NOW);
        assert_eq!(get(&mut clock, index, NOW + 30), value, "it stands still");
    }
    set(&mut clock, B, B_24_HOURS, NOW + 30);
    assert_eq!(all(&mut clock, NOW + 32), [0x24, 0x03, 0x01, 6, 0, 0, 0]);
}

#[test]
fn what_is_no_time_changes_nothing() {
    let mut clock = Clock::new(NOW);
    for (index, value) in [
        (SECONDS, 0x60),
        (SECONDS, 0x0a),
        (MINUTES, 0xff),
        (HOURS, 0x24),
        (MONTH, 0x13),
        (MONTH, 0),
        (DAY_OF_MONTH, 0),
        (DAY_OF_MONTH, 0x35),
        (WEEKDAY, 3),
        (YEAR, 0xa0),
    ] {
        set(&mut clock, index, value, NOW);
        assert_eq!(clock.ahead, 0, "register {index}, {value:#x}");
    }
    // The 31st in a month of 30 days.
    set(&mut clock, DAY_OF_MONTH, 0x31, NOW);
    assert_eq!(get(&mut clock, DAY_OF_MONTH, NOW), 0x30);
}

#[test]
fn an_update_is_announced() {
    let mut clock = Clock::new(NOW);
    clock.index = A;
    let last = 1_000_000_000 - UPDATE_NS;
    assert_eq!(clock.read(NOW, last - 1), A_USUAL);
    assert_eq!(clock.read(NOW, last), A_USUAL | A_UPDATE);
    set(&mut clock, B, B_SET, NOW);
    clock.index = A;
    assert_eq!(clock.read(NOW, last), A_USUAL, "there is none");
}

#[test]
fn alarms_match_what_is_written_and_everything_where_it_says_so() {
    let mut clock = Clock::new(NOW);
    let mut next = |alarm| {
        clock.alarm = alarm;
        clock.next_alarm(NOW).map(|at| at - NOW)
    };
    assert_eq!(next([0x40, 0x46, 0x01]), Some(DAY), "not now: the next one");
    assert_eq!(next([0x41, 0x46, 0x01]), Some(1));
    assert_eq!(next([0x39, 0x46, 0x01]), Some(DAY - 1));
    assert_eq!(next([0x40, 0xff, 0xff]), Some(60));
    assert_eq!(next([0xc0, 0xc0, 0xc0]), Some(1));
    assert_eq!(next([0x00, 0x00, 0xff]), Some(800));
    assert_eq!(next([0x60, 0xff, 0xff]), None);
    assert_eq!(next([0xff, 0x0a, 0xff]), None);
}

#[test]
fn a_missed_alarm_is_seen_later() {
    let mut clock = Clock::new(NOW);
    clock.alarm = [0x00, 0x00, 0x00];
    assert_eq!(get(&mut clock, C, NOW + 3), C_UPDATE);
    assert_eq!(get(&mut clock, C, NOW + 3 * DAY), C_UPDATE | C_ALARM);
    assert_eq!(get(&mut clock, C, NOW), 0, "the host's clock was set back");
    assert_eq!(get(&mut clock, C, NOW + 1), C_UPDATE);
}

proptest! {
    /// Whatever a guest does: no panic, the state can be restored, and the next interrupt is in the future.
    #[test]
    fn any_accesses(accesses in prop::collection::vec((0u8..128, any::<u8>(), 0i64..200_000), 1..60)) {
        let (mut clock, mut now) = (Clock::new(NOW), NOW);
        for (index, value, later) in accesses {
            now += later;
            set(&mut clock, index, value, now);
            get(&mut clock, index, now);
            prop_assert_eq!(clock.misfit(), None);
            if let Some(next) = clock.next_interrupt() {
                prop_assert!(next > now && next <= now + 2 * DAY);
                clock.advance(next);
                prop_assert!(clock.interrupts());
            }
        }
    }

    /// The next alarm is the first second in which all three registers match.
    #[test]
    fn next_alarm_is_the_first_that_matches(seconds in 0u8..60, minutes in 0u8..60, hours in 0u8..24, b in 0u8..8, after in 0..DAY) {
        let mut clock = Clock::new(NOW);
        clock.b = b & (B_BINARY | B_24_HOURS);
        clock.alarm = [
            clock.encode(SECONDS_ALARM, seconds),
            clock.encode(MINUTES_ALARM, minutes),
            clock.encode(HOURS_ALARM, hours),
        ];
        let of_day = i64::from(hours) * 3_600 + i64::from(minutes) * 60 + i64::from(seconds);
        let today = NOW - NOW % DAY;
        let expected = today + of_day + if of_day > after { 0 } else { DAY };
        prop_assert_eq!(clock.next_alarm(today + after), Some(expected));
    }
}
