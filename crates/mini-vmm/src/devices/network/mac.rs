// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The addresses of network devices that the user gives none.
//!
//! They are the same at each start, so that a guest keeps its configuration and its DHCP lease. They differ between
//! hosts and between links, so that two guests can share an Ethernet.

use std::fs::File;
use std::io::Read;

use crate::config::Mac;

/// The host's identity, see machine-id(5).
const MACHINE_ID: &str = "/etc/machine-id";
/// The host's name.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";
/// The most bytes that count. An identity has 32.
const MAX_ID: u64 = 64;

/// The host's identity: its machine ID, or its name.
pub(super) fn host_id() -> Vec<u8> {
    let read = |path| {
        let mut id = Vec::new();
        let file = File::open(path).ok()?;
        file.take(MAX_ID).read_to_end(&mut id).ok()?;
        (!id.is_empty()).then_some(id)
    };
    read(MACHINE_ID)
        .or_else(|| read(HOST_NAME))
        .unwrap_or_default()
}

/// The address of the device on `link` of the host with the identity `host`. A pure function, whose results must stay the
/// same in later versions.
pub(super) fn derive(host: &[u8], link: &str) -> Mac {
    let [a, b, c, d, e, f, ..] = fnv1a(&[host, &[0], link.as_bytes()]).to_be_bytes();
    // For one device, and locally administered.
    Mac([a & !1 | 2, b, c, d, e, f])
}

/// The FNV-1a hash of `parts`, one after the other.
fn fnv1a(parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().copied().flatten();
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// From the algorithm's reference.
    #[test]
    fn the_hash_is_fnv1a() {
        assert_eq!(fnv1a(&[b""]), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(&[b"foo", b"bar"]), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn each_link_of_each_host_has_its_address() {
        assert_eq!(derive(b"host", "tap0"), derive(b"host", "tap0"));
        let mut macs = HashSet::new();
        for host in ["0", "1", "host"] {
            for link in 0..100 {
                let mac = derive(host.as_bytes(), &format!("tap{link}"));
                assert_eq!(mac.0[0] & 3, 2, "{mac}");
                assert!(macs.insert(mac.0), "{mac}");
            }
        }
        assert_ne!(derive(b"a", "b"), derive(b"", "ab"));
        assert!(!host_id().is_empty());
    }

    /// A later version must not change the addresses of users' guests.
    #[test]
    fn addresses_stay_the_same() {
        assert_eq!(derive(b"host", "tap0").to_string(), "82:f5:bd:1f:66:e5");
    }
}
