// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The "driver MUST" sentences of virtio 1.4, section 5.2, and what happens if a driver violates them.

use virtio_models::block::Disk;
use virtio_transport::testing::{MmioPort, Port};

use crate::support::*;

/// A rule, and a driver that violates it.
type Rule = (&'static str, fn());

const RULES: &[Rule] = &[
    (
        "5.2.5.1: MUST NOT write the writeback field without VIRTIO_BLK_F_CONFIG_WCE",
        || {
            let mut guest = Guest::with(64, Disk::default(), !(1 << 11));
            guest.machine.write(MmioPort::CONFIG + 32, &[0]);
            guest.machine.pump();
            assert_eq!(guest.machine.worker.device().config()[32], 1);
        },
    ),
    (
        "5.2.6.1: MUST NOT submit a request which would cause a read or write beyond capacity",
        || {
            let mut guest = Guest::new(64);
            assert_eq!(guest.read(64, 512).0, IOERR);
            assert_eq!(guest.write(63, &[0; 1024]), IOERR);
        },
    ),
    (
        "5.2.6.1: MUST set the length of data to a multiple of 512 bytes",
        || {
            let mut guest = Guest::new(64);
            assert_eq!(guest.read(0, 100).0, IOERR);
            assert_eq!(guest.write(0, &[0; 700]), IOERR);
        },
    ),
    (
        "5.2.6.1: MUST NOT submit VIRTIO_BLK_T_FLUSH without VIRTIO_BLK_F_FLUSH",
        || {
            let mut guest = Guest::with(64, Disk::default(), !(1 << 9));
            assert_eq!(guest.status(header(FLUSH, 0)), UNSUPP);
        },
    ),
    (
        "5.2.6.1: MUST set sector to 0 for VIRTIO_BLK_T_FLUSH",
        || {
            let mut guest = Guest::new(64);
            assert_eq!(guest.status(header(FLUSH, u64::MAX)), OK);
        },
    ),
    (
        "5.2.6.1: MUST NOT submit VIRTIO_BLK_T_DISCARD without VIRTIO_BLK_F_DISCARD",
        || {
            let mut guest = Guest::with(64, Disk::default(), !(1 << 13));
            assert_eq!(guest.zero(DISCARD, 0, 1, 0), UNSUPP);
        },
    ),
    (
        "5.2.6.1: MUST NOT submit VIRTIO_BLK_T_WRITE_ZEROES without VIRTIO_BLK_F_WRITE_ZEROES",
        || {
            let mut guest = Guest::with(64, Disk::default(), !(1 << 14));
            assert_eq!(guest.zero(WRITE_ZEROES, 0, 1, 0), UNSUPP);
        },
    ),
    (
        "5.2.6.1: MUST NOT submit more segments or sectors than the device's limits",
        || {
            let mut guest = Guest::new(64);
            let two = [range(0, 1, 0), range(1, 1, 0)].concat();
            for kind in [DISCARD, WRITE_ZEROES] {
                assert_eq!(guest.status([header(kind, 0), two.clone()].concat()), IOERR);
                assert_eq!(guest.zero(kind, 0, u32::MAX, 0), IOERR);
            }
        },
    ),
    (
        "5.2.6.1: MUST set unmap to 0 for VIRTIO_BLK_T_DISCARD, and reserved flags to 0",
        || {
            let mut guest = Guest::new(64);
            assert_eq!(guest.zero(DISCARD, 0, 1, 1), UNSUPP);
            assert_eq!(guest.zero(DISCARD, 0, 1, 4), UNSUPP);
            assert_eq!(guest.zero(WRITE_ZEROES, 0, 1, 4), UNSUPP);
        },
    ),
    (
        "5.2.6.1: MUST give VIRTIO_BLK_T_GET_ID a buffer of 20 bytes",
        || {
            let mut guest = Guest::new(64);
            assert_eq!(guest.ask(header(GET_ID, 0), 5).bytes[4], IOERR);
        },
    ),
    ("5.2.6: the status is a byte that the device writes", || {
        let mut guest = Guest::new(64);
        assert_eq!(guest.ask(header(OUT, 0), 0).len, 0);
        assert!(guest.disk().log.is_empty(), "nothing is written unanswered");
    }),
    (
        "5.2.3: MUST NOT send a secure erase or zone command that was not negotiated",
        || {
            let mut guest = Guest::new(64);
            for kind in [14, 16, 18, 20, 22, 24, 26] {
                assert_eq!(guest.status(header(kind, 0)), UNSUPP);
            }
        },
    ),
];

#[test]
fn drivers_that_break_a_rule_are_answered() {
    for (rule, broken) in RULES {
        println!("{rule}");
        broken();
    }
}
