// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The "driver MUST" sentences of virtio 1.4, section 5.5, and what happens if a driver violates them. Each has a test
//! that breaks it, or a reason why a device can't see the violation.

use crate::support::*;

/// A rule, and a driver that violates it.
type Rule = (&'static str, fn());

const RULES: &[Rule] = &[
    (
        "5.5.3.1: MUST NOT accept PAGE_REPORTING without PAGE_POISON if pages should retain a value",
        // Without PAGE_POISON the device knows of no value, and the pages are zero afterwards.
        || {
            let mut guest = Guest::wanting(ALL, !(1 << 4));
            guest.offer(REPORTS, &[], &[(0x20_0000, 0x1000)]);
            assert_eq!(guest.taken(REPORTS), 1);
            assert_eq!(guest.given.take().len(), 1);
        },
    ),
    (
        "5.5.6.1: MUST NOT use pages from the balloon without DEFLATE_ON_OOM",
        // They are ordinary memory, before and after.
        || {},
    ),
    (
        "5.5.6.1: MUST use the deflateq for pages it wants to use",
        || {
            let mut guest = Guest::new();
            assert_eq!(guest.inflate(&[5]), [pages(5..6)]);
            assert_eq!(
                guest.inflate(&[5]),
                [pages(5..6)],
                "again, without a deflation"
            );
        },
    ),
    (
        "5.5.6.1: MUST NOT use pages before the device has acknowledged the inflation",
        // What it writes there may be lost. Nobody else sees it.
        || {},
    ),
    (
        "5.5.6.1: MUST NOT request deflation of pages that are not acknowledged",
        || {
            let mut guest = Guest::new();
            assert!(guest.send(DEFLATE, numbers(&[1, 2, u32::MAX]), 0));
            assert!(guest.given.take().is_empty());
        },
    ),
    ("5.5.6.1: MUST update actual", || {
        let mut guest = Guest::new();
        guest.inflate(&[5]);
        assert_eq!(guest.control.actual(), 0, "it is the driver's word");
        guest.configure(4, u32::MAX);
        assert_eq!(guest.control.actual(), u32::MAX);
    }),
    (
        "5.5.6.3: MUST make at most one buffer available in the statsq",
        || {
            let mut guest = Guest::new();
            guest.queue(STATS, stats(&[(0, 1)]), 0);
            guest.queue(STATS, stats(&[(0, 2)]), 0);
            assert!(guest.kick(STATS).is_empty());
            guest.control.set_interval(5);
            guest.pump();
            assert_eq!(guest.kick(STATS).len(), 1);
            assert_eq!(guest.control.stats().iter().next(), Some(("swap_in", 2)));
        },
    ),
    (
        "5.5.6.3: MUST make a buffer available after initializing and after each use",
        || {
            let mut guest = Guest::new();
            guest.control.set_interval(5);
            guest.pump();
            assert!(guest.machine.failures.is_empty());
        },
    ),
    (
        "5.5.6.3: MUST initialize the buffer",
        // Any bytes are numbers.
        || {},
    ),
    (
        "5.5.6.3: MUST use a multiple of 6 bytes",
        // A slip of the specification: an entry has 10 bytes. Others are tested in `numbers`.
        || {},
    ),
    (
        "5.5.6.3: MUST supply the same subset of statistics in all buffers",
        // Those that are left out stay: see `numbers`.
        || {},
    ),
    ("5.5.6.5: MUST use 4 bytes for all output buffers", || {
        let mut guest = Guest::new();
        guest.control.start_hinting(false).expect("a driver");
        guest.pump();
        let round = guest.field(8);
        let at = guest.note(&round.to_le_bytes());
        guest.offer(HINTS, &[(at, 5)], &[]);
        assert_eq!(guest.taken(HINTS), 1);
        assert_eq!(guest.counts().bad_hints, 1);
    }),
    (
        "5.5.6.5: MUST start hinting with the current command ID",
        || {
            let mut guest = Guest::new();
            guest.control.start_hinting(false).expect("a driver");
            guest.pump();
            guest.offer(HINTS, &[], &[(0x20_0000, 0x1000)]);
            assert_eq!(guest.taken(HINTS), 1);
            assert!(guest.given.take().is_empty());
        },
    ),
    (
        "5.5.6.5: MUST NOT provide more than one output buffer with the current command ID",
        || {
            let mut guest = Guest::new();
            guest.control.start_hinting(false).expect("a driver");
            guest.pump();
            let round = guest.field(8);
            let at = guest.note(&round.to_le_bytes());
            for _ in 0..2 {
                guest.offer(HINTS, &[(at, 4)], &[(0x20_0000, 0x1000)]);
                assert_eq!(guest.taken(HINTS), 1);
                assert_eq!(guest.given.take().len(), 1);
            }
        },
    ),
    ("5.5.6.5: MUST complete hinting with CMD_ID_STOP", || {
        let mut guest = Guest::new();
        guest.control.start_hinting(true).expect("a driver");
        guest.pump();
        let round = guest.field(8);
        assert_eq!(guest.field(8), round, "the round goes on");
        guest.control.stop_hinting();
        guest.pump();
        assert_eq!(guest.field(8), DONE);
    }),
    (
        "5.5.6.5: MUST treat hinted pages as uninitialized, and initialize those that it uses",
        // A driver that doesn't reads zeros.
        || {},
    ),
    (
        "5.5.6.6: MUST initialize deflated pages with poison_val",
        // They are zero otherwise.
        || {},
    ),
    (
        "5.5.6.6: MUST populate poison_val before DRIVER_OK, and MUST NOT modify it later",
        || {
            let mut guest = Guest::new();
            for (poison, calls) in [(7, 0), (0, 1)] {
                guest.configure(12, poison);
                guest.offer(REPORTS, &[], &[(0x20_0000, 0x1000)]);
                assert_eq!(guest.taken(REPORTS), 1);
                assert_eq!(guest.given.take().len(), calls);
            }
        },
    ),
    (
        "5.5.6.7: MUST treat reported pages as uninitialized, or initialize them with poison_val before",
        // They are zero afterwards, or as they were.
        || {},
    ),
    (
        "5.5.6.7: MUST NOT use reported pages until they are acknowledged",
        // What it writes there may be lost. Nobody else sees it.
        || {},
    ),
];

#[test]
fn drivers_that_break_the_rules_harm_nobody() {
    for (rule, violate) in RULES {
        eprintln!("{rule}");
        violate();
    }
}
