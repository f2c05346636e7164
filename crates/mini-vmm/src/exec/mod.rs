// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Commands in the guest, for people on the host: `mini-vmm ctl SOCKET exec` and `mini-vmm agent`, and what they say to
//! each other over vsock. docs/exec.md describes the protocol.
//!
//! Each side trusts the other as little as possible. The client checks every frame, because the guest may be hostile. What
//! a command prints is passed on as it is.

pub mod agent;
pub mod client;
pub mod frame;
mod wire;

/// The vsock port where the agent listens, unless told otherwise.
pub const PORT: u32 = 1024;
/// The version of the protocol.
pub const VERSION: u32 = 1;
/// The most bytes of input that the command has not yet taken.
pub const WINDOW: usize = 256 << 10;
