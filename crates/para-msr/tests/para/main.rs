// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The registration by the 2007 MSR based hypercall API, as a host without a guest can show it.
//!
//! Tests are named after the rule (R) or hole (H) of the API that they show; those without a number show
//! this crate's own promises. Not shown here: R2, because CPL 0 is the processor's check, H15, which is the
//! filter's, H16, which is the hypercall handler's, and of R1, R9 and H12 what para-abi and hypercall-patch
//! show of their parts. Guests walk them on KVM in mini-vmm's tests.
#![allow(clippy::unwrap_used)]

mod events;
mod holes;
mod model;
mod restore;
mod rules;
mod support;
mod threads;
