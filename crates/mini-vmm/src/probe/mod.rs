// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Finds out what the host supports, by reading files and by running tests.

pub(crate) mod guest;
pub(crate) mod host;

pub use guest::{GuestTest, Step};
pub use host::{Cpu, Virtualization};
