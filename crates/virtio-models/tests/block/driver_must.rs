// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a driver of a block device must and must not do, by virtio 1.4, section 5.2, and what happens if it doesn't
//! comply. Each rule has a test that breaks it, or a reason why a device can't see the violation. The rules of rings and
//! transports are in virtio-transport's tests.

use std::collections::BTreeSet;

use virtio_models::block::Disk;
use virtio_transport::testing::{MmioPort, Port};

use crate::support::*;

/// The sections with driver requirements.
const SECTIONS: [&str; 2] = ["5.2.5.1", "5.2.6.1"];

/// A rule's section, a short form of the rule, and a driver that violates it.
type Rule = (&'static str, &'static str, fn());

const BROKEN: &[Rule] = &[
    ("5.2.5.1", "reads writeback only after FEATURES_OK", || {
        let mut guest = Guest::new(64);
        let mut mode = [9];
        guest.machine.set_status(0);
        guest.machine.pump();
        guest.machine.port.read(MmioPort::CONFIG + 32, &mut mode);
        assert_eq!(mode, [1]);
        guest.restart();
        assert_eq!(guest.read(0, 512).0, OK);
    }),
    ("5.2.6.1", "submits nothing beyond the capacity", || {
        let mut guest = Guest::new(64);
        assert_eq!(guest.read(64, 512).0, IOERR);
        assert_eq!(guest.write(63, &[0; 1024]), IOERR);
        assert_eq!(guest.read(u64::MAX, 512).0, IOERR);
    }),
    ("5.2.6.1", "sets the sector of a flush to 0", || {
        let mut guest = Guest::new(64);
        assert_eq!(guest.status(header(FLUSH, u64::MAX)), OK);
    }),
    ("5.2.6.1", "moves multiples of 512 bytes", || {
        let mut guest = Guest::new(64);
        assert_eq!(guest.read(0, 100).0, IOERR);
        assert_eq!(guest.write(0, &[0; 700]), IOERR);
        assert!(guest.disk().log.is_empty());
    }),
    ("5.2.6.1", "gives ranges as whole structures", || {
        let mut guest = Guest::new(64);
        for kind in [DISCARD, WRITE_ZEROES] {
            for len in [0, 1, 15, 17, 31] {
                assert_eq!(
                    guest.status([header(kind, 0), vec![0; len]].concat()),
                    IOERR
                );
            }
        }
        assert!(guest.disk().log.is_empty());
    }),
    ("5.2.6.1", "gives GET_ID 20 bytes", || {
        let mut guest = Guest::new(64);
        assert_eq!(guest.ask(header(GET_ID, 0), 20).bytes[19], IOERR);
        assert_eq!(guest.ask(header(GET_ID, 0), 40).bytes[39], OK);
    }),
    ("5.2.6.1", "discards max_discard_seg ranges at most", || {
        assert_eq!(two_ranges(DISCARD), IOERR);
    }),
    (
        "5.2.6.1",
        "erases max_secure_erase_seg ranges at most",
        || {
            // Secure erase is not offered.
            assert_eq!(two_ranges(SECURE_ERASE), UNSUPP);
        },
    ),
    (
        "5.2.6.1",
        "zeroes max_write_zeroes_seg ranges at most",
        || {
            assert_eq!(two_ranges(WRITE_ZEROES), IOERR);
        },
    ),
    ("5.2.6.1", "sets unmap to 0 for a discard", || {
        let mut guest = Guest::new(64);
        assert_eq!(guest.zero(DISCARD, 0, 1, 1), UNSUPP);
        assert!(guest.disk().log.is_empty());
    }),
];

const SECURE_ERASE: u32 = 14;

/// The status of a request with two ranges.
fn two_ranges(kind: u32) -> u8 {
    let mut guest = Guest::new(64);
    let status = guest.status([header(kind, 0), range(0, 1, 0), range(1, 1, 0)].concat());
    assert!(guest.disk().log.is_empty());
    status
}

const ZONED: &str = "ZONED is not offered, and all commands for zones are unsupported";
const DRIVER: &str = "it happens in the driver";

/// Rules that no device sees broken: section, rule, why.
const UNSEEN: &[(&str, &str, &str)] = &[
    (
        "5.2.5.1",
        "negotiates ZONED only if it supports each model",
        ZONED,
    ),
    (
        "5.2.5.1",
        "doesn't accept DISCARD of a host-managed disk",
        ZONED,
    ),
    (
        "5.2.5.1",
        "sets FAILED if it can't use the disk's model",
        ZONED,
    ),
    (
        "5.2.6.1",
        "takes no write for stored because it wrote 0 to writeback",
        DRIVER,
    ),
    ("5.2.6.1", "assumes nothing about discarded sectors", DRIVER),
    (
        "5.2.6.1",
        "assumes nothing about the ranges of a failed request",
        DRIVER,
    ),
    ("5.2.6.1", "gives zones by multiples of 512 bytes", ZONED),
    (
        "5.2.6.1",
        "asks for a report of zones by a sector in a zone",
        ZONED,
    ),
    (
        "5.2.6.1",
        "opens, closes, finishes and resets a zone by its first sector",
        ZONED,
    ),
    ("5.2.6.1", "resets all zones with sector 0", ZONED),
    (
        "5.2.6.1",
        "appends to a zone by its first sector, in its unit, and not too much",
        ZONED,
    ),
    (
        "5.2.6.1",
        "writes to zones in their unit, and not beyond their end",
        ZONED,
    ),
];

/// What no MUST forbids, but no driver should do.
const ODD: &[(&str, fn())] = &[
    ("writes the mode of the cache without CONFIG_WCE", || {
        let mut guest = Guest::with(64, Disk::default(), !(1 << 11));
        guest.machine.write(MmioPort::CONFIG + 32, &[0]);
        guest.machine.pump();
        assert_eq!(guest.machine.worker.device().config()[32], 1);
    }),
    ("uses commands whose feature it didn't accept", || {
        for (kind, bit) in [(FLUSH, 9), (DISCARD, 13), (WRITE_ZEROES, 14)] {
            let mut guest = Guest::with(64, Disk::default(), !(1 << bit));
            assert_eq!(guest.zero(kind, 0, 1, 0), UNSUPP);
            assert!(guest.disk().log.is_empty());
        }
    }),
    ("uses commands that are not offered", || {
        let mut guest = Guest::new(64);
        // Lifetime, secure erase, zones.
        for kind in [10, SECURE_ERASE, 15, 16, 18, 20, 22, 24, 26] {
            assert_eq!(guest.status(header(kind, 0)), UNSUPP);
        }
    }),
    ("discards or zeroes more sectors than the limits", || {
        let mut guest = Guest::new(64);
        for kind in [DISCARD, WRITE_ZEROES] {
            assert_eq!(guest.zero(kind, 0, u32::MAX, 0), IOERR);
        }
    }),
    ("sets reserved flags of a range", || {
        let mut guest = Guest::new(64);
        assert_eq!(guest.zero(DISCARD, 0, 1, 4), UNSUPP);
        assert_eq!(guest.zero(WRITE_ZEROES, 0, 1, 4), UNSUPP);
    }),
    ("leaves no byte for the status", || {
        let mut guest = Guest::new(64);
        assert_eq!(guest.ask(header(OUT, 0), 0).len, 0);
        assert!(guest.disk().log.is_empty(), "nothing is written unanswered");
    }),
];

#[test]
fn drivers_that_break_a_rule_are_answered() {
    for (section, rule, broken) in BROKEN {
        println!("{section}: {rule}");
        broken();
    }
    for (what, odd) in ODD {
        println!("{what}");
        odd();
    }
}

#[test]
fn each_section_has_its_rules() {
    let broken = BROKEN.iter().map(|(section, rule, _)| (*section, *rule));
    let unseen = UNSEEN.iter().map(|(section, rule, _)| (*section, *rule));
    let rules: Vec<_> = broken.chain(unseen).collect();
    let distinct: BTreeSet<_> = rules.iter().collect();
    assert_eq!(distinct.len(), rules.len(), "a rule is there twice");
    let found: BTreeSet<_> = rules.iter().map(|(section, _)| *section).collect();
    assert_eq!(found, SECTIONS.into());
    assert!(UNSEEN.iter().all(|(_, _, why)| !why.is_empty()));
}
