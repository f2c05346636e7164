// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Features and configuration (virtio 1.4, sections 5.1.3 and 5.1.4).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_transport::layout::{Layout, RING_FEATURES};

use crate::rate::Limits;

/// The device ID (virtio 1.4, section 5).
const ID: u16 = 1;
/// The size of the queues for frames, in entries.
pub(super) const QUEUE_SIZE: u16 = 256;
/// The size of the control queue. Linux has one command in flight.
const CONTROL_SIZE: u16 = 16;
/// The most pairs of queues. A driver uses at most one per vCPU.
pub const MAX_PAIRS: usize = 64;
/// The smallest MTU in bytes (5.1.4.1).
pub const MIN_MTU: u16 = 68;
/// The size of the configuration, up to `mtu`.
const LEN: u32 = 12;

pub(super) const CSUM: u64 = 1;
pub(super) const GUEST_CSUM: u64 = 1 << 1;
pub(super) const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
pub(super) const GUEST_TSO4: u64 = 1 << 7;
pub(super) const GUEST_TSO6: u64 = 1 << 8;
pub(super) const HOST_TSO4: u64 = 1 << 11;
pub(super) const HOST_TSO6: u64 = 1 << 12;
pub(super) const MRG_RXBUF: u64 = 1 << 15;
const STATUS: u64 = 1 << 16;
pub(super) const CTRL_VQ: u64 = 1 << 17;
pub(super) const MQ: u64 = 1 << 22;
/// The features that need a link with headers.
const OFFLOADS: u64 = CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6;
/// Features that require another one (5.1.3.1).
const REQUIRES: &[(u8, u8)] = &[(7, 1), (8, 1), (11, 0), (12, 0), (22, 17)];

/// The bit of `status`.
const LINK_UP: u16 = 1;

/// A MAC address. Its text is that of `ip link`, as in `52:54:00:12:34:56`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Whether an interface can have it: it is neither a group's address nor zero.
    pub const fn is_unicast(self) -> bool {
        let [a, b, c, d, e, f] = self.0;
        a & 1 == 0 && (a | b | c | d | e | f) != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// A text is no MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a MAC address is six pairs of hexadecimal digits, as in 52:54:00:12:34:56")]
pub struct MacError;

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().ok_or(MacError)?;
            let is_pair = part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit());
            if !is_pair {
                return Err(MacError);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| MacError)?;
        }
        match parts.next() {
            None => Ok(Mac(mac)),
            Some(_) => Err(MacError),
        }
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

/// The properties of a network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// The guest's MAC address. It must be [unicast](Mac::is_unicast).
    pub mac: Mac,
    /// The MTU that the driver must not exceed, in bytes, at least [`MIN_MTU`]; `None` to leave it to the driver.
    pub mtu: Option<u16>,
    /// The limits of what the guest receives: bytes of frames, and frames, per second.
    pub rx: Limits,
    /// The limits of what the guest sends.
    pub tx: Limits,
}

impl NetConfig {
    /// A device without limits.
    pub const fn new(mac: Mac) -> Self {
        let none = Limits {
            bandwidth: None,
            iops: None,
        };
        NetConfig {
            mac,
            mtu: None,
            rx: none,
            tx: none,
        }
    }

    /// Whether the fields are in their ranges.
    pub(super) fn is_possible(&self) -> bool {
        self.mac.is_unicast() && self.mtu.is_none_or(|mtu| mtu >= MIN_MTU)
    }
}

/// The layout of a device with `pairs` pairs of queues, whose links have headers or not.
pub(super) fn layout(config: &NetConfig, pairs: usize, has_headers: bool) -> Layout {
    let mut features = RING_FEATURES | MAC | MRG_RXBUF | STATUS;
    let mut queues = vec![QUEUE_SIZE; 2 * pairs];
    if config.mtu.is_some() {
        features |= MTU;
    }
    if has_headers {
        features |= OFFLOADS;
    }
    if pairs > 1 {
        features |= CTRL_VQ | MQ;
        queues.push(CONTROL_SIZE);
    }
    Layout {
        id: ID,
        features,
        requires: REQUIRES,
        queues,
        config_len: LEN,
    }
}

/// Appends the configuration.
pub(super) fn config(config: &NetConfig, pairs: usize, is_up: bool, out: &mut Vec<u8>) {
    let status = if is_up { LINK_UP } else { 0 };
    out.extend(config.mac.0);
    out.extend(status.to_le_bytes());
    // Fits: there are at most `MAX_PAIRS`.
    out.extend((pairs as u16).to_le_bytes());
    out.extend(config.mtu.unwrap_or(0).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_read_and_written() {
        let mac: Mac = "52:54:00:aB:Cd:0f".parse().expect("a MAC");
        assert_eq!(mac, Mac([0x52, 0x54, 0, 0xab, 0xcd, 0x0f]));
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:0f");
        for wrong in [
            "",
            "52",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:5",
            "52:54:00:12:34:+5",
            "52:54:00:12:34:xx",
            "525400123456",
            "52-54-00-12-34-56",
            " 52:54:00:12:34:56",
            "52:54:00:12:34:56:",
        ] {
            assert_eq!(wrong.parse::<Mac>(), Err(MacError), "{wrong}");
        }
        let json = serde_json::to_string(&mac).expect("text");
        assert_eq!(json, r#""52:54:00:ab:cd:0f""#);
        assert_eq!(serde_json::from_str::<Mac>(&json).expect("a MAC"), mac);
    }

    #[test]
    fn an_interface_has_a_unicast_address() {
        assert!(Mac([2, 0, 0, 0, 0, 0]).is_unicast());
        assert!(Mac([0, 0, 0, 0, 0, 1]).is_unicast());
        assert!(!Mac([0; 6]).is_unicast());
        assert!(!Mac([1, 0, 0, 0, 0, 0]).is_unicast());
        assert!(!Mac([0xff; 6]).is_unicast());
    }
}
