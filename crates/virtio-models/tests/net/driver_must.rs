// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The "driver MUST" sentences of virtio 1.4, section 5.1, and what happens if a driver violates them. Each has a test
//! that breaks it, or a reason why a device can't see the violation.

use std::collections::BTreeSet;

use virtio_models::net::NetConfig;
use virtio_transport::registers::{ACKNOWLEDGE, DRIVER, FEATURES_OK};
use virtio_transport::testing::{MmioPort, Port};

use crate::support::*;

/// A rule, and a driver that violates it.
type Rule = (&'static str, fn());

const NONE: [u8; HEADER] = [0; HEADER];

/// Whether a driver with these features may send a frame with these flags, GSO type and size.
fn sends(features: u64, flags: u8, kind: u8, size: u8) -> Option<[u8; HEADER]> {
    let wire = Wire::new();
    let mut guest = Guest::one(&wire, features);
    let mut header = NONE;
    (header[0], header[1], header[4]) = (flags, kind, size);
    guest.send(&header, &frame(2000));
    assert_eq!(guest.used(1).len(), 1, "it is returned");
    let sent = wire.line().sent.pop();
    assert_eq!(guest.counters.sent_dropped(), u64::from(sent.is_none()));
    sent.map(|(header, _)| header)
}

/// The answers to commands of a class.
fn answers(class: u8) -> Vec<u8> {
    let wires = [Wire::new(), Wire::new()];
    let mut guest = Guest::new(&wires, u64::MAX);
    let commands = (0..7).map(|command| guest.command(4, &[class, command, 1, 0, 0, 0, 0, 0]));
    commands.collect()
}

const RULES: &[Rule] = &[
    (
        "5.1.3.1: MUST NOT accept a feature without the one that it requires",
        || {
            let wires = [Wire::new(), Wire::new()];
            let mut guest = Guest::new(&wires, u64::MAX);
            for (feature, needed) in [(7, 1), (8, 1), (11, 0), (12, 0), (22, 17)] {
                for features in [1 << feature, 1 << feature | 1 << needed] {
                    guest.machine.set_status(0);
                    guest.machine.pump();
                    guest.machine.set_status(ACKNOWLEDGE);
                    guest.machine.set_status(ACKNOWLEDGE | DRIVER);
                    guest.machine.port.set_driver_features(0, features);
                    guest.machine.port.set_driver_features(1, 1);
                    guest.machine.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
                    let took = guest.machine.port.status() & FEATURES_OK != 0;
                    assert_eq!(took, features != 1 << feature, "{feature}");
                }
            }
        },
    ),
    (
        "5.1.4.2: MUST NOT write to any of the device configuration fields",
        || {
            let mut guest = Guest::one(&Wire::new(), u64::MAX);
            let before = guest.machine.worker.device().config();
            for at in 0..12 {
                guest.machine.write(MmioPort::CONFIG + at, &[0xff]);
                guest.machine.pump();
            }
            assert_eq!(guest.machine.worker.device().config(), before);
        },
    ),
    (
        "5.1.4.2: MUST supply receive buffers for at least one frame of the MTU's size",
        || {
            let wire = Wire::new();
            let config = NetConfig {
                mtu: Some(1500),
                ..config()
            };
            let wires = std::slice::from_ref(&wire);
            let mut guest = Guest::with(config, wires, u64::MAX, (None, None));
            guest.give(0, &[500]);
            wire.deliver(NONE, frame(1500));
            guest.machine.pump();
            assert!(guest.received().is_empty() && guest.machine.failures.is_empty());
            guest.give(0, &[500]);
            guest.give(0, &[600]);
            assert_eq!(guest.received()[0].1, frame(1500));
        },
    ),
    (
        "5.1.4.2: MUST NOT transmit packets that are longer than the MTU",
        || {
            // That harms the driver's peers only, which drop them.
            let wire = Wire::new();
            let config = NetConfig {
                mtu: Some(1500),
                ..config()
            };
            let wires = std::slice::from_ref(&wire);
            let mut guest = Guest::with(config, wires, u64::MAX, (None, None));
            guest.send(&NONE, &frame(9000));
            assert_eq!(wire.line().sent, [(NONE, frame(9000))]);
        },
    ),
    ("5.1.9.2.1: MUST use the receive header's size", || {
        let wire = Wire::new();
        let mut guest = Guest::one(&wire, u64::MAX);
        guest.queue(1, &[0; 10], &[], 0);
        guest.send(&[], &[0; 12]);
        assert_eq!(guest.used(1).len(), 2);
        assert_eq!(guest.counters.sent_dropped(), 2);
    }),
    ("5.1.9.2.1: MUST set num_buffers to zero", || {
        let wire = Wire::new();
        let mut guest = Guest::one(&wire, u64::MAX);
        let mut header = NONE;
        header[10..].fill(0xff);
        guest.send(&header, &frame(60));
        assert_eq!(wire.line().sent, [(NONE, frame(60))]);
    }),
    (
        "5.1.9.2.1: MUST set flags to zero without VIRTIO_NET_F_CSUM",
        || assert_eq!(sends(0, 0xff, 0, 0), Some(NONE)),
    ),
    (
        "5.1.9.2.1: MUST NOT set DATA_VALID, RSC_INFO, UDP_TUNNEL_CSUM, or bits that have no meaning",
        || assert_eq!(sends(u64::MAX, 0xfe, 0, 0), Some(NONE)),
    ),
    (
        "5.1.9.2.1: MUST NOT set gso_type to TCPV4 without VIRTIO_NET_F_HOST_TSO4",
        || {
            assert!(sends(u64::MAX, 1, 1, 9).is_some());
            assert!(sends(!(1 << 11), 1, 1, 9).is_none());
        },
    ),
    (
        "5.1.9.2.1: MUST NOT set gso_type to TCPV6 without VIRTIO_NET_F_HOST_TSO6",
        || {
            assert!(sends(u64::MAX, 1, 4, 9).is_some());
            assert!(sends(!(1 << 12), 1, 4, 9).is_none());
        },
    ),
    (
        "5.1.9.2.1: MUST NOT set gso_type to UDP or UDP_L4, and MUST NOT set bits for ECN and tunnels, alone or together",
        || {
            for kind in [2, 3, 5, 0x80, 0x81, 0x21, 0x41, 0x61, 0x63, 0x23, 0xff] {
                assert!(sends(u64::MAX, 1, kind, 9).is_none(), "{kind:#x}");
            }
        },
    ),
    (
        "5.1.9.2.1: MUST set gso_type to NONE without any of VIRTIO_NET_F_HOST_TSO4 and TSO6",
        || {
            let features = !(1 << 11 | 1 << 12);
            assert!((1..=255).all(|kind| sends(features, 1, kind, 9).is_none()));
        },
    ),
    (
        "5.1.9.2.1: MUST set NEEDS_CSUM and gso_size where gso_type is not NONE",
        || {
            assert!(sends(u64::MAX, 0, 1, 9).is_none());
            assert!(sends(u64::MAX, 1, 1, 0).is_none());
        },
    ),
    (
        "5.1.9.2.1: MUST set csum_start and csum_offset, and the pseudo header's checksum",
        || {
            // The host's kernel checks them: see the tests of taps.
            let wire = Wire::new();
            let mut guest = Guest::one(&wire, u64::MAX);
            let header = [1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
            guest.send(&header, &frame(60));
            assert_eq!(wire.line().sent, [(header, frame(60))]);
        },
    ),
    (
        "5.1.9.3.1: MUST make each buffer at least as long as the header, with VIRTIO_NET_F_MRG_RXBUF",
        || {
            let mut guest = Guest::one(&Wire::new(), u64::MAX);
            guest.give(0, &[12]);
            assert!(guest.machine.failures.is_empty());
            guest.give(0, &[11]);
            assert_eq!(guest.machine.failures.len(), 1);
        },
    ),
    (
        "5.1.9.5.1.2: MUST NOT send receive modes without VIRTIO_NET_F_CTRL_RX",
        || assert_eq!(answers(0), [1; 7]),
    ),
    (
        "5.1.9.5.2.2: MUST NOT send MAC commands without VIRTIO_NET_F_CTRL_RX and CTRL_MAC_ADDR",
        || assert_eq!(answers(1), [1; 7]),
    ),
    (
        "5.1.9.5.3: filters no VLAN without VIRTIO_NET_F_CTRL_VLAN",
        || assert_eq!(answers(2), [1; 7]),
    ),
    (
        "5.1.9.5.4.1: acknowledges announcements where there is one",
        || assert_eq!(answers(3), [1; 7]),
    ),
    (
        "5.1.9.5.6.1: MUST configure the queues before it enables them",
        || {
            let wires = [Wire::new(), Wire::new()];
            let mut guest = Guest::without_queues(&wires, &[2, 3]);
            assert_eq!(guest.command(4, &[4, 0, 2, 0]), 0);
            wires[1].deliver(NONE, frame(60));
            guest.machine.pump();
            assert_eq!(wires[1].line().receives, 0);
            guest.send(&NONE, &frame(60));
            assert_eq!(wires[0].line().sent.len(), 1);
        },
    ),
    (
        "5.1.9.5.6.1: MUST NOT request 0 pairs, or more than there are",
        || {
            let wires = [Wire::new(), Wire::new()];
            let mut guest = Guest::new(&wires, u64::MAX);
            for count in [[0, 0], [3, 0], [0, 0x80], [0xff, 0xff]] {
                assert_eq!(guest.command(4, &[[4, 0], count].concat()), 1);
            }
        },
    ),
    (
        "5.1.9.5.6.1: MUST queue packets on the transmit queues in use only",
        || {
            let wires = [Wire::new(), Wire::new()];
            let mut guest = Guest::new(&wires, u64::MAX);
            let sent = |guest: &mut Guest| {
                guest.queue(3, &[&NONE[..], &frame(60)].concat(), &[], 0);
                guest.machine.kick(3);
                guest.machine.pump();
                std::mem::take(&mut wires[1].line().sent).len()
            };
            assert_eq!(sent(&mut guest), 0);
            assert_eq!(guest.command(4, &[4, 0, 2, 0]), 0);
            assert_eq!(sent(&mut guest), 2);
            assert_eq!(guest.command(4, &[4, 0, 1, 0]), 0);
            assert_eq!(sent(&mut guest), 0);
        },
    ),
    (
        "5.1.9.5.7.2, 5.1.9.5.8.2: MUST NOT configure RSS without VIRTIO_NET_F_RSS",
        || assert_eq!(answers(4)[1..], [1; 6]),
    ),
    (
        "5.1.9.5.9.1: MUST NOT enable an offload that was not negotiated",
        || assert_eq!(answers(5), [1; 7]),
    ),
    (
        "5.1.9.5.10.1: MUST NOT coalesce notifications without VIRTIO_NET_F_NOTF_COAL",
        || assert_eq!(answers(6), [1; 7]),
    ),
    (
        "5.1.9: MUST NOT send commands of classes that were not negotiated",
        || {
            assert!((7..=255).all(|class| answers(class) == [1; 7]));
        },
    ),
];

/// The sections with driver requirements.
const SECTIONS: &[&str] = &[
    "5.1.3.1",
    "5.1.4.2",
    "5.1.9",
    "5.1.9.2.1",
    "5.1.9.3.1",
    "5.1.9.4",
    "5.1.9.4.2",
    "5.1.9.5.1.2",
    "5.1.9.5.10.1",
    "5.1.9.5.11",
    "5.1.9.5.2.2",
    "5.1.9.5.3",
    "5.1.9.5.4.1",
    "5.1.9.5.6.1",
    "5.1.9.5.7.2",
    "5.1.9.5.8.2",
    "5.1.9.5.9.1",
    "5.1.9.6",
    "5.1.9.7",
];

const IN_DRIVER: &str = "it happens in the driver";
const TUNNELS: &str = "no feature of tunnels is offered, and their bits are refused or cleared";
const NO_COMMAND: &str = "the feature is not offered, and all commands of its class are refused";
const NO_ADMIN: &str = "it needs administration commands, which are not offered";

/// Sentences that no device sees violated: section and sentence, why.
const UNSEEN: &[(&str, &str)] = &[
    ("5.1.4.2: MUST set the NIC's address to mac", IN_DRIVER),
    (
        "5.1.4.2: MUST take other values of speed and duplex for unknown",
        "VIRTIO_NET_F_SPEED_DUPLEX is not offered",
    ),
    (
        "5.1.9.2.1: MUST set the bit for ECN with VIRTIO_NET_F_HOST_ECN",
        "it is not offered, and the bit is refused",
    ),
    (
        "5.1.9.2.1: MUST validate the checksums before csum_offset",
        "as a frame with a bad checksum, which its receiver drops",
    ),
    (
        "5.1.9.2.1: MUST set hdr_len to the headers' length with VIRTIO_NET_F_GUEST_HDRLEN",
        "it is not offered, and the host takes the length for a hint",
    ),
    (
        "5.1.9.2.1: MUST set the tunnel's type and offsets, and its checksum",
        TUNNELS,
    ),
    (
        "5.1.9.2.1: MUST NOT send segments in tunnels that need checksums without the features",
        TUNNELS,
    ),
    (
        "5.1.9.2.1: MUST set resource_id to an outbound object with the bit for security",
        NO_ADMIN,
    ),
    (
        "5.1.9.3.1: MUST count all fields of a longer header",
        "no feature makes it longer than 12 bytes",
    ),
    (
        "5.1.9.4.2: MUST ignore flags that it doesn't know",
        "none is set",
    ),
    (
        "5.1.9.4.2: MUST NOT use the offsets of checksums, tunnels and headers without their bits",
        IN_DRIVER,
    ),
    ("5.1.9.4.2: MUST NOT rely on hdr_len", IN_DRIVER),
    (
        "5.1.9.4.2: MUST NOT rely on a checksum without NEEDS_CSUM and DATA_VALID",
        IN_DRIVER,
    ),
    (
        "5.1.9.4.2: MUST NOT accept frames with the bits of two tunnels, or of half of one",
        TUNNELS,
    ),
    (
        "5.1.9.4: MUST set hashes of tunnels only as supported and negotiated",
        NO_COMMAND,
    ),
    (
        "5.1.9.5.2.2: MUST give a table of MAC addresses with both counts",
        NO_COMMAND,
    ),
    (
        "5.1.9.5.7.2: MUST use queues, sizes and hash types that there are",
        NO_COMMAND,
    ),
    (
        "5.1.9.5.8.2: MUST use contexts that there are, and then set no pairs",
        NO_COMMAND,
    ),
    (
        "5.1.9.5.10.1: MUST name a queue in use, and ignore what comes with an error",
        NO_COMMAND,
    ),
    (
        "5.1.9.5.11: MUST ask for statistics that there are, with room for the answer",
        NO_COMMAND,
    ),
    (
        "5.1.9.6: MUST enable the capabilities of flow filters, and set their masks and keys",
        NO_ADMIN,
    ),
    (
        "5.1.9.7: MUST ask for the capabilities of IPsec, and set its parameters",
        NO_ADMIN,
    ),
];

#[test]
fn each_section_has_its_sentences() {
    let rules = RULES.iter().map(|(rule, _)| *rule);
    let all: Vec<_> = rules.chain(UNSEEN.iter().map(|(rule, _)| *rule)).collect();
    let distinct: BTreeSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), all.len(), "a sentence is there twice");
    let sections = all.iter().filter_map(|rule| rule.split_once(": "));
    let found: BTreeSet<_> = sections.flat_map(|(all, _)| all.split(", ")).collect();
    assert_eq!(found, SECTIONS.iter().copied().collect());
    assert!(UNSEEN.iter().all(|(_, why)| !why.is_empty()));
}

#[test]
fn drivers_that_break_a_rule_are_answered() {
    for (rule, broken) in RULES {
        println!("{rule}");
        broken();
    }
}
