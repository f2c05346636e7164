// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All `unsafe` of this crate: buffers in guest memory that the host's kernel reads and writes, the system calls for
//! that, and file locks.
//!
//! The rest of the crate denies `unsafe`. This module uses nothing from it.

#![allow(unsafe_code)]

mod buffers;
mod file;
mod ring;

pub use buffers::{Buffers, GatherError};
pub(crate) use file::{lock, read, write};
pub(crate) use ring::{Ring, Zero};
