// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The service, asked by a guest that is made by hand. Time passes when a test says so.

mod guest;
mod hostile;
mod requests;
mod tcp;
mod values;
