// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

fn config() -> ConfigSpace {
    let mut config = ConfigSpace::new(&Ids {
        revision: 1,
        subsystem_vendor: 0x1af4,
        subsystem: 0x44,
        ..Ids::new(
            0x1af4,
            0x1044,
            Class {
                base: 1,
                sub: 2,
                interface: 3,
            },
        )
    });
    config.add_bar(0, Bar::memory64(0x8000)).unwrap();
    config
        .add_bar(2, Bar::memory32(0x100).prefetchable())
        .unwrap();
    let vendor = Capability::stored(9, [4, 0xaa, 0xbb], [0, 0x0f, 0]);
    assert_eq!(config.add_capability(&vendor), Ok(0x40));
    assert_eq!(
        config.add_capability(&Capability::fixed(5, [7; 2])),
        Ok(0x48)
    );
    config
}

fn read<const N: usize>(config: &ConfigSpace, register: u16) -> [u8; N] {
    let mut data = [0xee; N];
    config.read(register, &mut data);
    data
}

/// A register's offset, its initial bytes, and its bytes after writing all ones and all zeros.
type Register = (u16, &'static [u8], &'static [u8], &'static [u8]);

const REGISTERS: &[Register] = &[
    (
        0x00,
        &[0xf4, 0x1a, 0x44, 0x10],
        &[0xf4, 0x1a, 0x44, 0x10],
        &[0xf4, 0x1a, 0x44, 0x10],
    ),
    (0x04, &[0, 0], &[6, 4], &[0, 0]),
    (0x06, &[0x10, 0], &[0x10, 0], &[0x10, 0]),
    (0x08, &[1, 3, 2, 1], &[1, 3, 2, 1], &[1, 3, 2, 1]),
    (0x0c, &[0, 0, 0, 0], &[0xff, 0, 0, 0], &[0, 0, 0, 0]),
    (0x10, &[4, 0, 0, 0], &[4, 0x80, 0xff, 0xff], &[4, 0, 0, 0]),
    (0x14, &[0, 0, 0, 0], &[0xff; 4], &[0, 0, 0, 0]),
    (0x18, &[8, 0, 0, 0], &[8, 0xff, 0xff, 0xff], &[8, 0, 0, 0]),
    (0x1c, &[0; 16], &[0; 16], &[0; 16]),
    (
        0x2c,
        &[0xf4, 0x1a, 0x44, 0],
        &[0xf4, 0x1a, 0x44, 0],
        &[0xf4, 0x1a, 0x44, 0],
    ),
    (0x30, &[0, 0, 0, 0], &[0, 0, 0, 0], &[0, 0, 0, 0]),
    (0x34, &[0x40, 0, 0, 0], &[0x40, 0, 0, 0], &[0x40, 0, 0, 0]),
    (0x38, &[0, 0, 0, 0], &[0, 0, 0, 0], &[0, 0, 0, 0]),
    (0x3c, &[0, 0, 0, 0], &[0xff, 0, 0, 0], &[0, 0, 0, 0]),
    (
        0x40,
        &[9, 0x48, 4, 0xaa, 0xbb, 0, 0, 0],
        &[9, 0x48, 4, 0xaf, 0xbb, 0, 0, 0],
        &[9, 0x48, 4, 0xa0, 0xbb, 0, 0, 0],
    ),
    (0x48, &[5, 0, 7, 7], &[5, 0, 7, 7], &[5, 0, 7, 7]),
];

/// The configuration space that one column of the registers makes up.
fn image(of: fn(&Register) -> &'static [u8]) -> Vec<u8> {
    let mut image = vec![0; 0x1000];
    for row in REGISTERS {
        let at = usize::from(row.0);
        image[at..at + of(row).len()].copy_from_slice(of(row));
    }
    image
}

#[test]
fn every_register_at_every_width_and_place() {
    let images = [image(|row| row.1), image(|row| row.2), image(|row| row.3)];
    for len in [1, 2, 3, 4, 5, 6, 7, 8, 16] {
        for at in (0..0x120).chain(0xff0..=0x1000 - len) {
            let register = u16::try_from(at).unwrap();
            let mut config = config();
            let mut data = vec![0xee; len];
            config.read(register, &mut data);
            assert_eq!(data, images[0][at..at + len], "at {at:#x}");
            for (value, image) in [(0xff, &images[1]), (0, &images[2])] {
                config.write(register, &vec![value; len]);
                let all: [u8; 0x1000] = read(&config, 0);
                assert_eq!(all[at..at + len], image[at..at + len], "at {at:#x}");
                let elsewhere = |all: &[u8]| [&all[..at], &all[at + len..]].concat();
                assert_eq!(elsewhere(&all), elsewhere(&images[0]), "at {at:#x}");
            }
        }
    }
}

#[test]
fn an_access_beyond_the_last_register_is_harmless() {
    let mut config = config();
    config.write(u16::MAX, &[0xff; 64]);
    assert_eq!(read::<64>(&config, u16::MAX), [0; 64]);
    assert_eq!(read::<0x100>(&config, 0), image(|row| row.1)[..0x100]);
}

#[test]
fn a_bar_tells_its_size_and_keeps_its_address() {
    for (bar, number) in [
        (Bar::memory32(16), 5),
        (Bar::memory32(1 << 31), 0),
        (Bar::memory64(0x4000), 4),
        (Bar::memory64(1 << 32), 1),
        (Bar::memory64(1 << 63), 0),
    ] {
        let mut config = ConfigSpace::new(&Ids::new(1, 2, Class::OTHER));
        config.add_bar(number, bar).unwrap();
        assert_eq!(config.bar_address(number), Some(0));
        config.set_bar_address(number, u64::MAX);
        let reach = if bar.is_wide() {
            u64::MAX
        } else {
            u32::MAX.into()
        };
        let address = config.bar_address(number).unwrap();
        assert_eq!((!address & reach) + 1, bar.size());
        config.set_bar_address(number, bar.size());
        assert_eq!(config.bar_address(number), Some(bar.size()));
        assert_eq!(config.bars().collect::<Vec<_>>(), [(number, bar)]);
    }
}

#[test]
fn bars_that_no_function_has_are_refused() {
    for (number, bar, error) in [
        (
            0,
            Bar::memory32(0),
            Some(BarError::Size { number: 0, size: 0 }),
        ),
        (
            0,
            Bar::memory32(8),
            Some(BarError::Size { number: 0, size: 8 }),
        ),
        (
            0,
            Bar::memory32(0x1001),
            Some(BarError::Size {
                number: 0,
                size: 0x1001,
            }),
        ),
        (
            0,
            Bar::memory32(1 << 32),
            Some(BarError::Size {
                number: 0,
                size: 1 << 32,
            }),
        ),
        (6, Bar::memory32(16), Some(BarError::Number { number: 6 })),
        (
            255,
            Bar::memory64(16),
            Some(BarError::Number { number: 255 }),
        ),
        (5, Bar::memory64(16), Some(BarError::Number { number: 5 })),
        // BAR 2 is 64 bits wide.
        (1, Bar::memory64(16), Some(BarError::Taken { number: 1 })),
        (2, Bar::memory32(16), Some(BarError::Taken { number: 2 })),
        (3, Bar::memory32(16), Some(BarError::Taken { number: 3 })),
        (1, Bar::memory32(16), None),
        (4, Bar::memory64(16), None),
    ] {
        let mut config = ConfigSpace::new(&Ids::new(1, 2, Class::OTHER));
        config.add_bar(2, Bar::memory64(1 << 63)).unwrap();
        let before = config.save();
        assert_eq!(config.add_bar(number, bar).err(), error);
        assert_eq!(config.save() == before, error.is_some() || !bar.is_wide());
    }
}

#[test]
fn a_full_list_refuses_the_next_capability() {
    let mut config = ConfigSpace::new(&Ids::new(1, 2, Class::OTHER));
    let body = |len| Capability::fixed(9, vec![0; len]);
    assert!(config.add_capability(&body(191)).is_err());
    assert_eq!(read::<1>(&config, 0x34), [0]);
    for at in (0x40..0x100u16).step_by(4) {
        assert_eq!(config.add_capability(&body(1)).map(u16::from), Ok(at));
    }
    let error = config.add_capability(&body(0));
    assert_eq!(error, Err(CapabilityError { id: 9, len: 2 }));

    let mut config = ConfigSpace::new(&Ids::new(1, 2, Class::OTHER));
    assert_eq!(config.add_capability(&body(190)), Ok(0x40));
    assert!(config.add_capability(&body(0)).is_err());
}

#[test]
fn a_state_comes_back_and_a_foreign_one_is_refused() {
    let mut saved = config();
    saved.write(0, &[0x55; 0x100]);
    let state = saved.save();
    let mut fresh = config();
    assert_eq!(fresh.check(&state), Ok(()));
    assert_eq!(fresh.restore(&state), Ok(()));
    assert_eq!(fresh.save(), state);

    for (at, mask) in fresh.writable.iter().enumerate() {
        for bit in (0..8).map(|bit| 1 << bit) {
            let mut forged = state.clone();
            forged[at] ^= bit;
            assert_eq!(fresh.check(&forged).is_ok(), mask & bit != 0, "at {at:#x}");
        }
    }
    let short = ConfigStateError::Size { found: 255 };
    assert_eq!(fresh.check(&state[1..]), Err(short));
}
