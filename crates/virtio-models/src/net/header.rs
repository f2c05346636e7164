// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The header before each frame, `struct virtio_net_hdr` (virtio 1.4, 5.1.9): flags, GSO type, the length of the frame's
//! own headers, GSO size, two offsets of the checksum, number of buffers; 12 bytes in all.

use super::config::{CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6, MTU};
use crate::sys::HEADER;

/// The frame's checksum is to be completed.
const NEEDS_CSUM: u8 = 1;
/// The frame's checksum is right.
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
/// The bytes of a frame that its MTU doesn't count: Ethernet's header, and a VLAN's.
const BELOW_MTU: usize = 14 + 4;

pub(super) type Header = [u8; HEADER];

/// A header as it is in guest memory. Guest memory is accessed in units of a value's parts.
pub(super) type Words = [u32; HEADER / 4];

pub(super) fn bytes(words: Words) -> Header {
    let [a, b, c] = words.map(u32::to_ne_bytes);
    let mut header = [0; HEADER];
    let parts = header.chunks_exact_mut(4).zip([a, b, c]);
    parts.for_each(|(part, word)| part.copy_from_slice(&word));
    header
}

pub(super) fn words(header: Header) -> Words {
    let mut words = [[0; 4]; HEADER / 4];
    let parts = words.iter_mut().zip(header.chunks_exact(4));
    parts.for_each(|(word, part)| word.copy_from_slice(part));
    words.map(u32::from_ne_bytes)
}

/// Whether the frame may have this GSO type, with the features for TCP over IPv4 and over IPv6.
const fn allows(header: &Header, features: u64, tso4: u64, tso6: u64) -> bool {
    let [flags, kind, _, _, size_low, size_high, ..] = *header;
    let feature = match kind {
        GSO_NONE => return true,
        GSO_TCPV4 => tso4,
        GSO_TCPV6 => tso6,
        _ => return false,
    };
    features & feature != 0 && flags & NEEDS_CSUM != 0 && (size_low | size_high) != 0
}

/// Checks the header of a frame that the driver sends, and makes it what the link expects. Returns `false` if the driver
/// broke a rule (5.1.9.2.1).
pub(super) const fn outgoing(header: &mut Header, features: u64) -> bool {
    // Other flags are ignored (5.1.9.2.2).
    header[0] &= if features & CSUM != 0 { NEEDS_CSUM } else { 0 };
    // The number of buffers is for received frames only.
    (header[10], header[11]) = (0, 0);
    allows(header, features, HOST_TSO4, HOST_TSO6)
}

/// Checks the header of a received frame of `len` bytes, and makes it what the driver expects. Returns `false` if the
/// driver can't take the frame (5.1.4.1, 5.1.9.4.1).
pub(super) fn incoming(header: &mut Header, len: usize, features: u64, mtu: Option<u16>) -> bool {
    if features & GUEST_CSUM == 0 && header[0] & NEEDS_CSUM != 0 {
        return false;
    }
    header[0] &= if features & GUEST_CSUM != 0 {
        NEEDS_CSUM | DATA_VALID
    } else {
        0
    };
    let is_single = header[1] == GSO_NONE;
    let limit = mtu.filter(|_| is_single && features & MTU != 0);
    limit.is_none_or(|mtu| len <= usize::from(mtu) + BELOW_MTU)
        && allows(header, features, GUEST_TSO4, GUEST_TSO6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u8, kind: u8, size: u8) -> Header {
        [flags, kind, 0, 0, size, 0, 9, 9, 9, 9, 7, 7]
    }

    #[test]
    fn a_driver_uses_what_it_negotiated_only() {
        let all = CSUM | HOST_TSO4 | HOST_TSO6;
        let cases = [
            (all, header(1, 0, 0), true),
            (all, header(1, 1, 8), true),
            (all, header(1, 4, 8), true),
            (all & !HOST_TSO4, header(1, 1, 8), false),
            (all & !HOST_TSO6, header(1, 4, 8), false),
            (0, header(0, 0, 0), true),
            (0, header(1, 1, 8), false),
            // Without a size, or without a checksum to complete.
            (all, header(1, 1, 0), false),
            (all, header(0, 1, 8), false),
            // UDP, ECN, tunnels.
            (all, header(1, 3, 8), false),
            (all, header(1, 5, 8), false),
            (all, header(1, 0x81, 8), false),
            (all, header(1, 0x21, 8), false),
        ];
        for (features, mut header, wanted) in cases {
            let before = header;
            assert_eq!(outgoing(&mut header, features), wanted, "{before:?}");
            assert_eq!(header[2..10], before[2..10]);
            assert_eq!(header[10..], [0, 0]);
        }
        // What isn't known is ignored.
        let mut odd = header(0xff, 0, 0);
        assert!(outgoing(&mut odd, all) && odd[0] == 1);
        let mut odd = header(0xff, 0, 0);
        assert!(outgoing(&mut odd, 0) && odd[0] == 0);
    }

    #[test]
    fn a_driver_gets_what_it_negotiated_only() {
        let all = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | MTU;
        let cases = [
            (all, header(1, 1, 8), 65_000, true),
            (all, header(1, 4, 8), 65_000, true),
            (all & !GUEST_TSO4, header(1, 1, 8), 2000, false),
            (all & !GUEST_TSO6, header(1, 4, 8), 2000, false),
            (all, header(2, 0, 0), 1518, true),
            (all, header(2, 0, 0), 1519, false),
            (all & !MTU, header(2, 0, 0), 1519, true),
            (MTU, header(1, 0, 0), 60, false),
            (MTU, header(2, 0, 0), 60, true),
        ];
        for (features, mut header, len, wanted) in cases {
            let before = header;
            let took = incoming(&mut header, len, features, Some(1500));
            assert_eq!(took, wanted, "{before:?} {len}");
            if wanted && features & GUEST_CSUM == 0 {
                assert_eq!(header[0], 0);
            }
        }
        assert!(incoming(&mut header(0, 0, 0), 9000, all, None));
    }
}
