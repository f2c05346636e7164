// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Hypercalls: how a guest registers for them ([`para`]), and the handlers of those that reach the VMM ([`calls`]).

pub mod calls;
pub mod para;
