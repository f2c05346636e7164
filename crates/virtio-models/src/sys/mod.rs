// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All `unsafe` of this crate: buffers in guest memory that the host's kernel reads and writes, the system calls for
//! that, file locks, and taps.
//!
//! The rest of the crate denies `unsafe`. This module uses nothing from it.

#![allow(unsafe_code)]

#[cfg(feature = "block")]
mod buffers;
#[cfg(feature = "block")]
mod file;
#[cfg(feature = "net")]
mod frames;
mod guest;
#[cfg(feature = "block")]
mod ring;
#[cfg(feature = "net")]
mod tap;
#[cfg(feature = "vsock")]
mod vector;

#[cfg(feature = "block")]
pub use buffers::{Buffers, GatherError};
#[cfg(feature = "block")]
pub(crate) use file::{lock, read, write};
#[cfg(feature = "net")]
pub(crate) use frames::{Fit, Gather, Space};
#[cfg(feature = "net")]
pub use frames::{Frame, HEADER, MAX_FRAME, Room};
#[cfg(any(feature = "net", feature = "vsock"))]
pub(crate) use guest::pieces;
#[cfg(any(feature = "block", feature = "net"))]
pub(crate) use guest::{Guest, current};
#[cfg(feature = "block")]
pub(crate) use ring::{Ring, Zero};
#[cfg(feature = "net")]
pub(crate) use tap::{attach, interface, set_header, set_offloads, set_queue};
#[cfg(feature = "vsock")]
pub(crate) use vector::Vector;
