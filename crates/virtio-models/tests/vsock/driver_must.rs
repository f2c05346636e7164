// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The "driver MUST" sentences of virtio 1.4, section 5.10, and what happens if a driver violates them. Each has a test
//! that breaks it, or a reason why a device can't see the violation.

use crate::support::*;

/// A rule, and a driver that violates it.
type Rule = (&'static str, fn());

const RULES: &[Rule] = &[
    (
        "5.10.6.1: rx MUST be processed even when tx is full, while there are resources",
        || {
            let mut guest = Guest::new();
            let socket = guest.connect();
            write(&socket, b"waits");
            // Without receive buffers the guest can still send.
            for _ in 0..100 {
                assert!(guest.sends(&packet(RW).with(b"x")));
            }
            assert_eq!(read(&socket), (b"x".repeat(100), false));
            guest.give(1, 64);
            assert_eq!(guest.packet().data, b"waits");
        },
    ),
    (
        "5.10.6.3: RW packets MUST only be transmitted when the peer has sufficient free buffer space",
        || {
            let mut guest = Guest::new();
            let socket = guest.connect();
            for _ in 0..30 {
                assert!(guest.sends(&packet(RW).with(&bytes(60_000))));
            }
            guest.give(2, 64);
            assert!(guest.ops().contains(&RST));
            drop(socket);
        },
    ),
    (
        "5.10.6.3: all packets MUST contain valid buf_alloc and fwd_cnt",
        || {
            let mut guest = Guest::new();
            let socket = guest.connect();
            guest.give(2, 64);
            for (buf_alloc, fwd_cnt) in [(0, u32::MAX), (u32::MAX, u32::MAX), (1, 2), (0, 0)] {
                let lie = Packet {
                    buf_alloc,
                    fwd_cnt,
                    ..packet(UPDATE)
                };
                assert!(guest.sends(&lie));
            }
            write(&socket, b"no credit");
            assert_eq!(guest.ops(), [QUERY]);
            assert!(guest.sends(&packet(UPDATE)));
            assert_eq!(guest.packet().data, b"no credit");
        },
    ),
    ("5.10.6.4: guest_cid MUST be used as the source CID", || {
        let mut guest = Guest::new();
        let _listener = guest.place.listen(52);
        guest.give(1, 64);
        assert!(guest.sends(&Packet {
            src_cid: CID + 1,
            ..packet(REQUEST)
        }));
        assert!(guest.packets().is_empty());
    }),
    (
        "5.10.6.4: an RST reply MUST be sent for an unknown type",
        // The device sends only streams.
        || {},
    ),
    (
        "5.10.6.7: guest_cid MUST be fetched after a TRANSPORT_RESET",
        // A driver that doesn't has the old CID, whose packets are ignored: see above.
        || {},
    ),
    (
        "5.10.6.7: connections MUST be shut down after a TRANSPORT_RESET",
        // Their packets are reset: see `saved`.
        || {},
    ),
    (
        "5.10.6.7: listen connections MUST remain operational",
        // A guest that refuses connections is none of the device's business.
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

#[test]
fn a_driver_may_have_no_sockets() {
    // VIRTIO_VSOCK_F_NO_IMPLIED_STREAM without VIRTIO_VSOCK_F_STREAM (5.10.3).
    let mut guest = Guest::wanting(Place::new(), LONG, !1);
    let _listener = guest.place.listen(52);
    guest.give(1, 64);
    assert!(guest.sends(&packet(REQUEST)));
    assert_eq!(guest.ops(), [RST]);
    // Without both, streams are implied.
    let mut guest = Guest::wanting(Place::new(), LONG, !0b101);
    guest.connect();
}

#[test]
fn the_configuration_is_the_cid() {
    let guest = Guest::new();
    assert_eq!(guest.machine.worker.device().config(), CID.to_le_bytes());
    for cid in [0, 1, 2, u32::MAX] {
        assert!(!virtio_models::vsock::is_guest_cid(cid));
    }
    assert!(virtio_models::vsock::is_guest_cid(3));
    assert!(virtio_models::vsock::is_guest_cid(u32::MAX - 1));
}
