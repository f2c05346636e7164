// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The settings of network devices.

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;
use std::ops::{Not, RangeInclusive};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use virtio_models::net::{MAX_PAIRS, MIN_MTU};

use super::device::Listed;
use super::iothread::{self, IoThreadName};
use super::words::{self, Number, Word, WordError};
use super::{shared, slots};
use crate::text::shown;

pub use virtio_models::net::Mac;
pub use virtio_models::rate::{Limit, Limits};

/// The MTUs of a device: from virtio's least to its most.
const MTUS: RangeInclusive<u64> = MIN_MTU as u64..=65535;

const NO_LIMITS: Limits = Limits {
    bandwidth: None,
    iops: None,
};

/// A network device.
///
/// As JSON it is an object with the flag's keys, such as `{"user": true, "forward": ["8080:80"]}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Keys", into = "Keys")]
pub struct NetSpec {
    /// What it is connected to.
    pub link: LinkSpec,
    /// Its address. By default one that is made from the host's and the link's names, the same at each start.
    pub mac: Option<Mac>,
    /// The largest packet that the guest should send, in bytes without the Ethernet header: 68 to 65535.
    pub mtu: Option<u16>,
    /// The pairs of queues, 1 to [`MAX_PAIRS`]. A driver uses at most one per vCPU.
    pub queues: u16,
    /// The limits of what the guest receives: bytes of frames, and frames, per second.
    pub rx: Limits,
    /// The limits of what the guest sends.
    pub tx: Limits,
    /// The I/O thread of the device. By default it is the one that devices share.
    pub iothread: Option<IoThreadName>,
    /// The slot of a network that can be removed while the guest runs: one of [`HotplugSlots`](super::HotplugSlots).
    pub slot: Option<u8>,
}

/// What a network device is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkSpec {
    /// The host's tap interface with this name.
    Tap(String),
    /// A tap that is open, by the number of its inherited descriptor.
    Fd(u32),
    /// The host's network by passt, without root, with these ports of the host's forwarded to the guest.
    User(Vec<Forward>),
}

/// As the flag has it.
impl Display for LinkSpec {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            LinkSpec::Tap(name) => write!(f, "tap={}", shown(name)),
            LinkSpec::Fd(fd) => write!(f, "fd={fd}"),
            LinkSpec::User(_) => f.write_str("user"),
        }
    }
}

/// A TCP port of the host's that is forwarded to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The host's address; all of them if there is none.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
}

impl NetSpec {
    /// A device on `link`, with defaults for everything else.
    pub const fn new(link: LinkSpec) -> Self {
        NetSpec {
            link,
            mac: None,
            mtu: None,
            queues: 1,
            rx: NO_LIMITS,
            tx: NO_LIMITS,
            iothread: None,
            slot: None,
        }
    }
}

/// Why a network device is not possible. The messages continue the phrase "no network: ".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// It is connected to nothing, or to more than one thing.
    #[error("it needs one of tap=NAME, fd=N and user")]
    Link,
    /// Ports are forwarded only by passt.
    #[error("forward= is for user; a tap needs no forwarding")]
    Forward,
    /// A port is forwarded twice.
    #[error("port {host} of the host is forwarded twice; leave out one")]
    SamePort {
        /// The port.
        host: u16,
    },
    /// Only a tap by name has more than one pair of queues.
    #[error("queues= is for tap=NAME; fd=N and user have one pair of queues")]
    OnePair,
    /// The number of queue pairs is not possible.
    #[error("queues={queues} is not a number of queue pairs from 1 to {MAX_PAIRS}; choose one")]
    Queues {
        /// The number.
        queues: u16,
    },
    /// The MTU is not possible.
    #[error("mtu={mtu} is not a number of bytes from {} to {}; choose one", MTUS.start(), MTUS.end())]
    Mtu {
        /// The number.
        mtu: u64,
    },
    /// The address is not that of one device.
    #[error("mac={mac} is {}; give it one like 52:54:00:12:34:56", not_a_device(*mac))]
    Mac {
        /// The address.
        mac: Mac,
    },
}

fn not_a_device(mac: Mac) -> &'static str {
    match mac.0 {
        [0, 0, 0, 0, 0, 0] => "no address",
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => "the broadcast address",
        _ => "a multicast address",
    }
}

/// A device as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    #[serde(default, deserialize_with = "words::word")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tap: Option<String>,
    #[serde(default, deserialize_with = "number")]
    #[serde(skip_serializing_if = "Option::is_none")]
    fd: Option<u64>,
    #[serde(default, deserialize_with = "words::word")]
    #[serde(skip_serializing_if = "Not::not")]
    user: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    forward: Vec<Forward>,
    #[serde(default, deserialize_with = "mac")]
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<Mac>,
    #[serde(default, deserialize_with = "number")]
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u64>,
    #[serde(default = "shared::one", deserialize_with = "shared::queues")]
    queues: u16,
    #[serde(default, deserialize_with = "shared::bandwidth")]
    #[serde(serialize_with = "shared::write_bandwidth")]
    #[serde(skip_serializing_if = "Option::is_none")]
    bandwidth: Option<Limit>,
    #[serde(default, deserialize_with = "shared::iops")]
    #[serde(serialize_with = "shared::write_iops")]
    #[serde(skip_serializing_if = "Option::is_none")]
    iops: Option<Limit>,
    #[serde(
        default,
        rename = "rx-bandwidth",
        deserialize_with = "shared::bandwidth"
    )]
    #[serde(serialize_with = "shared::write_bandwidth")]
    #[serde(skip_serializing_if = "Option::is_none")]
    rx_bandwidth: Option<Limit>,
    #[serde(default, rename = "rx-iops", deserialize_with = "shared::iops")]
    #[serde(serialize_with = "shared::write_iops")]
    #[serde(skip_serializing_if = "Option::is_none")]
    rx_iops: Option<Limit>,
    #[serde(
        default,
        rename = "tx-bandwidth",
        deserialize_with = "shared::bandwidth"
    )]
    #[serde(serialize_with = "shared::write_bandwidth")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tx_bandwidth: Option<Limit>,
    #[serde(default, rename = "tx-iops", deserialize_with = "shared::iops")]
    #[serde(serialize_with = "shared::write_iops")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tx_iops: Option<Limit>,
    #[serde(default, deserialize_with = "iothread::named")]
    #[serde(skip_serializing_if = "Option::is_none")]
    iothread: Option<IoThreadName>,
    #[serde(default, deserialize_with = "slots::slot")]
    #[serde(skip_serializing_if = "Option::is_none")]
    slot: Option<u8>,
}

impl TryFrom<Keys> for NetSpec {
    type Error = NetError;

    fn try_from(keys: Keys) -> Result<Self, NetError> {
        if !keys.forward.is_empty() && !keys.user {
            return Err(NetError::Forward);
        }
        let link = match (keys.tap, keys.fd, keys.user) {
            (Some(name), None, false) => LinkSpec::Tap(name),
            // No descriptor has a number that large.
            (None, Some(fd), false) => LinkSpec::Fd(u32::try_from(fd).unwrap_or(u32::MAX)),
            (None, None, true) => LinkSpec::User(keys.forward),
            _ => return Err(NetError::Link),
        };
        let mtu = |mtu| u16::try_from(mtu).map_err(|_| NetError::Mtu { mtu });
        Ok(NetSpec {
            link,
            mac: keys.mac,
            mtu: keys.mtu.map(mtu).transpose()?,
            queues: keys.queues,
            rx: Limits {
                bandwidth: keys.rx_bandwidth.or(keys.bandwidth),
                iops: keys.rx_iops.or(keys.iops),
            },
            tx: Limits {
                bandwidth: keys.tx_bandwidth.or(keys.bandwidth),
                iops: keys.tx_iops.or(keys.iops),
            },
            iothread: keys.iothread,
            slot: keys.slot,
        })
    }
}

impl From<NetSpec> for Keys {
    fn from(spec: NetSpec) -> Self {
        let (mut tap, mut fd, mut user, mut forward) = (None, None, false, Vec::new());
        match spec.link {
            LinkSpec::Tap(name) => tap = Some(name),
            LinkSpec::Fd(number) => fd = Some(number.into()),
            LinkSpec::User(forwards) => (user, forward) = (true, forwards),
        }
        let (bandwidth, [rx_bandwidth, tx_bandwidth]) =
            joined(spec.rx.bandwidth, spec.tx.bandwidth);
        let (iops, [rx_iops, tx_iops]) = joined(spec.rx.iops, spec.tx.iops);
        Keys {
            tap,
            fd,
            user,
            forward,
            mac: spec.mac,
            mtu: spec.mtu.map(u64::from),
            queues: spec.queues,
            bandwidth,
            iops,
            rx_bandwidth,
            rx_iops,
            tx_bandwidth,
            tx_iops,
            iothread: spec.iothread,
            slot: spec.slot,
        }
    }
}

type Rate = Option<Limit>;

/// One rate for both directions, or one for each.
fn joined(rx: Rate, tx: Rate) -> (Rate, [Rate; 2]) {
    match rx == tx {
        true => (rx, [None, None]),
        false => (None, [rx, tx]),
    }
}

impl NetSpec {
    /// Checks what can be checked without the host.
    ///
    /// # Errors
    /// [`NetError`] is the first thing that is not possible.
    pub fn validate(&self) -> Result<(), NetError> {
        if self.queues == 0 || usize::from(self.queues) > MAX_PAIRS {
            let queues = self.queues;
            return Err(NetError::Queues { queues });
        }
        if self.queues > 1 && !matches!(self.link, LinkSpec::Tap(_)) {
            return Err(NetError::OnePair);
        }
        if let Some(mtu) = self.mtu.map(u64::from).filter(|mtu| !MTUS.contains(mtu)) {
            return Err(NetError::Mtu { mtu });
        }
        if let Some(mac) = self.mac.filter(|mac| !mac.is_unicast()) {
            return Err(NetError::Mac { mac });
        }
        match &self.link {
            LinkSpec::User(forwards) => {
                twice(forwards).map_or(Ok(()), |host| Err(NetError::SamePort { host }))
            }
            _ => Ok(()),
        }
    }
}

/// A port that two of `forwards` have.
fn twice(forwards: &[Forward]) -> Option<u16> {
    let meet = |a: &Forward, b: &Forward| {
        let is_any = a.address.is_none() || b.address.is_none();
        a.host == b.host && (is_any || a.address == b.address)
    };
    let mut later = forwards.iter().enumerate();
    let second =
        later.find(|(at, forward)| forwards[..*at].iter().any(|other| meet(other, forward)));
    second.map(|(_, forward)| forward.host)
}

/// As passt reads it.
impl Display for Forward {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.address {
            write!(f, "{address}/")?;
        }
        write!(f, "{}:{}", self.host, self.guest)
    }
}

impl Word for Forward {
    const EXPECTED: &'static str = "a forwarded port such as \"8080:80\"";

    fn from_word(word: &str) -> Result<Self, WordError> {
        let (address, ports) = match word.split_once('/') {
            Some((address, ports)) => (Some(address.parse()), ports),
            None => (None, word),
        };
        let address = address.transpose().map_err(|_| WordError::Forward)?;
        let (host, guest) = ports.split_once(':').ok_or(WordError::Forward)?;
        // `parse` accepts a sign, but a port has none.
        let port = |digits: &str| match digits.bytes().all(|byte| byte.is_ascii_digit()) {
            true => digits.parse().ok().filter(|port| *port != 0),
            false => None,
        };
        Ok(Forward {
            address,
            host: port(host).ok_or(WordError::Forward)?,
            guest: port(guest).ok_or(WordError::Forward)?,
        })
    }
}

impl Serialize for Forward {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Forward {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        words::word(from)
    }
}

impl Word for Mac {
    const EXPECTED: &'static str = "a MAC address such as \"52:54:00:12:34:56\"";

    fn from_word(word: &str) -> Result<Self, WordError> {
        word.parse().map_err(|_| WordError::Mac)
    }
}

fn mac<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Mac>, D::Error> {
    words::word(from).map(Some)
}

fn number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let Number(number) = words::word(from)?;
    Ok(Some(number))
}

/// A list in JSON, or the device of one flag.
impl Listed for NetSpec {
    const EXPECTED: &'static str = "a list of networks such as [{\"tap\": \"tap0\"}]";
    const REFUSED: fn(String) -> WordError = WordError::Net;
}

#[cfg(test)]
pub(super) mod tests;
