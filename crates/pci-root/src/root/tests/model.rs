// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random accesses of a guest, compared to a naive model.

use proptest::prelude::*;

use super::*;

/// A guest's action.
#[derive(Clone, Debug)]
enum Step {
    /// Write configuration space of a function, with any width.
    Config(u8, u16, Vec<u8>),
    /// Set BAR 0 of a function to an address near the windows' edges, and enable or disable it.
    Move(u8, u64, bool),
    /// Check which function answers.
    Access(u64, usize),
}

/// Addresses at and around the windows' edges.
fn place() -> impl Strategy<Value = u64> {
    let edges = [
        0,
        LOW.base,
        LOW.base + LOW.size,
        HIGH.base,
        HIGH.base + HIGH.size,
        u64::MAX,
    ];
    (prop::sample::select(edges.to_vec()), -0x3000i64..0x3000)
        .prop_map(|(edge, by)| edge.wrapping_add_signed(by))
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = prop::collection::vec(any::<u8>(), 1..=8);
    prop_oneof![
        (1..=4u8, 0..0x48u16, bytes)
            .prop_map(|(number, register, data)| Step::Config(number, register, data)),
        (1..=4u8, place(), any::<bool>())
            .prop_map(|(number, place, on)| Step::Move(number, place, on)),
        (place(), 1..=8usize).prop_map(|(place, len)| Step::Access(place, len)),
    ]
}

/// Size and width of the four functions' BAR 0.
const BARS: [Bar; 4] = [
    Bar::memory32(0x1000),
    Bar::memory64(0x100),
    Bar::memory32(0x100),
    Bar::memory64(0x2000),
];

/// Which function answers, by the registers that the guest can read: the first function in order whose BAR contains the
/// first byte, if it contains the others, too.
fn expected(root: &PciRoot, place: u64, len: usize) -> Option<[u8; 2]> {
    for (number, bar) in (1..).zip(BARS) {
        let mut config = [0; 0x18];
        root.read_config(at(number, 0), 0, &mut config);
        let low = u32::from_le_bytes(config[0x10..0x14].try_into().unwrap());
        let high = u32::from_le_bytes(config[0x14..0x18].try_into().unwrap());
        let base = u64::from(low & !0xf)
            | if bar.is_wide() {
                u64::from(high) << 32
            } else {
                0
            };
        assert_eq!(base % bar.size(), 0);
        let (base, size) = (u128::from(base), u128::from(bar.size()));
        let inside = |span: Span| {
            let (start, end) = (
                u128::from(span.base),
                u128::from(span.base) + u128::from(span.size),
            );
            start <= base && base + size <= end
        };
        let on = config[4] & 2 != 0 && (inside(LOW) || inside(HIGH));
        let first = u128::from(place);
        if on && (base..base + size).contains(&first) {
            let offset = (first - base) as u64;
            let whole = first + len as u128 <= base + size;
            return (whole && offset != 0x80).then_some([number, offset as u8]);
        }
    }
    None
}

fn check(root: &PciRoot, place: u64, len: usize) {
    // Three bytes identify the function.
    let len = len.max(3);
    let found = who(root, place, len).map(|[number, _, offset]| [number, offset]);
    let window = [LOW, HIGH]
        .into_iter()
        .any(|span| span.contains(place, place));
    let expected = if window {
        expected(root, place, len)
    } else {
        None
    };
    assert_eq!(found, expected, "{len} bytes at {place:#x}");
}

proptest! {
    #[test]
    fn what_a_guest_reads_in_bars_is_who_answers(steps in prop::collection::vec(step(), 1..40)) {
        let (devices, root) = root(&BARS);
        for step in steps {
            match step {
                Step::Config(number, register, data) => {
                    let before = root.save();
                    root.write_config(at(number, 0), register, &data);
                    // No other function has changed.
                    for (before, (address, function)) in before.functions.iter().zip(root.functions()) {
                        prop_assert!(address == at(number, 0) || before.state == function.save());
                    }
                }
                Step::Move(number, place, on) => {
                    set_bar0(&root, at(number, 0), place);
                    enable(&root, at(number, 0), on);
                    check(&root, place, 4);
                }
                Step::Access(place, len) => check(&root, place, len),
            }
            for (number, device) in (1..).zip(&devices) {
                let told = lock(&device.places).last().copied().flatten();
                prop_assert_eq!(told, root.function(at(number, 0)).unwrap().decoded(0));
            }
        }
        // A fresh root gets the saved state.
        let state = root.save();
        let (_, fresh) = super::root(&BARS);
        prop_assert_eq!(fresh.restore(&state), Ok(()));
        prop_assert_eq!(fresh.save(), state);
        for page in 0..8 {
            let place = LOW.base + page * 0x100;
            prop_assert_eq!(who(&fresh, place, 4), who(&root, place, 4));
        }
    }
}
