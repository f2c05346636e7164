// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which function gets an access to a BAR, and where BARs may be.

use super::*;

#[test]
fn an_access_is_in_one_bar_as_a_whole() {
    let (_, root) = root(&[Bar::memory32(0x100), Bar::memory32(0x100)]);
    let base = LOW.base;
    // Both are in one window, one after the other.
    assert_eq!(who(&root, base, 4), Some([1, 0, 0]));
    assert_eq!(who(&root, base + 0xfc, 4), Some([1, 0, 0xfc]));
    assert_eq!(who(&root, base + 0xfd, 4), None);
    assert_eq!(who(&root, base + 0x100, 8), Some([2, 0, 0]));
    assert_eq!(who(&root, base + 0x1f8, 9), None);
    assert_eq!(who(&root, base + 0x200, 4), None);
    // The device itself doesn't claim it.
    assert_eq!(who(&root, base + 0x80, 4), None);
    for offset in [LOW.size, 1 << 32, u64::MAX - 3, u64::MAX] {
        let mut data = [0; 4];
        assert_eq!(root.read(Window::Low, offset, &mut data), Reply::Unclaimed);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(root.write(Window::Low, offset, &data), Reply::Unclaimed);
    }
}

#[test]
fn bars_move_within_their_windows() {
    let (devices, root) = root(&[Bar::memory32(0x1000), Bar::memory64(0x1000)]);
    for (device, base) in [(0, LOW.base), (1, HIGH.base)] {
        let number = device as u8 + 1;
        let address = at(number, 0);
        let places = || std::mem::take(&mut *lock(&devices[device].places));
        assert_eq!(places(), [Some(base)]);
        assert_eq!(who(&root, base, 4), Some([number, 0, 0]));
        enable(&root, address, false);
        assert_eq!((places(), who(&root, base, 4)), (vec![None], None));
        // A device isn't told of a disabled BAR.
        set_bar0(&root, address, base + 0x5000);
        assert_eq!(places(), []);
        enable(&root, address, true);
        assert_eq!(places(), [Some(base + 0x5000)]);
        enable(&root, address, true);
        assert_eq!(places(), []);
        assert_eq!(who(&root, base, 4), None);
        assert_eq!(who(&root, base + 0x5ff8, 8), Some([number, 0, 0xf8]));
        assert_eq!(
            root.function(address).unwrap().decoded(0),
            Some(base + 0x5000)
        );
        // In RAM, in ECAM, across a window's end, and outside of all windows.
        let end = if device == 0 {
            LOW.base + LOW.size
        } else {
            HIGH.base + HIGH.size
        };
        for outside in [0, 0x1000, 0xe000_0000, end, base - 0x1000] {
            set_bar0(&root, address, outside);
            assert_eq!(
                root.function(address).unwrap().decoded(0),
                None,
                "{outside:#x}"
            );
            assert_eq!(who(&root, base + 0x5000, 4), None);
        }
        assert_eq!(places().last(), Some(&None));
        set_bar0(&root, address, base);
        assert_eq!(places().last(), Some(&Some(base)));
        assert_eq!(who(&root, base, 4), Some([number, 0, 0]));
    }
    // A 64-bit BAR may also be in the lower window.
    set_bar0(&root, at(2, 0), LOW.base + 0x8000);
    assert_eq!(who(&root, LOW.base + 0x8000, 4), Some([2, 0, 0]));
    assert_eq!(who(&root, HIGH.base, 4), None);
}

#[test]
fn of_bars_that_overlap_the_lower_function_wins() {
    let (_, root) = root(&[
        Bar::memory32(0x100),
        Bar::memory32(0x1000),
        Bar::memory32(0x100),
    ]);
    let base = LOW.base + 0x10_0000;
    set_bar0(&root, at(1, 0), base + 0x200);
    set_bar0(&root, at(2, 0), base);
    set_bar0(&root, at(3, 0), base + 0x200);
    assert_eq!(who(&root, base, 4), Some([2, 0, 0]));
    assert_eq!(who(&root, base + 0x1fc, 4), Some([2, 0, 0xfc]));
    assert_eq!(who(&root, base + 0x200, 4), Some([1, 0, 0]));
    // It starts in function 1, but isn't entirely in it.
    assert_eq!(who(&root, base + 0x2fe, 4), None);
    assert_eq!(who(&root, base + 0x300, 4), Some([2, 0, 0]));
    enable(&root, at(1, 0), false);
    assert_eq!(who(&root, base + 0x200, 4), Some([2, 0, 0]));
    enable(&root, at(2, 0), false);
    assert_eq!(who(&root, base + 0x200, 4), Some([3, 0, 0]));
    assert_eq!(who(&root, base + 0x300, 4), None);
    enable(&root, at(1, 0), true);
    assert_eq!(who(&root, base + 0x200, 4), Some([1, 0, 0]));
}

#[test]
fn of_bars_of_one_function_that_overlap_the_lower_one_wins() {
    let mut builder = RootBuilder::new(windows()).unwrap();
    let bars = [(1, Bar::memory32(0x100)), (5, Bar::memory32(0x1000))];
    builder.push(function(1, &bars).1).unwrap();
    builder.memory_enabled(true);
    let root = builder.build().unwrap();
    for register in [0x14, 0x24] {
        root.write_config(at(1, 0), register, &(LOW.base as u32).to_le_bytes());
    }
    assert_eq!(who(&root, LOW.base, 4), Some([1, 1, 0]));
    assert_eq!(who(&root, LOW.base + 0x100, 4), Some([1, 5, 0]));
}

#[test]
fn a_guest_learns_sizes_while_a_function_is_off() {
    let (devices, root) = root(&[Bar::memory64(0x4000)]);
    let address = at(1, 0);
    enable(&root, address, false);
    set_bar0(&root, address, u64::MAX);
    let config = root.function(address).unwrap().save().config;
    assert_eq!(config[0x10..0x18], 0xffff_ffff_ffff_c004u64.to_le_bytes());
    set_bar0(&root, address, HIGH.base);
    enable(&root, address, true);
    assert_eq!(
        *lock(&devices[0].places),
        [Some(HIGH.base), None, Some(HIGH.base)]
    );
}

#[test]
fn the_table_is_right_when_two_vcpus_have_moved_bars() {
    let (devices, root) = root(&[Bar::memory32(0x100); 4]);
    let bars = |vcpu: u64| {
        for round in 0..500 {
            for number in 1..=4 {
                let place = LOW.base + (round * 7 + vcpu * 3 + u64::from(number)) % 16 * 0x100;
                set_bar0(&root, at(number, 0), place);
                enable(&root, at(number, 0), !(round + vcpu).is_multiple_of(3));
                let _ = root.read(Window::Low, place - LOW.base, &mut [0; 4]);
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| bars(1));
        bars(2);
    });
    for place in (0..20).map(|page| LOW.base + page * 0x100) {
        let owner =
            (1..=4).find(|number| root.function(at(*number, 0)).unwrap().decoded(0) == Some(place));
        assert_eq!(who(&root, place, 4), owner.map(|number| [number, 0, 0]));
    }
    for (number, device) in (1..).zip(devices) {
        let last = *lock(&device.places).last().unwrap();
        assert_eq!(last, root.function(at(number, 0)).unwrap().decoded(0));
    }
}
