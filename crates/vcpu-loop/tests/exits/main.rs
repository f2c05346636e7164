// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every exit of the scripted vCPU: what the guest gets and what the VMM is told.
#![allow(clippy::unwrap_used)]

mod accesses;
mod events;
mod hooks;
mod strings;
mod support;
