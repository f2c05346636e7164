// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The metadata service: a web server on the guest's own network, which gives it the values that the host has stored.
//!
//! ```text
//!   API --Store--------------------\
//!   guest's frames --> Stack (TCP) --> Service (HTTP, tokens)
//!                  <--
//! ```
//!
//! It is Firecracker's MMDS. Frames for the service end here: nothing in them reaches the host's network, and nothing
//! here has a socket. No step waits, and all memory is bounded.

mod connection;
mod http;
mod packet;
#[cfg(any(test, feature = "test-utils"))]
pub mod playground;
mod service;
mod stack;
mod store;
mod tokens;

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

pub(crate) use self::packet::{HEAD, is_for};
pub(crate) use self::service::Service;
pub(crate) use self::stack::Stack;
pub use self::store::{Store, StoreError};

/// The service's address, unless another one is given.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Which requests the service answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    /// All of them.
    #[default]
    V1,
    /// Those with a token.
    V2,
}

/// How a machine reaches the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MmdsSpec {
    /// Which requests it answers.
    pub version: Version,
    /// The networks that lead to it, by their numbers in [`VmSpec::net`](crate::config::VmSpec::net).
    pub nets: Vec<usize>,
    /// Its address, which is link-local.
    pub address: Ipv4Addr,
    /// Whether it answers in IMDS's format always, as EC2 does.
    pub imds_compat: bool,
    /// Its values.
    pub store: Store,
}

/// Whether the service can have this address: 169.254.1.0 to 169.254.254.255 (RFC 3927, section 2.1).
pub const fn is_possible(address: Ipv4Addr) -> bool {
    let [first, second, third, _] = address.octets();
    first == 169 && second == 254 && third != 0 && third != 255
}

#[cfg(test)]
mod tests;
