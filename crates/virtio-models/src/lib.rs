// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Virtio device models for VMMs. They implement [`virtio_transport::Device`].
//!
//! | module (feature) | device |
//! |---|---|
//! | `balloon` | memory that the guest gives back |
//! | `block` | a disk: a file or block device of the host's |
//! | `console` | a console, and named ports between processes of the host and of the guest |
//! | `entropy` | random numbers from the host |
//! | `net` | a network interface: a tap of the host's, or a process such as passt |
//! | `rate` | limits for any of them |
//! | `vhost_user` (`vhost-user`) | any device that another process serves |
//! | `vsock` | sockets between host and guest |
//!
//! A device is independent of the transport and of the VMM's threads. All `unsafe` is in `src/sys/`.

#![cfg_attr(
    not(any(feature = "block", feature = "net", feature = "vsock")),
    forbid(unsafe_code)
)]
#![cfg_attr(not(test), deny(clippy::too_many_lines))]

#[cfg(feature = "balloon")]
pub mod balloon;
#[cfg(any(feature = "balloon", feature = "block", feature = "net"))]
mod bell;
#[cfg(feature = "block")]
pub mod block;
#[cfg(feature = "console")]
pub mod console;
#[cfg(feature = "entropy")]
pub mod entropy;
#[cfg(feature = "net")]
pub mod net;
#[cfg(feature = "rate")]
pub mod rate;
#[cfg(any(feature = "net", feature = "vsock"))]
mod segments;
#[cfg(any(feature = "block", feature = "net", feature = "vsock"))]
mod sys;
#[cfg(any(
    feature = "balloon",
    feature = "rate",
    feature = "vhost-user",
    feature = "vsock"
))]
mod timer;
#[cfg(feature = "vhost-user")]
pub mod vhost_user;
#[cfg(feature = "vsock")]
pub mod vsock;

/// Tests the README's example.
#[cfg(all(doctest, feature = "entropy"))]
#[doc = include_str!("../README.md")]
struct Readme;
