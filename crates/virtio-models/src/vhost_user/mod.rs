// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices whose requests another process answers, by the vhost-user protocol (QEMU's `docs/interop/vhost-user.rst`):
//! file systems by virtiofsd, disks, networks, and any others.
//!
//! [`Backend::open`] connects and negotiates, so that a VMM knows before its guest starts whether the process can serve
//! the device. [`VhostUser`] is the device. Both sides of a connection are in two processes, which trust each other in
//! one direction only: the backend can read and write all of guest memory, and its answers are checked here. No
//! conversation takes longer than [`PATIENCE`], however slowly it answers.
//!
//! The crate `vhost` is not used. It repeats a read that timed out for ever, so a silent backend would stop the
//! thread of all devices.

mod backend;
mod device;
mod fault;
mod kind;
mod rings;
mod session;
mod socket;
mod wire;

pub use backend::{Backend, Connect, PATIENCE};
pub use device::{VhostUser, VhostUserState};
pub use fault::Fault;
pub use kind::{Kind, MAX_QUEUES, MAX_TAG, Shape};
pub use wire::Request;
