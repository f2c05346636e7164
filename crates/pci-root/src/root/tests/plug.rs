// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Functions that come and go.

use proptest::prelude::*;

use super::*;

const BAR: Bar = Bar::memory64(0x1000);

/// A root with three slots, and one function that stays.
fn with_slots() -> PciRoot {
    let mut builder = RootBuilder::new(windows()).unwrap();
    builder.hotplug(3);
    builder.push(function(1, &[(0, BAR)]).1).unwrap();
    builder.memory_enabled(true);
    builder.build().unwrap()
}

#[test]
fn slots_are_the_last_numbers_and_others_stay_clear_of_them() {
    use crate::hotplug::slots;
    assert_eq!([0, 1, 3].map(slots), [32..32, 31..32, 29..32]);
    assert_eq!([31, 32, 255].map(slots), [1..32, 1..32, 1..32]);

    let mut builder = RootBuilder::new(windows()).unwrap();
    builder.hotplug(29);
    let pushed: Vec<_> = (0..16).map(|_| builder.push(plain()).unwrap()).collect();
    assert!(
        pushed
            .iter()
            .all(|address| (1..3).contains(&address.device()))
    );
    assert_eq!(builder.push(plain()), Err(RootError::Full));
    builder.insert(at(31, 0), plain()).unwrap();
    let root = builder.build().unwrap();
    assert_eq!(root.plug(31, plain()), Err(PlugError::Taken { slot: 31 }));
    assert!(root.unplug(31).is_some());
    assert_eq!(root.plug(31, plain()), Ok(at(31, 0)));
}

#[test]
fn a_plugged_function_answers_until_it_is_gone() {
    let root = with_slots();
    let before = root.save();
    for slot in [0, 1, 28, 32, 255] {
        assert_eq!(root.plug(slot, plain()), Err(PlugError::NoSlot { slot }));
        assert!(
            root.unplug(slot).is_none(),
            "not even the function that stays"
        );
    }
    for round in 0..3u8 {
        let (device, new) = function(5 + round, &[(0, BAR)]);
        assert_eq!(root.plug(30, new), Ok(at(30, 0)));
        let mut header = [0; 0x18];
        root.read_config(at(30, 0), 0, &mut header);
        assert_eq!(header[2], 0x45 + round);
        assert_eq!(
            (header[4], &header[0x10..]),
            (0, &[4, 0, 0, 0, 0, 0, 0, 0][..])
        );
        assert_eq!(root.plug(30, plain()), Err(PlugError::Taken { slot: 30 }));
        set_bar0(&root, at(30, 0), HIGH.base + 0x8000);
        enable(&root, at(30, 0), true);
        assert_eq!(who(&root, HIGH.base + 0x8000, 4), Some([5 + round, 0, 0]));
        assert_eq!(*lock(&device.places), [Some(HIGH.base + 0x8000)]);
        assert!(root.unplug(30).is_some() && root.unplug(30).is_none());
        assert_eq!(who(&root, HIGH.base + 0x8000, 4), None);
        root.read_config(at(30, 0), 0, &mut header);
        assert_eq!(header, [0xff; 0x18]);
        set_bar0_blindly(&root);
        assert_eq!(root.save(), before);
    }
}

/// Moves the BAR of a slot that is empty.
fn set_bar0_blindly(root: &PciRoot) {
    root.write_config(at(30, 0), 0x10, &[0; 4]);
    enable(root, at(30, 0), true);
}

#[test]
fn a_move_that_comes_late_brings_nothing_back() {
    let root = with_slots();
    root.plug(29, function(7, &[(0, BAR)]).1).unwrap();
    let late = root.function(at(29, 0)).unwrap();
    set_bar0(&root, at(29, 0), HIGH.base + 0x8000);
    drop(root.unplug(29).unwrap());
    root.plug(29, function(8, &[(0, BAR)]).1).unwrap();
    assert!(late.write_config(4, &[2, 0]));
    root.moved(at(29, 0), &late);
    assert_eq!(who(&root, HIGH.base + 0x8000, 4), None);
}

#[test]
fn a_state_needs_the_same_slots_filled() {
    let (saved, fresh) = (with_slots(), with_slots());
    saved.plug(31, function(7, &[(0, BAR)]).1).unwrap();
    set_bar0(&saved, at(31, 0), HIGH.base + 0x8000);
    enable(&saved, at(31, 0), true);
    let state = saved.save();
    let address = at(31, 0);
    assert_eq!(
        fresh.restore(&state),
        Err(RootStateError::Functions { address })
    );
    fresh.plug(31, function(7, &[(0, BAR)]).1).unwrap();
    assert_eq!(fresh.restore(&state), Ok(()));
    assert_eq!(fresh.save(), state);
    assert_eq!(who(&fresh, HIGH.base + 0x8000, 4), Some([7, 0, 0]));
}

/// What happens to a slot.
#[derive(Clone, Debug)]
enum Step {
    Plug(u8, u8),
    Unplug(u8),
    /// Move its BAR to a page of the window.
    Move(u8, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (28..33u8, 2..40u8).prop_map(|(slot, number)| Step::Plug(slot, number)),
        (28..33u8).prop_map(Step::Unplug),
        (29..32u8, 1..4u64).prop_map(|(slot, page)| Step::Move(slot, page)),
    ]
}

proptest! {
    #[test]
    fn whoever_is_plugged_in_answers(steps in prop::collection::vec(step(), 1..40)) {
        let root = with_slots();
        // The number of the function in each slot, and its page.
        let mut slots = [None::<(u8, Option<u64>)>; 3];
        let index = |slot: u8| usize::from(slot).checked_sub(29).filter(|at| *at < 3);
        for step in steps {
            match step {
                Step::Plug(slot, number) => {
                    let free = index(slot).is_some_and(|at| slots[at].is_none());
                    prop_assert_eq!(root.plug(slot, function(number, &[(0, BAR)]).1).is_ok(), free);
                    if free {
                        slots[index(slot).unwrap()] = Some((number, None));
                    }
                }
                Step::Unplug(slot) => {
                    let gone = index(slot).and_then(|at| slots[at].take());
                    prop_assert_eq!(root.unplug(slot).is_some(), gone.is_some());
                }
                Step::Move(slot, page) => {
                    if let Some((_, place)) = &mut slots[index(slot).unwrap()] {
                        *place = Some(page);
                        set_bar0(&root, at(slot, 0), HIGH.base + page * 0x1000);
                        enable(&root, at(slot, 0), true);
                    }
                }
            }
            for page in 1..4 {
                let mut here = slots.iter().flatten().filter(|(_, place)| *place == Some(page));
                let first = here.next().map(|(number, _)| [*number, 0, 0]);
                prop_assert_eq!(who(&root, HIGH.base + page * 0x1000, 4), first);
            }
            prop_assert_eq!(who(&root, HIGH.base, 4), Some([1, 0, 0]));
        }
    }
}
