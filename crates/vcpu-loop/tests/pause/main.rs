// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kick, pause, save and stop, with scripted vCPUs on real threads.
#![allow(clippy::unwrap_used)]

mod kicks;
mod model;
mod saved;
mod sets;
mod support;
mod told;
