// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The registration with the 2007 MSR based hypercall API, tested without a guest.
//!
//! Tests are named after the rule (R) or hole (H) of the API that they cover. Tests without a number cover
//! this crate's own guarantees. Not covered here: R2, because the processor checks CPL 0; H15, which
//! belongs to the filter; H16, which belongs to the hypercall handler; and the parts of R1, R9 and H12 that
//! para-abi and hypercall-patch test. mini-vmm tests them with guests on KVM.
#![allow(clippy::unwrap_used)]

mod events;
mod holes;
mod model;
mod restore;
mod rules;
mod support;
mod threads;
